"""From events to the flat, named numbers that trackers keep."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from statistics import median
from typing import TYPE_CHECKING, Any

from stableopt.types import Action

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stableopt.types import Event, Reading

PREFIX = "stable/"
"""What the names of metrics begin with, so that they differ from those of a trainer."""

COUNTERS = (
    "interventions",
    "skips",
    "rollbacks",
    "steps_lost",
    "tamed",
    "baseline_resets",
    "back_offs",
    "stops",
)
"""What is counted over a run; all but the first as in ``opt.summary()``."""

_COUNTED = {Action.SKIP: "skips", Action.ROLL_BACK: "rollbacks", Action.STOP: "stops"}


def metrics_of(event: Event) -> dict[str, float]:
    """Return everything in an event as flat metrics.

    ``step``, ``loss``, ``grad_norm``, ``lr`` (``lr/0``, ``lr/1``, … of several groups),
    ``lr_scale``, ``risk`` (its rank, 0 to 4), ``signals/<name>``, ``acts/<transform>`` (how many
    parameters it changed) and ``layers/<parameter>/<metric>``. What is unknown is left out;
    numbers that are not finite are kept.

    Args:
        event: Of any call.

    Example:
        >>> from stableopt.types import Action, Event
        >>> event = Event(call=7, step=6, action=Action.SKIP, loss=float("nan"), lr=(0.1,))
        >>> metrics_of(event)
        {'step': 6.0, 'loss': nan, 'lr': 0.1, 'lr_scale': 1.0}
    """
    metrics = {"step": float(event.step)}
    known = {"loss": event.loss, "grad_norm": event.grad_norm}
    metrics.update((name, float(value)) for name, value in known.items() if value is not None)
    if len(event.lr) == 1:
        metrics["lr"] = float(event.lr[0])
    else:
        metrics.update((f"lr/{group}", float(lr)) for group, lr in enumerate(event.lr))
    metrics["lr_scale"] = float(event.lr_scale)
    if event.risk is not None:
        metrics["risk"] = float(event.risk.rank)
    metrics.update(flat_numbers(event.signals, "signals/"))
    for act in event.acts:
        name = f"acts/{act.transform}"
        metrics[name] = metrics.get(name, 0.0) + len(act.before)
    metrics.update((f"layers/{r.name}/{r.metric}", r.value) for r in event.readings)
    return metrics


def flat_numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return nested numbers, names joined by ``/``; values that are not numbers are left out.

    Example:
        >>> flat_numbers({"accuracy": 0.5, "heads": {"a": 1, "b": None}})
        {'accuracy': 0.5, 'heads/a': 1.0}
    """
    found = flat(values, prefix)
    return {n: float(v) for n, v in found.items() if isinstance(v, (bool, int, float))}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values, names joined by ``/``; an empty mapping is a value."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found.update(flat(value, f"{prefix}{name}/"))
        else:
            found[f"{prefix}{name}"] = value
    return found


def interventions_of(event: Event) -> dict[str, int]:
    """Return by how much an event raises each of :data:`COUNTERS`; empty if by nothing."""
    if not event.intervened:
        return {}
    kinds = {
        "interventions": True,
        "back_offs": event.backs_off,
        "tamed": event.tames,
        "baseline_resets": event.baseline_reset,
        _COUNTED.get(event.action, ""): event.action in _COUNTED,
    }
    counts = {kind: 1 for kind, counted in kinds.items() if counted}
    if event.action is Action.ROLL_BACK and event.rollback is not None:
        counts["steps_lost"] = event.rollback.from_step - event.rollback.to_step
    return counts


class RunMetrics:
    """The metrics of a run, event by event: those of the event, and totals over events.

    The totals are those of :data:`COUNTERS` (with the first event, and when one has changed) and,
    with readings, ``readings/<metric>/min``, ``median`` and ``max`` over the newest reading of
    every weight: each event has readings of some weights only.

    Args:
        prefix: What every name begins with.
        layers: Whether the readings of each weight are metrics of their own.
    """

    def __init__(self, prefix: str = PREFIX, *, layers: bool = True) -> None:
        self._prefix = prefix
        self._layers = layers
        self._counts: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
        self._sent: dict[str, int] = {}
        self._newest: dict[str, dict[str, float]] = {}

    def of(self, event: Event) -> dict[str, float]:
        """Return the metrics of the next event, by their full names."""
        metrics = {**metrics_of(event), **self._count(event), **self._spread(event.readings)}
        shown = {n: v for n, v in metrics.items() if self._layers or not n.startswith("layers/")}
        return {self._prefix + name: value for name, value in shown.items()}

    def _count(self, event: Event) -> dict[str, float]:
        self._counts.update(interventions_of(event))
        changed = {n: float(c) for n, c in self._counts.items() if self._sent.get(n) != c}
        self._sent = dict(self._counts)
        return changed

    def _spread(self, readings: Sequence[Reading]) -> dict[str, float]:
        spread: dict[str, float] = {}
        for reading in readings:
            self._newest.setdefault(reading.metric, {})[reading.name] = reading.value
        for metric in sorted({reading.metric for reading in readings}):
            values = [v for v in self._newest[metric].values() if not math.isnan(v)]
            if values:
                spread[f"readings/{metric}/min"] = min(values)
                spread[f"readings/{metric}/median"] = float(median(values))
                spread[f"readings/{metric}/max"] = max(values)
        return spread
