"""A plot whose text keeps its size at any width of the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from markupsafe import Markup

from stableopt.commands.report.axes import Axis
from stableopt.commands.report.markup import el, join
from stableopt.runtime.words import spell

_EDGE = 0.06
"""Of the width, within which a number is written inside instead of centred."""


def percent(share: float) -> str:
    """Return a share as a length of SVG or CSS, short.

    Example:
        >>> percent(0.5), percent(1 / 3)
        ('50%', '33.33%')
    """
    return f"{100 * share:.2f}".rstrip("0").rstrip(".") + "%"


def figure(title: str, says: str, *parts: str | None, name: str, level: str = "h3") -> Markup:
    """Return a figure with its title and what there is to see in words.

    Args:
        title: A few words.
        says: The same content for those who do not see it.
        *parts: The plot, a legend.
        name: The fragment that it is linked by.
        level: Of the heading.
    """
    caption = el("figcaption", el(level, title), el("p", says) if says else None)
    return el("figure", caption, *parts, id=name)


def plot(
    inside: Markup, *, label: str, height: int, x: Axis, left: Markup, below: int = 0
) -> Markup:
    """Return a drawing with numbers at its sides.

    Args:
        inside: SVG in units of pixels and percent.
        label: What it shows, in a sentence.
        height: Of the drawing in pixels, what is below the axis included.
        x: The horizontal axis.
        left: What is written beside it.
        below: Pixels of the drawing that are below its lower edge.
    """
    svg = el("svg", inside, class_="area", height=height, role="group", aria_label=label)
    return el(
        "div",
        el("div", left, class_="ys", aria_hidden="true", style=f"height:{height - below}px"),
        svg,
        el("div", x_labels(x), class_="xs", aria_hidden="true"),
        class_="frame",
    )


def x_labels(x: Axis) -> Markup:
    """Return the numbers below a plot."""
    labels = []
    for i, tick in enumerate(x.ticks()):
        share = x.at(tick)
        side = "start" if share < _EDGE else "end" if share > 1 - _EDGE else None
        kind = " ".join(filter(None, (side, "minor" if i % 2 else None)))
        labels.append(
            el("span", f"{tick:,.10g}", class_=kind or None, style=f"left:{percent(share)}")
        )
    return join(*labels)


def y_labels(y: Axis, ticks: Sequence[float]) -> Markup:
    """Return the numbers beside a plot."""
    return join(el("span", spell(v), style=f"top:{percent(1 - y.at(v))}") for v in ticks)


def stretches(cells: Iterable[str | None]) -> list[tuple[int, int, str]]:
    """Return first column, end and kind of neighbouring cells of one kind, without the empty.

    Example:
        >>> stretches([None, "a", "a", "b"])
        [(1, 3, 'a'), (3, 4, 'b')]
    """
    found, end = [], 0
    for kind, together in groupby(cells):
        start, end = end, end + sum(1 for _ in together)
        if kind is not None:
            found.append((start, end, kind))
    return found


def grid(y: Axis, ticks: Sequence[float], height: int) -> Markup:
    """Return a line for each of the numbers."""
    places = (f"{(1 - y.at(tick)) * height:.1f}" for tick in ticks)
    return join(el("line", x1="0", x2="100%", y1=at, y2=at, class_="grid") for at in places)


def stretched(inside: Markup, *, width: int, height: int, pixels: int) -> Markup:
    """Return SVG whose units are stretched to the whole width and to ``pixels`` of height."""
    box = {"viewBox": f"0 0 {width} {height}", "preserveAspectRatio": "none"}
    return el("svg", inside, **box, width="100%", height=pixels)
