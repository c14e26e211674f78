"""Second moments that are smaller than their decay allows. No torch."""

from __future__ import annotations

import math
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

SMALLEST = 1e-30
"""Norms below which squares underflow, so that they are not judged."""


Part: TypeAlias = "tuple[Hashable, Hashable]"
"""The label of a tensor, and a range of its elements."""


class _Known(NamedTuple):
    norm: float
    call: int
    holder: weakref.ref[object]


class MomentHistory:
    """Remembers the norm of every part of the second moments, and the call at which it was read.

    A moving average of squares, v ← β v + (1 − β) g², can only shrink by β in one update, so that
    after k updates, for any gradients::

        ‖v_t‖ ≥ β^k ‖v_(t−k)‖

    Second moments that were set to zero, or lost, break this; the next updates would be some
    thirty times too large (β = .999). For β = .999 a zeroed moment is found by its next check,
    whatever the gradients; for β = .95 and checks 20 steps apart, if it is checked within about
    ten steps.

    Args:
        factor: A norm so many times smaller than the law allows is a fault; rounding in bfloat16
            makes a factor below 2. ``None`` for no limit.
    """

    def __init__(self, factor: float | None) -> None:
        self._factor = factor
        self._known: dict[Part, _Known] = {}
        self.call = 0

    def has_vanished(self, part: Part, norm: float, decay: float, holder: object) -> bool:
        """Return whether a norm is too small.

        Args:
            part: The part of the second moments.
            norm: Its 2-norm, finite.
            decay: The smallest factor by which one update can shrink it.
            holder: The tensor; another one in its place has no past.
        """
        known = self._known.get(part)
        if self._factor is None or known is None or known.holder() is not holder:
            return False
        left: float = decay ** (self.call - known.call) * known.norm / self._factor
        return norm < left and left > SMALLEST

    def restarted(self, part: Part, state: Mapping[str, Any]) -> bool:
        """Return whether the step count of a state has started again since the last check.

        Args:
            part: One that is known.
            state: The state of its parameter.

        Cost:
            One host synchronisation where the count lies on a device.
        """
        step = state.get("step")
        return step is not None and float(step) <= self.call - self._known[part].call

    def learn(self, part: Part, norm: float, holder: object) -> None:
        """Remember the norm of a part, after a healthy step."""
        if math.isfinite(norm):
            self._known[part] = _Known(norm, self.call, weakref.ref(holder))

    def move(self, moved: Callable[[Any], Any]) -> None:
        """Replace labels by what ``moved`` returns; forget parts for which that is ``None``."""
        self._known = {
            (label, span): known
            for (old, span), known in self._known.items()
            if (label := moved(old))
        }

    def forget(self) -> None:
        """Forget all norms: moments were replaced on purpose."""
        self._known.clear()

    def __getstate__(self) -> dict[str, object]:
        """Give copies no norms: they have tensors of their own."""
        return {"_factor": self._factor, "_known": {}, "call": self.call}
