"""Weights that grow far more from one check to the next than ever before. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

USUAL = 4.0
"""Norms up to this are never a jump, in units of the norm that keeps the size of inputs."""

LEARNED = 2
"""Changes of a norm before the next one is judged."""


@dataclass(frozen=True, slots=True)
class _Known:
    norm: float
    largest: float = 0.0
    count: int = 0


Part: TypeAlias = "tuple[Hashable, Hashable]"
"""The place of a parameter, and a range of its elements."""


class NormHistory:
    """Remembers the norm of every part of the weights, and its largest change.

    A finite fault can have the size of a weight: a factor of 100, a flipped lower bit of an
    exponent. But it does not look like growth: between two checks, some 20 steps, healthy training
    changes a norm by about as much as before. A jump is a norm that is

    - ``factor`` times what it was,
    - by more than ``factor`` times the largest change so far, of which at least two are known,
    - and larger than 4 times ``√(numel / fan-in)``: to grow from almost zero to the usual size of
      a weight is no fault.

    A norm that was zero is not judged. Only norms of healthy steps are remembered.

    Args:
        factor: Above 1; ``None`` for no limit.
    """

    def __init__(self, factor: float | None) -> None:
        self._factor = factor
        self._known: dict[Part, _Known] = {}

    def has_jumped(self, part: Part, norm: float, unit: float) -> bool:
        """Return whether a norm is a jump.

        Args:
            part: The part of the weights.
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
        """Remember the norm of a part, after a healthy step."""
        if not math.isfinite(norm):
            return
        known = self._known.get(part)
        if known is None:
            self._known[part] = _Known(norm)
            return
        largest = max(known.largest, abs(norm - known.norm))
        self._known[part] = replace(known, norm=norm, largest=largest, count=known.count + 1)

    def move(self, moved: Mapping[Any, Any]) -> None:
        """Follow parameters to their new places; forget those that were removed."""
        self._known = {
            (moved[place], span): known
            for (place, span), known in self._known.items()
            if place in moved
        }

    def forget(self) -> None:
        """Forget all norms: weights were replaced on purpose."""
        self._known.clear()
