"""Numbers that rules are about, from what ``observe()`` was told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

OF_VALUES = ("mean", "max", "min", "variance", "magnitude")
"""Statistics of the values of one observation."""

OF_COURSE = ("drop", "rise")
"""Statistics of one observation against those before it."""

DECAY = 0.9
"""Of the moving average that ``drop`` and ``rise`` are about."""


def split_metric(metric: str) -> tuple[str, str | None]:
    """Return the signal that a metric is about, and the statistic; ``None`` for its value.

    Example:
        >>> split_metric("accuracy.drop"), split_metric("loss.aux")
        (('accuracy', 'drop'), ('loss.aux', None))
    """
    signal, dot, last = metric.rpartition(".")
    return (signal, last) if dot and last in (*OF_VALUES, *OF_COURSE) else (metric, None)


def statistic_of(value: Any, statistic: str) -> float:
    """Return a statistic of all values of a signal; NaN if one of them is.

    Args:
        value: A number, a tensor, or a dict of these.
        statistic: One of ``OF_VALUES``. The variance is that of the population, and the
            magnitude the largest absolute value.
    """
    parts = [part for part in _parts(value) if part.numel()]
    if not parts:
        return math.nan
    values = torch.cat([part.flatten() for part in parts])
    if statistic == "variance":
        return float(values.var(correction=0))
    if statistic == "mean":
        return float(values.mean())
    if statistic == "magnitude":
        return float(values.abs().amax())
    return float(values.amax() if statistic == "max" else values.amin())


def _parts(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Mapping):
        for part in value.values():
            yield from _parts(part)
        return
    tensor = torch.as_tensor(value).detach()
    real = tensor.abs() if tensor.is_complex() else tensor
    yield real.to("cpu", torch.float64)


class Course:
    """The moving average of a signal, and the best and the worst that it has been.

    The average is corrected for its start, ``Σ dᵏ xₖ / Σ dᵏ``: the first value is an average.
    """

    def __init__(self) -> None:
        self._sum = self._weight = 0.0
        self._largest, self._smallest = -math.inf, math.inf

    def statistic(self, value: float, statistic: str) -> float:
        """Return how far the average, ``value`` included, is off its best: at least 0."""
        if not math.isfinite(value):
            return math.nan
        average = self._after(value)
        if statistic == "drop":
            return max(self._largest, average) - average
        return average - min(self._smallest, average)

    def add(self, value: float) -> None:
        """Learn a value; one that is not finite is not learned."""
        if not math.isfinite(value):
            return
        average = self._after(value)
        self._sum = DECAY * self._sum + value
        self._weight = DECAY * self._weight + 1.0
        self._largest = max(self._largest, average)
        self._smallest = min(self._smallest, average)

    def _after(self, value: float) -> float:
        return (DECAY * self._sum + value) / (DECAY * self._weight + 1.0)

    def state_dict(self) -> list[float]:
        """Return four plain numbers."""
        return [self._sum, self._weight, self._largest, self._smallest]

    @classmethod
    def from_state(cls, state: Any) -> Course:
        """Return what :meth:`state_dict` was made from."""
        course = cls()
        course._sum, course._weight, course._largest, course._smallest = map(float, state)
        return course
