"""Has a second moment become smaller than its decay allows? No torch."""

from __future__ import annotations

import math
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

SMALLEST = 1e-30
"""Norms below which squares underflow, and nothing can be said."""


Part: TypeAlias = "tuple[Hashable, Hashable]"
"""A tensor by its label, and which of its elements."""


class _Known(NamedTuple):
    norm: float
    call: int
    holder: weakref.ref[object]


class MomentHistory:
    """Remembers the norm of every part of the second moments, and when it was so.

    A moving average of squares, v ← β v + (1 − β) g², decays and does nothing else but grow, so
    that after k updates, element by element and for any gradients::

        ‖v_t‖ ≥ β^k ‖v_(t−k)‖

    Second moments that were set to zero, or lost, break this; the very next updates would be
    some thirty times as large as they should be (β = .999). For β = .999 a zeroed moment is found
    by the next look at it, whatever the gradients; for β = .95 and looks 20 steps apart, if it is
    looked at within about ten steps.

    Args:
        factor: How many times smaller than the law allows is a fault; rounding in bfloat16 takes
            less than 2. ``None`` not to judge.
    """

    def __init__(self, factor: float | None) -> None:
        self._factor = factor
        self._known: dict[Part, _Known] = {}
        self.call = 0

    def has_vanished(self, part: Part, norm: float, decay: float, holder: object) -> bool:
        """Tell whether a part has.

        Args:
            part: What it is known by.
            norm: Its 2-norm, finite.
            decay: The smallest factor that one update may leave of it.
            holder: The tensor; another one in its place begins anew.
        """
        known = self._known.get(part)
        if self._factor is None or known is None or known.holder() is not holder:
            return False
        left: float = decay ** (self.call - known.call) * known.norm / self._factor
        return norm < left and left > SMALLEST

    def began_anew(self, part: Part, state: Mapping[str, Any]) -> bool:
        """Tell whether the steps of a state are counted anew since the last look: a restart.

        Args:
            part: One that is known.
            state: All there is beside it.

        Cost:
            One host synchronisation where the count lies on a device.
        """
        step = state.get("step")
        return step is not None and float(step) <= self.call - self._known[part].call

    def learn(self, part: Part, norm: float, holder: object) -> None:
        """Remember the norm of a part, after a step with nothing wrong."""
        if math.isfinite(norm):
            self._known[part] = _Known(norm, self.call, weakref.ref(holder))

    def move(self, moved: Callable[[Any], Any]) -> None:
        """Know parts by the labels that ``moved`` gives; forget those of which it has none."""
        self._known = {
            (label, span): known
            for (old, span), known in self._known.items()
            if (label := moved(old))
        }

    def forget(self) -> None:
        """Begin anew: other moments were put there on purpose."""
        self._known.clear()

    def __getstate__(self) -> dict[str, object]:
        """Give copies nothing to hold against the tensors of their own."""
        return {"_factor": self._factor, "_known": {}, "call": self.call}
