"""The picture of the closed-loop benchmark: a metric over steps for every failure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.closed_loop.scenarios import SCENARIOS, Scenario
from stableopt.commands.style import INK, STYLE

_LINES: dict[str, dict[str, Any]] = {
    "none": {"color": "#d1495b", "linewidth": 1.6, "label": "nothing in the loop"},
    "l2": {
        "color": "#e07a1f",
        "linewidth": 1.4,
        "linestyle": (0, (4, 2)),
        "label": "uniform L2, as published",
    },
    "strong": {"color": "#d4a017", "linewidth": 1.2, "label": "uniform L2, strong"},
    "ours": {"color": "#8fb3d9", "linewidth": 1.6, "label": "ours, rarely or from weights"},
    "dense": {"color": "#1d4e89", "linewidth": 2.0, "label": "ours, dense or measured"},
}
_DRIVEN = "#8a8f98"
_COLUMNS = 3
_STYLE: dict[Any, Any] = {
    **STYLE,
    "font.size": 9,
    "axes.titlesize": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "stableopt",
}


def draw(records: Sequence[Mapping[str, Any]], course: Mapping[str, Any], path: Path) -> None:
    """Draw the metric of the worst unit over steps, the median of the seeds.

    Args:
        records: Of all runs.
        course: When they were driven.
        path: The SVG file.
    """
    names = [name for name in SCENARIOS if any(r["scenario"] == name for r in records)]
    rows = -(-len(names) // _COLUMNS)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10, 0.6 + 2.6 * rows), layout="constrained")
        panels = figure.subplots(rows, _COLUMNS, squeeze=False).flat
        for axes, name in zip(panels, names, strict=False):
            mine = [record for record in records if record["scenario"] == name]
            _draw_one(axes, SCENARIOS[name], mine, course)
        for axes in list(panels)[len(names) :]:
            axes.set_visible(False)
        _add_legend(figure)
        figure.savefig(path, metadata={"Date": None})


def _draw_one(
    axes: Axes, scenario: Scenario, records: Sequence[Mapping[str, Any]], course: Mapping[str, Any]
) -> None:
    for arm, look in _LINES.items():
        if arm == "ours" and "dense" not in scenario.arms:
            look = _LINES["dense"]  # it reads everything in every step
        runs = [record["worst"] for record in records if record["arm"] == arm]
        if runs:
            axes.plot([median(float(v) for v in at) for at in zip(*runs, strict=True)], **look)
    axes.axhline(scenario.bound, color=INK, linestyle=":", linewidth=1.2, label="bound")
    axes.axvspan(
        course["begin"], course["end"], color=_DRIVEN, alpha=0.12, linewidth=0, label="driven"
    )
    if scenario.is_upper:
        axes.set_yscale("log")
        axes.set_ylim(bottom=scenario.bound / 12)
    else:
        axes.set_ylim(0, 1.1)
    axes.set(title=scenario.title, xlabel="updates", ylabel=scenario.metric)
    axes.margins(x=0.01)


def _add_legend(figure: Figure) -> None:
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(
        entries.values(), entries, loc="outside lower center", ncols=_COLUMNS + 1, frameon=False
    )
