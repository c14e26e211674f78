"""A series as a line, with a description in words."""

from __future__ import annotations

import math

from markupsafe import Markup

from stableopt.commands.report import marks
from stableopt.commands.report.axes import Axis, fitted, span
from stableopt.commands.report.frame import figure, grid, percent, plot, stretched, y_labels
from stableopt.commands.report.markup import el, join
from stableopt.recorded.run import Run
from stableopt.recorded.trace import Bucket, Trace
from stableopt.runtime.words import count, spell

_UNITS = 1000
"""Of the drawing, in both directions."""

_MOST_BARS = 1000
"""Bars along a plot: none is narrower than that."""

_CROSS = "\N{MULTIPLICATION SIGN}"

_ONCE = 400
"""Places along a plot at which something outside is marked."""


def draw_curve(
    run: Run,
    trace: Trace,
    x: Axis,
    *,
    title: str,
    name: str,
    height: int = 160,
    linked: set[int] | None = None,
    level: str = "h3",
    linear: bool = False,
) -> Markup | None:
    """Draw a series; ``None`` if it is empty.

    Args:
        run: Whose interventions are marked.
        trace: The series.
        x: The axis of calls.
        title: What it is.
        name: The fragment that it is linked by.
        height: Of the frame in pixels.
        linked: Calls with an entry in the ledger, to have every intervention marked below; only
            lines at rollbacks if not given.
        level: Of the heading.
        linear: Whether the vertical axis is never logarithmic.
    """
    if not trace:
        return None
    y = fitted(trace, linear=linear) or span(0.0, 1.0)
    ticks = y.ticks(max(3, height // 34))
    full = linked is not None
    inside = join(
        marks.bands(run, x, height),
        grid(y, ticks, height),
        stretched(_line(trace, x, y), width=_UNITS, height=_UNITS, pixels=height),
        _refused(run, x, y, height) if full else None,
        _outside(trace, x, y),
        marks.marks(run, x, height, linked or set()) if full else marks.lines(run, x, height),
    )
    below = marks.LANE if full else 0
    says = " ".join(filter(None, (describe(trace, y), _refused_in_words(run) if full else "")))
    return figure(
        title,
        says,
        plot(
            inside,
            label=f"{title} over calls of step(). {says}",
            height=height + below,
            below=below,
            x=x,
            left=y_labels(y, ticks),
        ),
        marks.legend(run) if full else None,
        name=name,
        level=level,
    )


def describe(trace: Trace, y: Axis) -> str:
    """Return in words what a curve shows.

    Args:
        trace: The series.
        y: The axis that it is drawn on.
    """
    words = [
        f"From {spell(trace.first)} to {spell(trace.last)}, between {spell(trace.low)} and "
        f"{spell(trace.high)} in {count(trace.count, 'record')}"
    ]
    if y.logarithmic:
        words.append("logarithmic scale")
    above = sum(b.high > y.high for b in trace.finite())
    if above:
        words.append(
            f"what lies above the frame is marked with an arrow, the highest {spell(trace.high)}"
        )
    if trace.nonfinite:
        bad = count(trace.nonfinite, "value is", "values are")
        words.append(f"{bad} NaN or infinite, marked with a cross")
    if trace.merged > 1:
        words.append(
            f"up to {trace.merged} records are drawn as their mean, in a band from the lowest to "
            "the highest"
        )
    return f"{'; '.join(words)}."


def _refused_in_words(run: Run) -> str:
    refused = sum(found.refused and found.loss is not None for found in run.interventions)
    if not refused:
        return ""
    whose = count(refused, "batch that was refused is", "batches that were refused are")
    return f"The loss of {whose} no part of the line: a circle, or a grey sign above the frame."


def _line(trace: Trace, x: Axis, y: Axis) -> Markup:
    """Return the path of the finite values; it is broken where there are none."""
    parts: list[str] = []
    pen = "M"
    for bucket in trace.buckets:
        if not bucket.finite:
            pen = "M"
            continue
        middle = (bucket.start + bucket.end) / 2
        parts.append(f"{pen}{_units(x.at(middle))} {_units(1 - y.at(bucket.mean))}")
        pen = "L"
    path = "".join(parts)
    # A single point has no length; round ends make it a dot.
    dot = "h.01" if path.count("L") == 0 and path else ""
    line = el("path", d=f"{path}{dot}", class_="line", vector_effect="non-scaling-stroke")
    return join(_spread(trace, x, y), line)


def _spread(trace: Trace, x: Axis, y: Axis) -> Markup | None:
    """Return bars from the lowest to the highest of what was merged, as one path."""
    bars = [_bar(bucket, x, y) for bucket in trace.finite() if bucket.low < bucket.high]
    return el("path", d="".join(bars), class_="spread") if bars else None


def _bar(bucket: Bucket, x: Axis, y: Axis) -> str:
    width = max(_UNITS / _MOST_BARS, _UNITS * (x.at(bucket.end) - x.at(bucket.start)))
    top, bottom = (_UNITS * (1 - y.at(value)) for value in (bucket.high, bucket.low))
    place = f"M{_units(x.at(bucket.start))} {_units(top / _UNITS)}"
    return f"{place}h{width:.2f}v{max(1.0, bottom - top):.1f}h-{width:.2f}z"


def _units(share: float) -> str:
    return f"{_UNITS * share:.1f}".removesuffix(".0")


def _refused(run: Run, x: Axis, y: Axis, height: int) -> Markup:
    """Return a circle for the loss of every batch that was not taken."""
    drawn: dict[tuple[int, int], Markup] = {}
    for found in run.interventions:
        if found.loss is None or not found.refused:
            continue
        outside = not math.isfinite(found.loss) or found.loss > y.high
        place = (round(_ONCE * x.at(found.call)), -1 if outside else round(100 * y.at(found.loss)))
        if place in drawn:
            continue
        at = percent(x.at(found.call))
        title = f"call {found.call}: loss {spell(found.loss)}, refused"
        if outside:
            drawn[place] = _sign(at, "▲" if math.isfinite(found.loss) else _CROSS, title, "out")
        else:
            top = f"{(1 - y.at(found.loss)) * height:.1f}"
            drawn[place] = el("circle", el("title", title), cx=at, cy=top, r=3.5, class_="out")
    return join(*drawn.values())


def _outside(trace: Trace, x: Axis, y: Axis) -> Markup:
    """Return signs above the frame for what is not finite, or beyond it."""
    drawn: dict[tuple[int, str], Markup] = {}
    for bucket in trace.buckets:
        middle = x.at((bucket.start + bucket.end) / 2)
        signs = {
            _CROSS: (bucket.undefined + bucket.infinite, "not finite"),
            "▲": (bucket.high > y.high, f"up to {spell(bucket.high)}"),
        }
        for sign, (present, what) in signs.items():
            place = (round(_ONCE * middle), sign)
            if present and place not in drawn:
                title = f"call {bucket.start:.0f}: {what}"
                drawn[place] = _sign(percent(middle), sign, title, "bad")
    return join(*drawn.values())


def _sign(at: str, sign: str, title: str, kind: str) -> Markup:
    return el("text", sign, el("title", title), x=at, y=-3, class_=f"sign {kind}")
