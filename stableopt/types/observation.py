"""Loss, gradients and signals of a step, before it is judged."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientNorms:
    """The 2-norm of every gradient of one step, measured once and shared.

    Attributes:
        owners: ``(group, index)`` of each parameter that has a gradient.
        values: The stored values of each gradient (coalesced, if sparse).
        norms: The norm of each, 0-dim, in its own dtype; may overflow to Inf.
        total: The global norm, 0-dim; never overflowed while the gradients are finite.
        total_value: ``total`` on the host.
        nonfinite: Positions in ``owners`` whose gradients hold a NaN or an Inf.
        groups: The norm of each parameter group on the host, by its number; of many groups that
            of some neighbours together, by the number of the first. Empty where there is one group.
    """

    owners: Sequence[tuple[int, int]]
    values: Sequence[Tensor]
    norms: Sequence[Tensor]
    total: Tensor
    total_value: float
    nonfinite: Sequence[int] = ()
    groups: Mapping[int, float] = field(default_factory=dict)

    def of_group(self, number: int) -> GradientNorms:
        """Return the part that belongs to one entry of ``groups``."""
        after = min((n for n in self.groups if n > number), default=math.inf)
        members = [i for i, (group, _) in enumerate(self.owners) if number <= group < after]
        return replace(
            self,
            owners=[self.owners[i] for i in members],
            values=[self.values[i] for i in members],
            norms=[self.norms[i] for i in members],
            total_value=self.groups[number],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Loss, gradients and signals of a step, before it is judged.

    Attributes:
        loss: Mean of the losses observed for this step; ``None`` if there were none.
        gradients: Norm of every gradient; ``None`` if nothing needs them.
        signals: Everything else that was passed to ``observe()``.
    """

    loss: float | None = None
    gradients: GradientNorms | None = None
    signals: Mapping[str, Any] = field(default_factory=dict)
