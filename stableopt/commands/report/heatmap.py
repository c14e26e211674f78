"""One metric of every layer over time, in colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate

from markupsafe import Markup

from stableopt.commands.report.axes import Axis
from stableopt.commands.report.frame import figure, stretched, stretches, x_labels
from stableopt.commands.report.markup import el, join
from stableopt.commands.report.scales import Change, Limits, Scale, factors_for
from stableopt.health.spectra.tiers import TIERS
from stableopt.recorded.offenders import is_gone, judge
from stableopt.recorded.run import Run
from stableopt.recorded.trace import Readings, Trace
from stableopt.runtime.words import count, listed, natural, spell
from stableopt.types import Standing

MOST_LAYERS = 1000
"""Rows of a heatmap."""

_CELLS = 12_000
"""Cells of a heatmap, so that a page stays small."""

_MOST_COLUMNS, _LEAST_COLUMNS = 100, 12

_ROW = 17
"""Pixels of a row that has room for its name."""

_NAMED = 40
"""Rows up to which each has a name beside it."""

_TALL = 640
"""Pixels of a heatmap with more rows."""

_SHORT = 17
"""Letters of a name on a phone."""

_SIGNS = {Standing.WARNING: "▲", Standing.DANGER: "■"}

EXPLAINED: Mapping[str, str] = {
    "relative_rank": "effective rank over that of a random matrix of the shape; low means that the "
    "layer collapses into few directions",
    "relative_fiedler": "how well the rows hang together, over that of random rows; low means that "
    "they fall into clusters",
    "relative_kappa_p10": "spread of the singular values over that of a random matrix; high means "
    "that few directions dominate",
    "spectral_norm": "the largest singular value",
    "stable_rank": "squared Frobenius norm over squared spectral norm",
    "effective_rank": "exponential of the entropy of the singular values of sampled rows",
    "kappa_p10": "largest singular value over their 10% quantile",
    "redundancy": "how alike rows are: 1 if independent",
    "fiedler": "algebraic connectivity of sampled rows",
    "condition_number": "largest over smallest singular value",
    "relative_condition": "condition number over that of a random matrix of the shape",
    "assr_fiedler": "as ASSR publishes it",
    "assr_condition_number": "as ASSR publishes it",
    "kappa_tilde": "as Gradience publishes it",
}
"""What the metrics of our sensors are, in half a sentence each."""


def draw_heatmap(run: Run, metric: str, x: Axis) -> Markup:
    """Draw a metric: a row per layer, in the order of their names, and time to the right.

    Metrics with limits show the value; all others the change since a layer's first reading.

    Args:
        run: Whose readings.
        metric: Which; it has been read at least once.
        x: The axis of calls.
    """
    layers = run.readings[metric]
    names = sorted(layers, key=natural)
    shown = _worst(run, metric, names)
    columns = max(_LEAST_COLUMNS, min(_MOST_COLUMNS, _CELLS // len(shown)))
    roomy = len(shown) <= _NAMED
    height = _ROW * len(shown) if roomy else max(_TALL, 2 * len(shown))
    factors = factors_for(layers.values())
    scales = [_scale(run, metric, name, factors) for name in shown]
    paths: dict[str, list[str]] = {}
    for row, (name, scale) in enumerate(zip(shown, scales, strict=True)):
        for start, end, kind in _stretches(layers[name], scale, x, columns):
            paths.setdefault(kind, []).append(f"M{start} {row}h{end - start}v1h{start - end}z")
    inside = join(
        (el("path", d="".join(paths[kind]), class_=f"c-{kind}") for kind in sorted(paths)),
        (_hover(name, layers[name], row, columns) for row, name in enumerate(shown)),
    )
    says = _describe(run, metric, names, len(shown))
    drawing = el(
        "svg",
        stretched(inside, width=columns, height=len(shown), pixels=height),
        class_="area cells",
        height=height,
        role="group",
        aria_label=f"{metric} of every layer over calls of step(). {says}",
    )
    frame = el(
        "div",
        el("div", _names(shown, height), class_="names", style=f"height:{height}px"),
        drawing,
        el("div", _newest(run, metric, shown) if roomy else None, class_="newest"),
        el("div", x_labels(x), class_="xs", aria_hidden="true"),
        class_="frame heat",
    )
    return figure(metric, says, frame, _legend(scales[0]), name=f"metric-{metric}", level="h3")


def _worst(run: Run, metric: str, names: list[str]) -> list[str]:
    """Return all names, or those that stand out, in order, if there are too many."""
    if len(names) <= MOST_LAYERS:
        return names
    found = sorted(names, key=lambda name: _badness(run, metric, name))
    return sorted(found[:MOST_LAYERS], key=natural)


def _badness(run: Run, metric: str, name: str) -> float:
    """Return what sorts the layers that stand out most first."""
    tier, trace = TIERS.get(metric), run.readings[metric][name]
    value, first = trace.newest or 0.0, trace.first or 0.0
    if math.isnan(value):
        return -math.inf
    if tier is None:
        both = 0 < value < math.inf and 0 < first < math.inf
        return -abs(math.log(value) - math.log(first)) if both else 0.0
    return value if tier.low_is_bad else -value


def _scale(run: Run, metric: str, name: str, factors: tuple[float, ...]) -> Scale:
    if metric in TIERS:
        return Limits(metric, lambda value: judge(run, metric, name, value))
    return Change(run.readings[metric][name].first, factors)


def _stretches(trace: Trace, scale: Scale, x: Axis, columns: int) -> Sequence[tuple[int, int, str]]:
    """Return first and last column and class of neighbouring cells of one colour.

    Of several readings in a cell the most extreme one counts; a cell without one has the
    colour of the one before.
    """
    cells: list[str | None] = [None] * columns
    for bucket in trace.buckets:
        kind = scale.kind(bucket)
        first, last = (
            min(columns - 1, int(columns * x.at(at))) for at in (bucket.start, bucket.end)
        )
        for column in range(first, last + 1):
            known = cells[column]
            cells[column] = kind if known is None else max(known, kind, key=_gravity)
    return stretches(accumulate(cells, lambda held, cell: cell or held))


def _gravity(kind: str) -> float:
    named = {"un": 10, "danger": 9, "warning": 8}
    return named.get(kind) or abs(int(kind[1]) - (4 if kind[0] == "d" else 0))


def _hover(name: str, trace: Readings, row: int, columns: int) -> Markup:
    """Return what is shown while a pointer is on a row."""
    numbers = f"{name}: {spell(trace.first)} at first, {spell(trace.newest)} now"
    if trace.count > 2:
        numbers += f", from {spell(trace.low)} to {spell(trace.high)}"
    title = el("title", f"{numbers} ({count(trace.count, 'reading')})")
    return el("rect", title, y=row, width=columns, height=1, class_="hover")


def _names(names: Sequence[str], height: int) -> Markup:
    every = max(1, math.ceil(_ROW * len(names) / height))
    spans = []
    for row in range(0, len(names), every):
        name, place = names[row], f"top:{100 * (row + 0.5) / len(names):.2f}%"
        both = el("bdi", name, class_="full"), el("bdi", shorten(name), class_="short")
        spans.append(el("span", *both, style=place, title=name))
    return join(*spans)


def shorten(name: str) -> str:
    """Return a name with its middle left out: layers differ at both ends of their names.

    Example:
        >>> shorten("blocks.3.attention.qkv.weight"), shorten("0.weight")
        ('blocks.3…tion.qkv', '0.weight')
    """
    name = name.removesuffix(".weight") if len(name) > _SHORT else name
    half = _SHORT // 2
    return name if len(name) <= _SHORT else f"{name[:half]}…{name[-half:]}"


def _newest(run: Run, metric: str, names: Sequence[str]) -> Markup:
    """Return the newest reading of each row, with a sign if it is beyond a limit."""
    rows = []
    for name in names:
        value = run.newest(metric, name)
        standing = judge(run, metric, name, value)
        if is_gone(run, metric, name):
            standing = Standing.DANGER
        sign = _SIGNS.get(standing)
        kind = f"limit {standing.value}" if sign else None
        rows.append(el("span", f"{sign or ''}{spell(value, 3)}", class_=kind))
    return join(*rows)


def _describe(run: Run, metric: str, names: Sequence[str], shown: int) -> str:
    what = EXPLAINED.get(metric, "")
    words = [f"{what[:1].upper()}{what[1:]}." if what else ""]
    if metric in TIERS:
        beyond = [
            name
            for name in names
            if judge(run, metric, name, run.newest(metric, name))
            in (Standing.WARNING, Standing.DANGER)
        ]
        beyond.sort(key=lambda name: _badness(run, metric, name))
        now = f"{len(beyond)} of {count(len(names), 'layer')} beyond the limit now"
        words.append(f"{now}: {listed(beyond)}." if beyond else f"{now}.")
    else:
        words.append(
            f"{count(len(names), 'layer')}; colours are the change since the first reading."
        )
    gone = [name for name in names if is_gone(run, metric, name)]
    if gone:
        words.append(f"{len(gone)} of {len(names)} undefined now, not before: {listed(gone)}.")
    if shown < len(names):
        words.append(f"The {shown} that stand out most are shown.")
    return " ".join(filter(None, words))


def _legend(scale: Scale) -> Markup:
    signs = ((el("i", class_=f"swatch c-{k}", aria_hidden="true"), w) for k, w in scale.legend())
    return el("ul", (el("li", sign, f" {words}") for sign, words in signs), class_="legend")
