"""The picture: how much rank each layer has left, and how badly conditioned it is."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from stableopt.commands.style import INK, STYLE
from stableopt.health.spectra.tiers import TIERS
from stableopt.runtime.words import printable
from stableopt.types import Standing

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from stableopt.commands.audit.findings import Audit
    from stableopt.commands.audit.measure import WeightReport

# From the palette of Okabe & Ito, and a shape for each: no meaning is in the colour alone.
_MARKS: dict[Standing, dict[str, Any]] = {
    Standing.HEALTHY: {"color": "#0072b2", "marker": "o", "markersize": 6},
    Standing.WARNING: {"color": "#e69f00", "marker": "D", "markersize": 7},
    Standing.DANGER: {"color": "#d55e00", "marker": "X", "markersize": 10},
    Standing.UNJUDGED: {"color": "#8a8f98", "marker": "o", "markersize": 5, "mfc": "white"},
    Standing.UNDEFINED: {"color": "#8a8f98", "marker": "s", "markersize": 5, "mfc": "white"},
}
_WARNING_SHADE = "#fbe9c6"
_DANGER_SHADE = "#f6cdb8"
_NAMED = 60
"""Layers of which each has its name at the axis; of more, only the worst."""
_LABELLED = 5
_LONGEST = 32
_STYLE: dict[Any, Any] = {**STYLE, "text.parse_math": False}


def draw_audit(audit: Audit, path: Path) -> None:
    """Draw relative rank, and the condition number over its reference, by depth.

    Args:
        audit: What was measured; without the exact tier there is no second panel.
        path: The PNG, overwritten.
    """
    reports = [report for report in audit.reports if len(report.shape) > 1]
    names = len(reports) <= _NAMED
    with matplotlib.rc_context(_STYLE):
        width = min(16.0, max(8.0, 3.0 + 0.3 * len(reports)))
        height = (6.2 if audit.exact else 3.6) + 1.8 * names
        figure = Figure(figsize=(width, height), layout="constrained")
        panels = figure.subplots(1 + audit.exact, 1, sharex=True, squeeze=False)[:, 0]
        _draw_rank(panels[0], reports)
        if audit.exact:
            _draw_condition(panels[1], reports)
        _name_layers(panels[-1], reports, names)
        figure.suptitle(
            printable(audit.path.name), x=0.01, ha="left", fontsize=12, fontweight="bold"
        )
        _explain(figure, reports)
        figure.align_ylabels(panels)
        with warnings.catch_warnings():
            # A name in a script that the font lacks has boxes in it; the table has it whole.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(path, dpi=150)


def _draw_rank(axes: Axes, reports: list[WeightReport]) -> None:
    tier = TIERS["relative_rank"]
    danger = tier.warning if tier.danger is None else tier.danger
    ranks = [report.relative_rank for report in reports]
    top = max([1.1, *(1.08 * rank for rank in ranks if math.isfinite(rank))])
    axes.axhspan(danger, tier.warning, color=_WARNING_SHADE, linewidth=0, zorder=0)
    axes.axhspan(0, danger, color=_DANGER_SHADE, linewidth=0, zorder=0)
    for middle, word in ((0.5 * (danger + tier.warning), "warning"), (0.5 * danger, "danger")):
        axes.text(1.01, middle, word, transform=axes.get_yaxis_transform(), fontsize=9, va="center")
    axes.set_yticks([0.0, danger, tier.warning, 1.0])
    axes.axhline(1.0, color=INK, linewidth=0.8, linestyle=":", zorder=1)
    _draw_points(axes, reports, ranks, missing=0.0)
    axes.set_ylim(0, top)
    axes.set(
        title="Relative rank: 1 is a random matrix of that shape, 0 a collapsed one",
        ylabel="relative rank",
    )
    if len(reports) > _NAMED:
        _label_worst(axes, reports, ranks)


def _draw_condition(axes: Axes, reports: list[WeightReport]) -> None:
    ratios = [report.relative_condition for report in reports]
    finite = [ratio for ratio in ratios if math.isfinite(ratio) and ratio > 0]
    low, high = min([*finite, 0.3]), max([*finite, 10.0])
    axes.set_yscale("log")
    # An infinite one is at the upper edge, above all others.
    top = high * (high / low) ** 0.15
    axes.axhline(1.0, color=INK, linewidth=0.8, linestyle=":", zorder=1)
    _draw_points(axes, reports, [min(ratio, top) for ratio in ratios], missing=None)
    for x, ratio in enumerate(ratios, 1):
        if math.isinf(ratio):
            axes.text(x, top, "\n∞", ha="center", va="top", linespacing=0.6)
    axes.set_ylim(low / (high / low) ** 0.06, top)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set(
        title="Condition number over that of a random matrix of that shape: 1 is usual",
        ylabel="κ / κ of a Gaussian",
    )


def _draw_points(
    axes: Axes, reports: list[WeightReport], values: list[float], missing: float | None
) -> None:
    """Draw every value; ``missing`` in place of what a bad weight lacks."""
    for standing, style in _MARKS.items():
        danger = standing is Standing.DANGER
        instead = missing if danger or standing is Standing.UNDEFINED else None
        points = dict[int, float]()
        for x, (report, value) in enumerate(zip(reports, values, strict=True), 1):
            shown = value if math.isfinite(value) else instead
            if report.standing is standing and shown is not None:
                points[x] = shown
        if not points:
            continue
        axes.plot(
            list(points),
            list(points.values()),
            linestyle="none",
            markeredgecolor="white" if danger else style["color"],
            clip_on=False,
            zorder=4 if danger else 3,
            **style,
        )


def _name_layers(axes: Axes, reports: list[WeightReport], names: bool) -> None:
    axes.set_xlim(0.4, max(1, len(reports)) + 0.6)
    if not reports:
        axes.set_xticks([])
        axes.set_xlabel("there is no matrix in this checkpoint")
    elif names:
        names_of = [_short(report.name) for report in reports]
        axes.set_xticks(range(1, len(reports) + 1), names_of, rotation=90, fontsize=8)
        for label, report in zip(axes.get_xticklabels(), reports, strict=True):
            if report.standing in (Standing.DANGER, Standing.WARNING):
                label.set_fontweight("bold")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("weight, in the order of the checkpoint")


def _label_worst(axes: Axes, reports: list[WeightReport], ranks: list[float]) -> None:
    bad = [
        (rank if math.isfinite(rank) else 0.0, x, report)
        for x, (report, rank) in enumerate(zip(reports, ranks, strict=True), 1)
        if report.standing in (Standing.DANGER, Standing.WARNING)
    ]
    for rank, x, report in sorted(bad, key=lambda entry: entry[:2])[:_LABELLED]:
        right = x > len(reports) / 2
        axes.annotate(
            _short(report.name),
            (x, rank),
            xytext=(-8 if right else 8, 6),
            textcoords="offset points",
            ha="right" if right else "left",
            fontsize=8,
            zorder=5,
        )


def _explain(figure: Figure, reports: list[WeightReport]) -> None:
    words = {Standing.UNJUDGED: "no limit applies", Standing.DANGER: "danger (at 0 if not finite)"}
    handles = [
        Line2D([], [], linestyle="none", label=words.get(standing, standing.value), **style)
        for standing, style in _MARKS.items()
        if standing in {report.standing for report in reports}
    ]
    if handles:
        figure.legend(handles=handles, loc="outside lower left", ncols=len(handles), frameon=False)


def _power(value: float) -> str:
    return f"{value:g}" if value < 1e5 else f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


def _short(name: str) -> str:
    """Return a name short enough for an axis: its end matters more than its beginning."""
    text = printable(name)
    return text if len(text) <= _LONGEST else f"…{text[1 - _LONGEST :]}"
