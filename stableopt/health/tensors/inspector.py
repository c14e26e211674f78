"""Limits on the tensors of one optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stableopt.health.tensors.jumps import NormHistory
from stableopt.health.tensors.laws import MomentLaws
from stableopt.health.tensors.vanished import MomentHistory
from stableopt.runtime.magnitudes import largest
from stableopt.runtime.positions import Position

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor
    from torch.optim import Optimizer

    from stableopt.health.describe import Label


class Inspector:
    """The limits on the tensors of one optimizer, and what is known of their past.

    A buffer, or the state of an optimizer that is not torch's, that is not finite when it is
    first seen is taken as intended (a mask of -inf): it is exempt from then on.

    Args:
        optimizer: Of the weights and the state.
        max_weight: Largest magnitude of a weight; ``None`` for the square root of the largest
            number of its dtype.
        weight_jump: See :class:`~stableopt.health.tensors.jumps.NormHistory`.
        moment_drop: See :class:`~stableopt.health.tensors.vanished.MomentHistory`.

    Attributes:
        bounds: Whether first moments are compared with second ones.
        exempt: Tensors that are not checked.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_weight: float | None,
        weight_jump: float | None = None,
        moment_drop: float | None = None,
    ) -> None:
        self.laws = MomentLaws(optimizer)
        self.exempt: set[Label] = set()
        self.history = NormHistory(weight_jump)
        self.moments = MomentHistory(moment_drop)
        self.bounds = moment_drop is not None
        self._max_weight = max_weight
        self._finite: set[Label] = set()

    def max_weight(self, weight: Tensor) -> float:
        """Return the largest magnitude that a value of ``weight`` may have."""
        return largest(weight.dtype) if self._max_weight is None else self._max_weight

    def forget(self) -> None:
        """Forget the past of weights and moments: they were replaced on purpose."""
        self.history.forget()
        self.moments.forget()

    def move(self, moved: Mapping[Position, Position]) -> None:
        """Follow parameters to their new places; forget those that were removed.

        Args:
            moved: New places by old ones.
        """

        def moved_label(label: Label) -> Label | None:
            if not isinstance(label.owner, Position):
                return label
            now = moved.get(label.owner)
            return None if now is None else label._replace(owner=now)

        self.exempt = {label for old in self.exempt if (label := moved_label(old))}
        self._finite = {label for old in self._finite if (label := moved_label(old))}
        self.history.move(moved)
        self.moments.move(moved_label)

    def unless_initial(self, label: Label, fault: str | None) -> str | None:
        """Return ``fault``, unless the tensor had it when it was first seen."""
        if label.kind == "weight" or (label.kind == "state" and self.laws.of_torch):
            return fault
        if fault is None:
            self._finite.add(label)
            return None
        if label in self._finite:
            return fault
        self.exempt.add(label)
        return None

    def __getstate__(self) -> dict[str, Any]:
        """Give copies no buffers: their keys hold the ``id`` of a module."""
        known = {label for label in self.exempt if label.kind != "buffer"}
        seen = {label for label in self._finite if label.kind != "buffer"}
        return {**self.__dict__, "exempt": known, "_finite": seen}

    def accept(self, labels: Iterable[Label]) -> None:
        """Exempt these tensors from now on."""
        self.exempt.update(labels)
