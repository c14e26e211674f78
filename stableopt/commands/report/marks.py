"""Interventions on a plot: a shape for each kind, and the steps that were undone."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from stableopt.commands.report.axes import Axis
from stableopt.commands.report.frame import percent
from stableopt.commands.report.markup import el, join
from stableopt.recorded.interventions import WORDS, Kind
from stableopt.recorded.run import Run
from stableopt.runtime.words import count

_SHAPES: Mapping[Kind, str] = {
    Kind.STOP: "M-6-6H6V6H-6Z",
    Kind.ROLL_BACK: "M0-7 6 0 0 7-6 0Z",
    Kind.SKIP: "M0-6 6 5H-6Z",
    Kind.TAME: "M-6-5H6L0 0 6 5H-6L0 0Z",
    Kind.BACK_OFF: "M0 6 6-5H-6Z",
    Kind.RISK: "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0Z",
    Kind.NOTICE: "M-6-2H6V2H-6Z",
    Kind.CORRECTION: "M-2-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
}

_ONCE = 500
"""Places along a plot; marks of one kind at the same place are drawn once."""

LANE = 22
"""Pixels below a plot that marks are drawn in."""


def shapes() -> Markup:
    """Return the definitions that marks refer to; once in a page."""
    symbols = [el("path", id=f"m-{kind.value}", d=shape) for kind, shape in _SHAPES.items()]
    path = el("path", d="M-1 1 1-1M0 6 6 0M5 7 7 5", class_="hatch")
    hatch = el("pattern", path, id="hatch", width=6, height=6, patternUnits="userSpaceOnUse")
    return el("svg", el("defs", *symbols, hatch), class_="defs", aria_hidden="true")


def icon(kind: Kind) -> Markup:
    """Return the shape of a kind, for a line of text."""
    shape = el("path", d=_SHAPES[kind])
    return el(
        "svg", shape, class_=f"icon k-{kind.value}", viewBox="-8 -8 16 16", aria_hidden="true"
    )


def bands(run: Run, x: Axis, height: int) -> Markup:
    """Return hatched bands over the steps that rollbacks have undone.

    Args:
        run: Whose.
        x: The axis of calls.
        height: Of the bands in pixels.
    """
    drawn: dict[tuple[str, str], Markup] = {}
    for found in run.interventions:
        if found.to_step is not None and found.undone:
            first = x.at(run.call_of(found.to_step, found.call))
            here = percent(first), percent(max(0.002, x.at(found.call) - first))
            drawn[here] = el("rect", x=here[0], width=here[1], y=0, height=height, class_="undone")
    return join(*drawn.values())


def marks(run: Run, x: Axis, height: int, linked: set[int]) -> Markup:
    """Return a mark below the plot for every intervention, and lines across it for the grave.

    Args:
        run: Whose.
        x: The axis of calls.
        height: Of the plot in pixels; the marks are below it.
        linked: Calls that the ledger of the page has an entry for.
    """
    drawn: dict[tuple[Kind, int], Markup] = {}
    for found in run.interventions:
        place = (found.kind, round(_ONCE * x.at(found.call)))
        if place not in drawn:
            at = percent(x.at(found.call))
            title, kind = f"call {found.call}: {WORDS[found.kind]}", found.kind.value
            where = {"x": at, "y": height + LANE // 2, "class_": f"k-{kind}"}
            mark = el("use", el("title", title), href=f"#m-{kind}", **where)
            if found.call in linked:
                mark = el("a", mark, href=f"#call-{found.call}", tabindex="-1")
            drawn[place] = join(_line(found.kind, at, height), mark)
    # The grave ones last, so that they lie on top.
    order = sorted(drawn, key=lambda place: -list(Kind).index(place[0]))
    return join(drawn[place] for place in order)


def lines(run: Run, x: Axis, height: int) -> Markup:
    """Return lines across a plot where the run was rolled back or stopped."""
    found = {percent(x.at(i.call)): i.kind for i in run.interventions if i.kind in _GRAVE}
    return join(_line(kind, at, height) for at, kind in found.items())


_GRAVE = (Kind.ROLL_BACK, Kind.STOP)


def _line(kind: Kind, at: str, height: int) -> Markup | None:
    if kind not in _GRAVE:
        return None
    return el("line", x1=at, x2=at, y1=0, y2=height, class_=f"across k-{kind.value}")


def legend(run: Run) -> Markup | None:
    """Return what the marks mean and how many there are; ``None`` if there are none."""
    counts = {kind: n for kind in Kind if (n := run.counted(kind))}
    entries = [el("li", icon(kind), f" {WORDS[kind]}: {n}") for kind, n in counts.items()]
    if run.lost:
        area = el("rect", width=16, height=16, class_="undone")
        hatched = el("svg", area, class_="icon", viewBox="0 0 16 16", aria_hidden="true")
        entries.append(el("li", hatched, f" {count(run.lost, 'update')} undone"))
    return el("ul", *entries, class_="legend") if entries else None
