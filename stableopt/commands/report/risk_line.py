"""The level of the risk over time, in five lanes."""

from __future__ import annotations

from markupsafe import Markup

from stableopt.commands.report.axes import Axis
from stableopt.commands.report.frame import figure, percent, plot, stretched, stretches
from stableopt.commands.report.markup import el, join
from stableopt.recorded.run import Run
from stableopt.runtime.words import count
from stableopt.types import RiskLevel

_LANE = 24
_COLUMNS = 1000
LEVELS = tuple(level.value for level in RiskLevel)
"""From the calmest up."""


def draw_risk(run: Run, x: Axis) -> Markup | None:
    """Draw the level of the risk; ``None`` if it was never known.

    Args:
        run: Whose.
        x: The axis of calls.
    """
    if not run.risk:
        return None
    height = _LANE * len(LEVELS)
    bars = join(_bar(*bar) for bar in _bars(run, x))
    places = {level: percent((_row(level) + 0.5) / len(LEVELS)) for level in LEVELS}
    labels = join(el("span", level, style=f"top:{at}") for level, at in places.items())
    says = _describe(run)
    edges = range(0, height + 1, _LANE)
    lines = join(el("line", x1="0", x2="100%", y1=y, y2=y, class_="grid") for y in edges)
    drawing = plot(
        join(lines, stretched(bars, width=_COLUMNS, height=len(LEVELS), pixels=height)),
        label=f"Risk over calls of step(). {says}",
        height=height,
        x=x,
        left=labels,
    )
    return figure("Risk", says, drawing, name="risk", level="h2")


def _bar(start: int, end: int, level: str) -> Markup:
    top = _row(level) + 0.1
    return el("rect", x=start, width=end - start, y=top, height=0.8, class_=f"r-{level}")


def _row(level: str) -> int:
    return len(LEVELS) - 1 - LEVELS.index(level)


def _bars(run: Run, x: Axis) -> list[tuple[int, int, str]]:
    """Return first and last column and level; of several in a column the highest."""
    columns: list[str | None] = [None] * _COLUMNS
    known = [(call, level) for call, level in run.risk if level in LEVELS]
    ends = [call for call, _ in known[1:]] + [max(run.call, known[-1][0])] if known else []
    for (call, level), end in zip(known, ends, strict=True):
        first, last = (min(_COLUMNS - 1, int(_COLUMNS * x.at(at))) for at in (call, end))
        for column in range(first, max(first, last - (end < run.call)) + 1):
            there = columns[column]
            if there is None or LEVELS.index(level) > LEVELS.index(there):
                columns[column] = level
    return stretches(columns)


def _describe(run: Run) -> str:
    highest = max((level for _, level in run.risk if level in LEVELS), key=LEVELS.index, default="")
    changes = len(run.risk) - 1
    call, level = run.risk[-1]
    words = f"{level[:1].upper()}{level[1:]} since call {call:,}"
    if changes and highest:
        words += f", after {count(changes, 'change')}; the highest level was {highest}"
    return f"{words}."
