"""The tables of the closed-loop benchmark, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.closed_loop.rows import arm_of
from benchmarks.common.report import facts, grid, heading, machine, pair, table

Row = Mapping[str, Any]

_PREFACE = """
Byte-level GPTs of two layers on the sources of the standard library, fp32, CPU, {steps} updates,
AdamW at a constant learning rate: this shows whether a loop closes, not how often runs fail by
themselves. From update {begin} to update {end} every update carries the run a bit further into a
failure; the transforms come after that, and what the next forward pass meets is what is judged.
All arms of a scenario have the same weights, batches and drive. There is no guard. The limits were
set on seeds 0 to 9.

- **left**: weights (or blocks) that were beyond the bound at some step. **noticed**: updates from
  then until it was acted upon. **back**: updates from that to the first one inside the bound; 0 is
  the same update. Median, largest.
- **worst**: over all steps; **after**: once it was back for the first time. **outside**: share of
  the steps from the begin of the drive to the end of the run.
- **loss**: for validation, at the end; **lost**: compared with the same run without a drive.
- **uniform L2**: the actuator of ASSR on the trigger of ours, read as densely as in the dense arm.
  *As published*: λ from 2e-5 to 22e-5, once per reading, through the gradient. *Strong*: 50,000
  times that, decoupled from AdamW, for as long as the trigger holds.
- **default sampler**: an eighth of the weights every ten steps. In their first 320 steps weights
  are visited every 40 steps, to learn their course; later every 80, and every 10 when suspected.
  The first visits of all weights fall on the same steps: how soon a failure is noticed is one draw.
  **dense**: all of them every other step.

![Metric over steps, by failure](closed_loop.svg)
"""

_MOVED = """\
Where a trigger is about the shape of a weight, or its largest singular value: what the weights
were when the drive ended, median over weights and seeds. A decay scales every singular value
alike: what it moves is the first two columns, and the others only as far as AdamW's steps weigh
more on a weight that has become smaller.
"""

_NORMS = """\
All linear layers of the blocks are held at a bound, from their initial weights on, for {steps}
updates without any other drive. σ₁ is that of the weight that the forward pass has used, by a full
decomposition of every layer at every step: in the **first** forward pass, the **largest** from the
eleventh on, and in the **last**. **cost**: seconds of ten training steps by those of the bare run
in the same round, in turns; quartiles. At this size a step takes some milliseconds, and
{layers} layers are many small matrices: the ratio is that of a toy.
"""


def render(result: Row) -> str:
    """Return the Markdown of a result, what ``closed_loop.json`` holds."""
    course = {key: result["course"][key] for key in ("steps", "begin", "end")}
    title = "Failures that are driven, and what brings them back"
    used = f"{result['environment']['threads']} thread(s) used"
    took = f"{result['seconds'] / 60:.1f} minutes"
    parts = [heading(title, "closed_loop") + _PREFACE.format(**course)]
    parts += [facts(result, machine(result), used, took)]
    parts += ["## What became of the metric\n", _verdicts(result["scenarios"])]
    for row in result["scenarios"]:
        sign = "at most" if row["is_upper"] else "at least"
        parts += [f"## {row['title']}\n"]
        driven = row["driven"][0].upper() + row["driven"][1:]
        bound = f"{row['metric']}: {sign} {row['bound']:g}"
        parts += [f"{driven}. {bound}; the trigger is `{row['trigger']}`.\n"]
        parts += [table(_ARM, row["arms"])]
    parts += ["## What a decay moves\n", _MOVED, _moved(result["scenarios"])]
    sizes = {"steps": result["norm_steps"], "layers": result["norm_layers"]}
    parts += ["## Spectral normalization\n", _NORMS.format(**sizes)]
    parts += [table(_NORM, result["norms"])]
    return "\n".join(parts)


def digest(result: Row) -> str:
    """Return what the documentation quotes: a row for every failure, and the normalization."""
    seeds = ", ".join(str(seed) for seed in result["seeds"])
    lines = [
        "Worst value of the metric after the drive had begun, and loss at the end compared with "
        f"the same run that is not driven; seeds {seeds}. Ours is the best of its arms by the "
        "share of steps outside the bound. Judged as the forward pass meets it, once the update, "
        "the drive and the transform are through.\n",
        *grid(
            ("failure", "bound", "nothing in the loop", "uniform L2", "strong L2", "ours"),
            map(_brief_row, result["scenarios"]),
        ),
    ]
    lines += ["", _verdicts(result["scenarios"]).strip()]
    return "\n".join([*lines, "", table(_NORM, result["norms"]).strip()])


def best_of_ours(row: Row) -> Row | None:
    """Return that of our arms which was outside the bound for the fewest steps."""
    ours = [arm for arm in row["arms"] if arm["arm"] in ("ours", "dense")]
    return min(ours, key=lambda arm: arm["outside"], default=None)


def _verdicts(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        bare = arm_of(row, "none")
        for arm in row["arms"]:
            if bare is not None and arm["arm"] in ("ours", "dense"):
                lines.append(f"- **{row['title']}**, {arm['title']}: {verdict(arm, bare)}.")
    return "\n".join(lines) + "\n"


def verdict(arm: Row, bare: Row) -> str:
    """Return in words whether the bound was held, regained or missed.

    Args:
        arm: The row of an arm.
        bare: The one with nothing in the loop.
    """
    if arm["outside"] > bare["outside"]:
        share = f"{arm['outside']:.1%} of the steps, and in {bare['outside']:.1%} without it"
        return f"**worse than nothing**: outside in {share}; worst {arm['worst']:.3g}"
    if bare["left"] == 0:
        return "nothing to hold: the bound was not left without it either"
    if arm["left"] == 0:
        without = f"{bare['left']} of {bare['units']} left it"
        return f"held: the bound was never left; without it {without}"
    told = f"worst {arm['worst']:.3g}, outside in {arm['outside']:.0%} of the steps"
    if arm["never_back"]:
        never = f"{arm['never_back']} of {arm['left']} that left it never came back"
        return f"**missed**: {never}; {told}"
    out = arm["units"] - arm["recovered"]
    if out:
        return f"**missed** at the end by {out} of {arm['units']}; {told}"
    if arm["outside"] > _OFTEN:
        return f"regained, and left again while it was driven; {told}"
    return f"regained; {told}"


_OFTEN = 0.1
"""Share of the steps outside a bound from which on it is said that it was left again."""


def _brief_row(row: Row) -> list[str]:
    arms = [arm_of(row, "none"), arm_of(row, "l2"), arm_of(row, "strong"), best_of_ours(row)]
    sign = "≤" if row["is_upper"] else "≥"
    cells = ["-" if arm is None else _brief(arm) for arm in arms]
    return [row["title"], f"{row['metric']} {sign} {row['bound']:g}", *cells]


def _brief(arm: Row) -> str:
    lost = "" if arm["lost"] is None else f", loss {arm['lost']:+.3f}"
    return f"{arm['worst']:.3g}{lost}"


def _moved(rows: Sequence[Row]) -> str:
    told = [(row, arm) for row in rows for arm in row["arms"] if arm["spectra"]]
    if not told:
        return "Nothing was measured.\n"
    metrics = list(told[0][1]["spectra"])
    cells = (
        [row["title"], arm["title"], *(f"{arm['spectra'][metric]:.3g}" for metric in metrics)]
        for row, arm in told
    )
    return "\n".join(grid(["failure", "in the loop", *metrics], cells)) + "\n"


def _number(value: float | None, form: str = ".3g") -> str:
    return "-" if value is None else format(value, form)


def _back(row: Row) -> str:
    never = f"; {row['never_back']} never" if row["never_back"] else ""
    return pair(row["back"], ", ") + never


_ARM: dict[str, Callable[[Any], str]] = {
    "in the loop": lambda row: row["title"],
    "left": lambda row: f"{row['left']} of {row['units']}",
    "noticed": lambda row: pair(row["noticed"], ", "),
    "back": _back,
    "worst": lambda row: _number(row["worst"]),
    "after": lambda row: _number(row["worst_after"]),
    "outside": lambda row: f"{row['outside']:.0%}",
    "inside at the end": lambda row: f"{row['recovered']} of {row['units']}",
    "acts each": lambda row: f"{row['acts']:.0f}",
    "before the drive": lambda row: str(row["early"]),
    "loss": lambda row: f"{row['val']:.3f}",
    "lost": lambda row: _number(row["lost"], "+.3f"),
}

_NORM: dict[str, Callable[[Any], str]] = {
    "bound": lambda row: f"{row['bound']:g}",
    "spectral normalization": lambda row: row["variant"],
    "σ₁, first": lambda row: f"{row['first']:.3f}",
    "largest": lambda row: f"{row['largest']:.3f}",
    "last": lambda row: f"{row['last']:.3f}",
    "loss": lambda row: f"{row['val']:.3f}",
    "cost": lambda row: (
        f"x{row['cost']['median']:.2f} ({row['cost']['p25']:.2f} … {row['cost']['p75']:.2f})"
    ),
}
