"""The picture: the loss of each run, where the fault struck, and what the guard did then."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stableopt.commands.demo.outcome import SCARRED, fate_of
from stableopt.commands.style import STYLE
from stableopt.types import Action

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from stableopt.commands.demo.faults import Fault
    from stableopt.commands.demo.train import Run

_FAULT = "#8a8f98"
_DEAD = "#d1495b"
_GUARDED = "#1d4e89"
_BACK = "#e07a1f"
_REFERENCE = "#a9c9e8"
# Runs coincide until the fault, so that the wider line lies below.
_LINES: dict[str, dict[str, Any]] = {
    "guarded": {"color": _GUARDED, "linewidth": 1.1, "zorder": 3},
    "no fault": {"color": _REFERENCE, "linewidth": 4.5, "zorder": 1},
    "bare AdamW": {"color": _REFERENCE, "linewidth": 4.5, "zorder": 1},
    "no guard": {"color": _DEAD, "linewidth": 2.6, "zorder": 2},
}
_AROUND = 12
_FURTHEST = 40
"""Steps before the fault up to which the second panel shows where a rollback led to."""
_SANE = 2.0
"""Losses above so many times the first one are left out."""
_LANE = 0.04
"""Height above the axis, as a share of it, of what the guard did."""
_ROOM = 0.1
_COLUMNS = 3
_STYLE: dict[Any, Any] = {**STYLE, "svg.fonttype": "none", "svg.hashsalt": "stableopt"}


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
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        if fault is None:
            whole = figure.subplots()
        else:
            whole, near = figure.subplots(1, 2, width_ratios=[1.6, 1])
            _draw_near(near, runs, fault)
        _draw_whole(whole, runs, fault)
        handles, labels = whole.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=_COLUMNS, frameon=False)
        paths = (out / "curves.svg", out / "curves.png")
        figure.savefig(paths[0], metadata={"Date": None})
        figure.savefig(paths[1], dpi=150)
    return paths


def _draw_whole(axes: Axes, runs: Mapping[str, Run], fault: Fault | None) -> None:
    for title, losses, style in _lines(runs):
        scarred = fate_of(runs[title]) == SCARRED
        label = f"{title}: the fault stays in it" if scarred else title
        axes.plot(range(1, len(losses) + 1), losses, label=label, **style)
    _mark_events(axes, runs, fault)
    axes.set(title="Loss of every batch", xlabel="call of step()", ylabel="loss (nats per byte)")
    axes.margins(x=0.01)
    _limit(axes, runs)


def _draw_near(axes: Axes, runs: Mapping[str, Run], fault: Fault) -> None:
    first, last = _window(runs, fault)
    for _, losses, style in _lines(runs):
        shown = losses[first - 1 : last]
        axes.plot(range(first, first + len(shown)), shown, marker="o", markersize=3, **style)
    _mark_events(axes, runs, fault)
    axes.set(title=f"Around step {fault.at}", xlabel="call of step()")
    axes.set_xlim(first - 0.5, last + 0.5)
    _limit(axes, runs, first, last)


def _lines(runs: Mapping[str, Run]) -> list[tuple[str, list[float], dict[str, Any]]]:
    return [(title, runs[title].losses, style) for title, style in _LINES.items() if title in runs]


def _window(runs: Mapping[str, Run], fault: Fault) -> tuple[int, int]:
    """Return the first and the last step of the second panel."""
    steps = max(len(run.losses) for run in runs.values())
    first, last = fault.at - _AROUND, fault.at + _AROUND
    for run in runs.values():
        for call, back in run.rollbacks:
            last = max(last, call + _AROUND // 2)
            if back.to_step >= fault.at - _FURTHEST:
                first = min(first, back.to_step - 2)
    # As many steps as there would be around a fault in the middle.
    first -= max(0, last - steps)
    last += max(0, 1 - first)
    return max(1, first), min(last, steps)


def _limit(axes: Axes, runs: Mapping[str, Run], first: int = 1, last: int | None = None) -> None:
    """Limit the axis to sane losses: that of a broken weight would hide the others."""
    most = _SANE * max(run.losses[0] for run in runs.values())
    shown = [loss for run in runs.values() for loss in run.losses[first - 1 : last]]
    sane = [loss for loss in shown if loss <= most]
    room = _ROOM * (max(sane) - min(sane)) if sane else 0.0
    if room:
        axes.set_ylim(min(sane) - room, max(sane) + room)


def _mark_events(axes: Axes, runs: Mapping[str, Run], fault: Fault | None) -> None:
    if fault is not None:
        axes.axvline(fault.at, color=_FAULT, linestyle=":", zorder=0, label=fault.does.label)
    for run in runs.values():
        _mark(axes, run.skipped, "skipped", color=_GUARDED, marker="^", markersize=9)
        _mark(axes, run.tamed, "tamed", color=_GUARDED, marker="v", markersize=9)
        for call, back in run.rollbacks:
            label = f"rolled back to step {back.to_step}"
            _mark(axes, [call], label, color=_BACK, marker="D", markersize=7)
            _draw_arrow(axes, call, _call_of(run, call, back.to_step))
        _mark_death(axes, run)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _mark(axes: Axes, steps: Sequence[int], label: str, **style: Any) -> None:
    """Mark what the guard did, just above the axis."""
    if steps:
        lane = [_LANE] * len(steps)
        across = axes.get_xaxis_transform()
        axes.plot(steps, lane, transform=across, linestyle="none", zorder=4, label=label, **style)


def _draw_arrow(axes: Axes, call: int, to: int) -> None:
    """Draw an arrow along the axis from a rollback to where it led."""
    axes.annotate(
        "",
        xy=(to, _LANE),
        xytext=(call, _LANE),
        xycoords=axes.get_xaxis_transform(),
        annotation_clip=False,
        clip_on=True,
        arrowprops={"arrowstyle": "-|>", "color": _BACK, "lw": 1.8, "shrinkA": 0, "shrinkB": 0},
    )


def _call_of(run: Run, before: int, to_step: int) -> int:
    """Return the call of ``step()`` whose update a rollback restored."""
    restored = {call: back.to_step for call, back in run.rollbacks}
    steps, found = 0, 0
    for call, action in enumerate(run.actions[: before - 1], 1):
        steps = restored.get(call, steps + (action is Action.TAKE))
        if action is Action.TAKE and steps == to_step:
            found = call
    return found


def _mark_death(axes: Axes, run: Run) -> None:
    if run.died_at is None:
        return
    finite = (i for i, loss in enumerate(run.losses, 1) if math.isfinite(loss))
    last = max(finite, default=1)
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
