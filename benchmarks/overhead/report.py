"""The table of a result file, as Markdown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.common.report import facts, grid, heading, machine, middle, table
from benchmarks.common.variants import BASELINE, CLIPPED, MAX_NORM, VARIANTS

_PREFACE = """
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

_COLUMNS: dict[str, Callable[[Any], str]] = {
    "": lambda row: _label(row),
    "step to AdamW": lambda row: "1" if _is(row, BASELINE) else middle(row["to_adamw"], "{:.3f}"),
    "step to AdamW + clip": lambda row: (
        "1" if _is(row, CLIPPED) else middle(row["to_adamw_clip"], "{:.3f}")
    ),
    "added by the update": lambda row: (
        "0" if _is(row, BASELINE) else middle(row["added_by_update"], "{:+.2%}")
    ),
    "p99 / median": lambda row: f"{row['step_p99_to_median']:.2f}",
}


def render(result: dict[str, Any]) -> str:
    """Return the Markdown of a result, what ``overhead.json`` holds."""
    where = result["environment"]
    peer = f"stabilityguard {where['stabilityguard'] or 'not installed'}"
    used = f"{where['threads']} thread(s) used"
    parts = [heading("Overhead of a training step", "overhead") + _PREFACE.format(bound=MAX_NORM)]
    parts += [facts(result, peer, machine(result), used)]
    return "\n".join(parts + [_section(cell) for cell in result["cells"]])


def digest(result: dict[str, Any]) -> str:
    """Return one row per variant and one column per cell with the fused optimizer.

    A cell has what the update adds to a bare training step and, in brackets, the wall time
    of the whole step relative to the bare one; medians.
    """
    cells = [cell for cell in result["cells"] if cell["implementation"] == "fused"]
    head = ["", *(f"{c['parameters'] / 1e6:.0f}M, {c['tokens']:,} tokens" for c in cells)]
    rows = list(zip(*(cell["variants"] for cell in cells), strict=True))[1:]
    return "\n".join(grid(head, ([_label(row[0]), *map(_brief, row)] for row in rows)))


def _section(cell: dict[str, Any]) -> str:
    title = (
        f"## {cell['parameters'] / 1e6:.1f} M parameters, {cell['tokens']:,} tokens a step, "
        f"{cell['implementation']}\n"
    )
    note = (
        f"{cell['rounds']} rounds of {cell['steps_per_block']} step(s); the gradient was above "
        f"the clipping bound at the end of {cell['rounds_above_clipping_bound']}.\n"
    )
    skipped = [
        f"{_label(variant)} did not take {variant['interventions']} steps.\n"
        for variant in cell["variants"]
        if variant["interventions"]
    ]
    return "\n".join([title, note, table(_COLUMNS, cell["variants"]), *skipped])


def _brief(variant: dict[str, Any]) -> str:
    added, whole = variant["added_by_update"]["median"], variant["to_adamw"]["median"]
    return f"{added:+.2%} (x{whole:.2f})"


def _is(variant: dict[str, Any], name: str) -> bool:
    return bool(variant["name"] == name)


def _label(variant: dict[str, Any]) -> str:
    return VARIANTS[variant["name"]].label
