"""Statistics of signals, on which rules are evaluated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stableopt.functional import widest_real

if TYPE_CHECKING:
    from collections.abc import Iterator

OF_VALUES = ("mean", "max", "min", "variance", "magnitude")
"""Statistics of the values of one observation."""

OF_COURSE = ("drop", "rise")
"""Statistics of one observation against those before it."""

DECAY = 0.9
"""Of the moving average that ``drop`` and ``rise`` are about."""

FIRST = 7
"""Values before the average is compared: it has half of its final weight then."""


def split_metric(metric: str) -> tuple[str, str | None]:
    """Return the signal and the statistic of a metric; ``None`` for the value itself.

    Example:
        >>> split_metric("accuracy.drop"), split_metric("loss.aux")
        (('accuracy', 'drop'), ('loss.aux', None))
    """
    signal, dot, last = metric.rpartition(".")
    return (signal, last) if dot and last in (*OF_VALUES, *OF_COURSE) else (metric, None)


def statistics_of(value: Any) -> dict[str, float]:
    """Return the statistics of all values of a signal; NaN if one of them is.

    Args:
        value: A number, a tensor, or a dict of these.

    Returns:
        Those of ``OF_VALUES``. The variance is that of the population, and the magnitude the
        largest absolute value.

    Cost:
        One read of every value, and a host synchronisation per accelerator.
    """
    if isinstance(value, (int, float)):
        number = float(value)
        spread = 0.0 if math.isfinite(number) else math.nan
        return dict(zip(OF_VALUES, (number, number, number, spread, abs(number)), strict=True))
    by_device: dict[torch.device, list[Tensor]] = {}
    for part in _parts(value):
        by_device.setdefault(part.device, []).append(part)
    if not by_device:
        return dict.fromkeys(OF_VALUES, math.nan)
    return _together([_of_parts(parts) for parts in by_device.values()])


def _of_parts(parts: list[Tensor]) -> tuple[int, list[float]]:
    """Return the count of the values, and mean, largest, smallest and variance."""
    values = torch.cat([part.flatten() for part in parts]) if len(parts) > 1 else parts[0].flatten()
    variance, mean = torch.var_mean(values, correction=0)
    smallest, largest = torch.aminmax(values)
    return len(values), torch.stack([mean, largest, smallest, variance]).tolist()


def _together(found: list[tuple[int, list[float]]]) -> dict[str, float]:
    count = sum(size for size, _ in found)
    mean = sum(size * numbers[0] for size, numbers in found) / count
    largest = max((numbers[1] for _, numbers in found), key=_nan_first)
    smallest = -max((-numbers[2] for _, numbers in found), key=_nan_first)
    spread = sum(size * (n[3] + (n[0] - mean) ** 2) for size, n in found) / count
    magnitude = max(abs(largest), abs(smallest)) if largest == largest else math.nan
    return dict(zip(OF_VALUES, (mean, largest, smallest, spread, magnitude), strict=True))


def _nan_first(number: float) -> tuple[bool, float]:
    return math.isnan(number), number


def _parts(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Mapping):
        for part in value.values():
            yield from _parts(part)
        return
    tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    tensor = tensor.detach()
    real = tensor.abs() if tensor.is_complex() else tensor
    if real.numel():
        yield real.to(widest_real(real.device))


class Course:
    """The moving average of a signal, and its highest and lowest value so far.

    The average is corrected for its start, ``Σ dᵏ xₖ / Σ dᵏ``, and is compared from the seventh
    value on: otherwise one good first value would remain the best.
    """

    def __init__(self) -> None:
        self._sum, self._weight, self._count = 0.0, 0.0, 0
        self._largest, self._smallest = -math.inf, math.inf

    def statistic(self, value: float, statistic: str) -> float:
        """Return how far the average, ``value`` included, is from its best: at least 0."""
        if not math.isfinite(value):
            return math.nan
        if self._count + 1 < FIRST:
            return 0.0
        average = self._after(value)
        if statistic == "drop":
            return max(self._largest, average) - average
        return average - min(self._smallest, average)

    def add(self, value: float) -> None:
        """Add a value to the average; one that is not finite is left out."""
        if not math.isfinite(value):
            return
        average = self._after(value)
        self._sum = DECAY * self._sum + value
        self._weight = DECAY * self._weight + 1.0
        self._count += 1
        if self._count >= FIRST:
            self._largest = max(self._largest, average)
            self._smallest = min(self._smallest, average)

    def _after(self, value: float) -> float:
        return (DECAY * self._sum + value) / (DECAY * self._weight + 1.0)

    def state_dict(self) -> list[float]:
        """Return five plain numbers."""
        return [self._sum, self._weight, self._largest, self._smallest, self._count]

    @classmethod
    def from_state(cls, state: Any) -> Course:
        """Return the average with a state of :meth:`state_dict`."""
        course = cls()
        *numbers, count = state
        course._sum, course._weight, course._largest, course._smallest = map(float, numbers)
        course._count = int(count)
        return course
