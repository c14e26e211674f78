"""The readings and signals of one parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from stableopt.health.spectra.risk import WeightHealth
from stableopt.types import Drift


class Known(NamedTuple):
    """Evidence about one parameter.

    Attributes:
        name: Of the parameter.
        health: What the sensors know; ``None`` if they have not visited it.
        signals: What was given to ``observe()`` for this step.
    """

    name: str
    health: WeightHealth | None
    signals: Mapping[str, Any]

    def value(self, metric: str, *, largest: bool) -> float | None:
        """Return the newest value of a metric or a signal; ``None`` if nothing is known.

        Args:
            metric: Its name.
            largest: Whether it is the largest of many values that is asked for, or the smallest.
        """
        reading = None if self.health is None else self.health.readings.get(metric)
        if reading is not None:
            return reading.value if reading.defined else None
        return signal_about(self.signals.get(metric), self.name, largest=largest)

    def drift(self, metric: str) -> Drift | None:
        """Return the confirmed drift of a metric, if there is one."""
        drifts = () if self.health is None else self.health.drifts
        return next((drift for drift in drifts if drift.metric == metric), None)


def signal_about(signal: Any, name: str, *, largest: bool) -> float | None:
    """Return the value of a signal for one parameter.

    Args:
        signal: A number, a tensor, or a dict of these by the name of a parameter or of a module
            that it belongs to.
        name: Of the parameter.
        largest: Whether the largest value of a tensor is asked for, or the smallest.

    Returns:
        The number; ``None`` if there is none, or it is NaN.
    """
    signal = part_about(signal, name)
    if isinstance(signal, Tensor):
        if signal.numel() == 0:
            return None
        values = signal.detach().abs() if signal.is_complex() else signal.detach()
        signal = float(values.amax() if largest else values.amin())
    return None if signal is None or math.isnan(signal) else float(signal)


def part_about(signal: Any, name: str) -> Any:
    """Return the part of a signal that is about one parameter; ``None`` if none is.

    Args:
        signal: As for :func:`signal_about`; of several keys the most specific one counts.
        name: Of the parameter.
    """
    while isinstance(signal, Mapping):
        keys = [key for key in signal if is_about(str(key), name)]
        signal = signal[max(keys, key=lambda key: len(str(key)))] if keys else None
    return signal


def is_about(key: str, name: str) -> bool:
    """Return whether ``key`` is the parameter ``name``, or a module it belongs to."""
    return name == key or name.startswith(f"{key}.")
