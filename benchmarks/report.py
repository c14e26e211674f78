"""The table of a result file, as Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.variants import BASELINE, CLIPPED, MAX_NORM, VARIANTS

_PREFACE = """\
# Overhead of a training step

<!-- Generated from {source} by `python -m benchmarks.overhead`; do not edit. -->

Small models, fp32, CPU, random tokens: this shows what a step costs here, not what it costs
at scale. The machine is shared with other work, so **only ratios are quoted**; the row
"AdamW again" is a second copy of the bare optimizer and shows how far noise alone goes.

Every variant trains its own copy of the same GPT on the same batches. In each round every
variant runs one block of steps (forward, backward, update), in an order that changes from
round to round. stabilityguard runs with its defaults, less its periodic line on stdout.

- **step to AdamW**: wall time of its block by that of the bare optimizer's block in the same
  round; the median over the rounds, with the 25th and 75th percentiles.
- **step to AdamW + clip**: the same, by `AdamW` + `clip_grad_norm_({bound:g})`.
- **added by the update**: what it adds between the end of backward and the end of the step,
  as a share of the whole bare step; free of the noise of forward and backward, and blind to
  hooks that run in them.
- **p99 / median**: of its own step times; where a cell has fewer than 100 steps, the largest.
"""

_HEADER = (
    "| | step to AdamW | step to AdamW + clip | added by the update | p99 / median |\n"
    "|---|---|---|---|---|"
)


def render(result: dict[str, Any], source: str) -> str:
    """Return the Markdown of a result.

    Args:
        result: What ``overhead.json`` holds.
        source: The name of that file.
    """
    parts = [_PREFACE.format(source=f"`{source}`", bound=MAX_NORM), _facts(result)]
    parts += [_section(cell) for cell in result["cells"]]
    return "\n".join(parts)


def _facts(result: dict[str, Any]) -> str:
    facts = result["environment"]
    peer = facts["stabilityguard"]
    lines = [
        f"`{result['command']}`, seed {result['seed']}, {facts['date']}: "
        f"stableopt {facts['stableopt']} ({facts['commit'] or 'no commit'}), "
        f"torch {facts['torch']}, stabilityguard {peer or 'not installed'}, "
        f"Python {facts['python']}, {facts['system']}, {facts['cpu']}, "
        f"{facts['cores']} cores, {facts['threads']} thread(s) used."
    ]
    if not result["complete"]:
        lines.append("\n**Not the complete run: these figures are not to be quoted.**")
    return "\n".join(lines) + "\n"


def _section(cell: dict[str, Any]) -> str:
    title = (
        f"## {cell['parameters'] / 1e6:.1f} M parameters, {cell['tokens']:,} tokens a step, "
        f"{cell['implementation']}\n"
    )
    note = (
        f"{cell['rounds']} rounds of {cell['steps_per_block']} step(s); the gradient was above "
        f"the clipping bound at the end of {cell['rounds_above_clipping_bound']}.\n"
    )
    rows = [_row(variant) for variant in cell["variants"]]
    skipped = [
        f"{_label(variant)} did not take {variant['interventions']} steps."
        for variant in cell["variants"]
        if variant["interventions"]
    ]
    return "\n".join([title, note, _HEADER, *rows, "", *(f"{line}\n" for line in skipped)])


def _row(variant: dict[str, Any]) -> str:
    bare, clipped = variant["name"] == BASELINE, variant["name"] == CLIPPED
    cells = [
        _label(variant),
        "1" if bare else _spread(variant["to_adamw"], "{:.3f}"),
        "1" if clipped else _spread(variant["to_adamw_clip"], "{:.3f}"),
        "0" if bare else _spread(variant["added_by_update"], "{:+.2%}"),
        f"{variant['step_p99_to_median']:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def _label(variant: dict[str, Any]) -> str:
    return VARIANTS[variant["name"]].label


def _spread(figure: dict[str, float] | None, form: str) -> str:
    if figure is None:
        return "-"
    low, middle, high = (form.format(figure[key]) for key in ("p25", "median", "p75"))
    return f"**{middle}** ({low} … {high})"
