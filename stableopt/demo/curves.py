"""The picture: what each run lost, and where the fault struck."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stableopt.demo.options import spell

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.axes import Axes

    from stableopt.demo.options import Fault
    from stableopt.demo.train import Run

_INK = "#3c4048"
_FAULT = "#8a8f98"
_DEAD = "#d1495b"
_GUARDED = "#1d4e89"
_REFERENCE = "#a9c9e8"
# Runs coincide until the fault, so that the wider line lies below.
_LINES: dict[str, dict[str, Any]] = {
    "guarded": {"color": _GUARDED, "linewidth": 1.1, "zorder": 3},
    "no fault": {"color": _REFERENCE, "linewidth": 4.5, "zorder": 1},
    "bare AdamW": {"color": _REFERENCE, "linewidth": 4.5, "zorder": 1},
    "no guard": {"color": _DEAD, "linewidth": 2.6, "zorder": 2},
}
_AROUND = 12
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": _INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "font.size": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "stableopt",
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def draw_curves(runs: Mapping[str, Run], fault: Fault | None, out: Path) -> tuple[Path, ...]:
    """Draw the losses of ``runs`` into ``out/curves.svg`` and ``out/curves.png``.

    Args:
        runs: By title: ``"guarded"``, ``"no fault"``, ``"no guard"`` or ``"bare AdamW"``.
        fault: What was injected; a second panel shows the steps around it.
        out: An existing directory.

    Returns:
        The files.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        if fault is None:
            whole = figure.subplots()
        else:
            whole, near = figure.subplots(1, 2, width_ratios=[1.6, 1])
            _draw_near(near, runs, fault)
        _draw_whole(whole, runs, fault)
        paths = (out / "curves.svg", out / "curves.png")
        figure.savefig(paths[0], metadata={"Date": None})
        figure.savefig(paths[1], dpi=150)
    return paths


def _draw_whole(axes: Axes, runs: Mapping[str, Run], fault: Fault | None) -> None:
    for title in _LINES:
        if title in runs:
            losses = runs[title].losses
            axes.plot(range(1, len(losses) + 1), losses, label=title, **_LINES[title])
    _mark_events(axes, runs, fault)
    axes.set(title="Loss of the whole run", xlabel="step", ylabel="loss (nats per byte)")
    axes.margins(x=0.01)
    axes.legend(frameon=False, loc="upper right")


def _draw_near(axes: Axes, runs: Mapping[str, Run], fault: Fault) -> None:
    first, last = max(1, fault.at - _AROUND), fault.at + _AROUND
    for title in _LINES:
        if title in runs:
            losses = runs[title].losses[first - 1 : last]
            steps = range(first, first + len(losses))
            axes.plot(steps, losses, marker="o", markersize=3, **_LINES[title])
    _mark_events(axes, runs, fault)
    axes.set(title=f"Around step {fault.at}", xlabel="step")
    axes.set_xlim(first - 0.5, last + 0.5)


def _mark_events(axes: Axes, runs: Mapping[str, Run], fault: Fault | None) -> None:
    if fault is not None:
        axes.axvline(
            fault.at,
            color=_FAULT,
            linestyle=":",
            zorder=0,
            label=f"{spell(fault.value)} in one gradient",
        )
    for run in runs.values():
        _mark_skips(axes, run)
        _mark_death(axes, run)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _mark_skips(axes: Axes, run: Run) -> None:
    if run.skipped:
        axes.plot(
            run.skipped,
            [0.0] * len(run.skipped),
            transform=axes.get_xaxis_transform(),
            clip_on=False,
            color=_GUARDED,
            linestyle="none",
            marker="^",
            markersize=10,
            zorder=4,
            label="skipped",
        )


def _mark_death(axes: Axes, run: Run) -> None:
    if run.died_at is not None:
        last = _last_finite(run)
        axes.plot(
            last,
            run.losses[last - 1],
            color=_DEAD,
            linestyle="none",
            marker="X",
            markeredgecolor="white",
            markersize=11,
            zorder=5,
            label=f"dead from step {run.died_at}",
        )


def _last_finite(run: Run) -> int:
    return max((i for i, loss in enumerate(run.losses, 1) if math.isfinite(loss)), default=1)
