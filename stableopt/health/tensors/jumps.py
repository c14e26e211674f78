"""Does a weight become much larger from one look to the next than it ever did? No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

USUAL = 4.0
"""Norms that are never a jump, in units of that which keeps the size of inputs."""

LEARNED = 2
"""Growths that have to be known before the next one is judged."""


@dataclass(frozen=True, slots=True)
class _Known:
    norm: float
    largest: float = 0.0
    count: int = 0


Part: TypeAlias = "tuple[Hashable, Hashable]"
"""A parameter by its place, and which of its elements."""


class NormHistory:
    """Remembers the norm of every part of the weights, and by how much it grew at most.

    A finite fault can be small enough to pass for a weight: a factor of 100, a flipped lower bit
    of an exponent. What it cannot pass for is growth: between two looks, some 20 steps, healthy
    training moves a norm by about what it moved it before. A jump is a norm that is

    - ``factor`` times what it was,
    - by more than ``factor`` times the largest change so far, of which at least two are known,
    - and larger than 4 times ``√(numel / fan-in)``: what grew from next to nothing to the size of
      a weight was no weight before.

    What was zero says nothing. Only what was looked at in healthy steps is learned.

    Args:
        factor: Above 1; ``None`` not to judge.
    """

    def __init__(self, factor: float | None) -> None:
        self._factor = factor
        self._known: dict[Part, _Known] = {}

    def has_jumped(self, part: Part, norm: float, unit: float) -> bool:
        """Tell whether a part has.

        Args:
            part: What it is known by.
            norm: Its 2-norm, finite.
            unit: The norm of as many weights that keep the size of their inputs.
        """
        known = self._known.get(part)
        factor = self._factor
        if factor is None or known is None or known.count < LEARNED or known.norm == 0:
            return False
        grown = norm - known.norm
        return norm > max(factor * known.norm, USUAL * unit) and grown > factor * known.largest

    def learn(self, part: Part, norm: float) -> None:
        """Remember the norm of a part, after a step with nothing wrong."""
        if not math.isfinite(norm):
            return
        known = self._known.get(part)
        if known is None:
            self._known[part] = _Known(norm)
            return
        largest = max(known.largest, abs(norm - known.norm))
        self._known[part] = replace(known, norm=norm, largest=largest, count=known.count + 1)

    def move(self, moved: Mapping[Any, Any]) -> None:
        """Know parts by where their parameters are now; forget those that have left."""
        self._known = {
            (moved[place], span): known
            for (place, span), known in self._known.items()
            if place in moved
        }

    def forget(self) -> None:
        """Begin anew: other weights were put there on purpose."""
        self._known.clear()
