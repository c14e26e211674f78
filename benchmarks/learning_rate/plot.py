"""The picture of the learning-rate benchmark: what is lost beyond the best learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.learning_rate.methods import BASELINE, COMPARED, ROBUST
from benchmarks.learning_rate.scores import curve
from benchmarks.learning_rate.tasks import MAIN
from stableopt.commands.style import STYLE

_COLORS = {
    ROBUST: "#1d4e89",
    BASELINE: "#d1495b",
    "√-cosine": "#e07a1f",
    "z-loss": "#8a8f98",
    "qk-norm": "#4c956c",
    "StableAdamW": "#b08bbb",
    "6σ skip": "#c9ada7",
    "ZClip": "#d4a017",
    "AdaGC": "#7a5c3e",
    "StableSPAM": "#5fa8a3",
}
_FIRST = 3.0
"""Width of the line of ours."""

_STYLE: dict[Any, Any] = {**STYLE, "svg.fonttype": "none", "svg.hashsalt": "stableopt"}


def draw(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw validation loss over learning rate, one panel for each of the main tasks.

    Args:
        records: All runs.
        path: The SVG file.
    """
    tasks = [task for task in MAIN if any(record["task"] == task for record in records)]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        panels = figure.subplots(1, max(1, len(tasks)), squeeze=False)[0]
        for axes, task in zip(panels, tasks, strict=False):
            _draw_task(axes, [record for record in records if record["task"] == task])
            axes.set_title(task)
        panels[0].set_ylabel("validation loss (nats per byte)")
        handles, labels = panels[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside right center", frameon=False)
        figure.savefig(path, metadata={"Date": None})


def _draw_task(axes: Axes, records: Sequence[Mapping[str, Any]]) -> None:
    for method in (ROBUST, *(name for name in COMPARED if name != ROBUST)):
        losses = curve(record for record in records if record["method"] == method)
        if losses:
            _draw_method(axes, method, losses)
    initial = fmean(float(record["initial"]) for record in records)
    axes.axhline(initial, color=STYLE["text.color"], linestyle=":", linewidth=1, zorder=0)
    axes.annotate(
        "before training", (0.01, initial), xycoords=("axes fraction", "data"), va="bottom", size=8
    )
    axes.set(xscale="log", xlabel="peak learning rate")


def _draw_method(axes: Axes, method: str, losses: Mapping[float, Sequence[float]]) -> None:
    ours = method == ROBUST
    color, lrs = _COLORS[method], list(losses)
    axes.plot(
        lrs,
        [fmean(values) for values in losses.values()],
        color=color,
        label=method,
        linewidth=_FIRST if ours else 1.2,
        marker="o",
        markersize=5 if ours else 2.5,
        zorder=3 if ours else 2,
    )
    low, high = [min(v) for v in losses.values()], [max(v) for v in losses.values()]
    axes.fill_between(lrs, low, high, color=color, alpha=0.25 if ours else 0.1, linewidth=0)
