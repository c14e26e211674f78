"""What each rank says in the one sum of a step, and what follows from it. No torch."""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SLOTS = 16  # sensors.gradients.MOST_GROUPS
"""Numbers for the gradient norms of parameter groups, however many groups there are."""

FLAGS = ("urgent", "looks", "wants", "manual", "postpones", "many")
"""What is true for the group as soon as it is true on one rank; see :class:`Said`."""

_CLOCK = 1 << 16


class Said(NamedTuple):
    """What one rank knows before a step is judged.

    Attributes:
        urgent: It has found a fault in the batch.
        looks: It has reason to look at all weights and state.
        wants: Its user asked for a snapshot.
        manual: Its user asked for a rollback.
        postpones: Its sensors have used up their time.
        many: It has observed many values of a signal that a rule reads.
        loss: Mean of its losses; ``None`` without one.
        square: Sum of the squares of its part of the gradients, each divided by the number of ranks
            that hold it; ``None`` without gradients.
        groups: The same of each parameter group, by the numbers from 0 to 15.
        signals: What rules and triggers read, by name; ``None`` where it was not observed.
        clock: What has to be the same on all ranks, from :func:`clock_of`.
    """

    urgent: bool = False
    looks: bool = False
    wants: bool = False
    manual: bool = False
    postpones: bool = False
    many: bool = False
    loss: float | None = None
    square: float | None = None
    groups: Mapping[int, float] = {}
    signals: Mapping[str, float | None] = {}
    clock: int = 0


class Agreed(NamedTuple):
    """What all ranks know of a step.

    Attributes:
        flags: Those that at least one rank has set.
        loss: Mean of the losses of the ranks that have one; ``None`` if none has.
        norm: Global norm of the gradients; ``None`` if no rank has any.
        groups: The same of each parameter group, by the numbers of :class:`Said`.
        signals: Mean over the ranks that have observed one, by name.
        in_step: Whether the clocks are the same on all ranks.
    """

    flags: frozenset[str]
    loss: float | None
    norm: float | None
    groups: Mapping[int, float]
    signals: Mapping[str, float]
    in_step: bool


def clock_of(*counts: object) -> int:
    """Return 16 bits of a checksum of counts that have to be the same on all ranks."""
    return zlib.crc32(repr(counts).encode()) % _CLOCK


def pack(said: Said) -> list[float]:
    """Return the numbers of one rank: as many on every rank, whatever it has observed."""
    groups = [0.0] * SLOTS
    for number, square in said.groups.items():
        groups[number] += square
    signals: list[float] = []
    for name in sorted(said.signals):
        signals += _counted(said.signals[name])
    flags = [float(getattr(said, name)) for name in FLAGS]
    clock = [float(said.clock), float(said.clock**2)]
    return [*flags, *_counted(said.loss), *_counted(said.square), *groups, *clock, *signals]


def unpack(total: Sequence[float], size: int, names: Sequence[str]) -> Agreed:
    """Return what follows from the sums of :func:`pack` over all ranks.

    Args:
        total: The sums.
        size: How many ranks there are.
        names: The signals.
    """
    numbers = iter(total)
    flags = frozenset(name for name in FLAGS if next(numbers) > 0)
    loss = _mean(next(numbers), next(numbers))
    square, have = next(numbers), next(numbers)
    squares = [next(numbers) for _ in range(SLOTS)]
    clock, clock2 = int(next(numbers)), int(next(numbers))
    signals = {name: _mean(next(numbers), next(numbers)) for name in sorted(names)}
    return Agreed(
        flags=flags,
        loss=loss,
        norm=_root(square) if have else None,
        groups={i: _root(value) for i, value in enumerate(squares)},
        signals={name: value for name, value in signals.items() if value is not None},
        in_step=size * clock2 == clock**2,
    )


def _counted(value: float | None) -> list[float]:
    return [0.0, 0.0] if value is None else [value, 1.0]


def _mean(total: float, count: float) -> float | None:
    return total / count if count else None


def _root(square: float) -> float:
    return math.sqrt(square) if square >= 0 else math.nan
