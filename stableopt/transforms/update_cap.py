"""Cap the length of each step at a share of the size of the weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from stableopt.errors import require_number
from stableopt.functional import distances, safe_norm, stay_within, tensor_norms
from stableopt.runtime.scalars import read_scalars
from stableopt.transforms.protocol import Change, Found, Needs, Phase, Target
from stableopt.transforms.selection import Select, selection
from stableopt.transforms.site import Site
from stableopt.transforms.view import StepView
from stableopt.transforms.weights import has_norm

LEAST, MOST = 0.5, 2.0
"""What counts as the norm of a weight, in units of that which keeps the size of its inputs."""


@dataclass(frozen=True)
class UpdateCap:
    r"""Shorten the step of every tensor to a share of its size.

    After the inner step, for each tensor with :math:`d = W_\text{new} - W_\text{old}` (weight
    decay included):

    .. math::
        r = \text{ratio} \cdot \sqrt{\eta / \eta_\text{max}} \cdot R, \qquad
        W = W_\text{old} + d \cdot \min(1, r / \lVert d \rVert)

    R is ``‖W_old‖``, but at least ½ and at most 2 times ``√(numel / n)``, the norm of a weight
    whose outputs are as large as its inputs: n is the fan-in of a matrix or a convolution, and the
    size of a vector. So what begins at zero can move, and what is large by its initialisation
    alone, an embedding or the gain of a norm, does not move faster than the matrices behind it:
    in long runs that costs more than anything else. η is the learning rate of the step, and η_max
    the largest that its group has had: the schedule still brings the steps down, but how high it
    begins no longer matters. One-dimensional weights are capped, too: their gains are what grows
    without bound otherwise. The state of the optimizer is left alone: moments are averages of
    gradients, and say nothing of the length of a step.

    What is not too long stays as it is, bit for bit.

    Args:
        ratio: Largest length of a step, as a share of R.
        params: Patterns of parameter names, or :func:`~stableopt.transforms.layers`; all if not
            given.

    Raises:
        ConfigError: ``ratio`` is not a number above 0.

    Cost:
        A copy of the weights in memory. Per step one read and write of the weights before it,
        and three reads after it; where a step is too long two reads and a write. One host
        synchronisation per accelerator.

    Reference:
        You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", 2017,
        arXiv:1708.03888 (steps relative to the norm of a layer). Measured in
        ``make learning-rate``.

    Example:
        >>> import torch, stableopt
        >>> w = torch.nn.Parameter(torch.full((4,), 0.5))
        >>> opt = stableopt.StableOptimizer(
        ...     torch.optim.SGD([w], lr=1.0), transforms=[stableopt.UpdateCap(0.01)]
        ... )
        >>> w.grad = torch.full((4,), 8.0)
        >>> opt.step()
        >>> w.detach()
        tensor([0.4950, 0.4950, 0.4950, 0.4950])
    """

    ratio: float = 0.02
    params: Select = None

    phase: ClassVar[Phase] = Phase.UPDATE
    metric: ClassVar[str] = "update_ratio"
    routine: ClassVar[bool] = True
    needs: ClassVar[Needs] = Needs(previous=True, lr=True)

    def __post_init__(self) -> None:
        meaning = "the largest length of a step, as a share of the size of a weight"
        require_number("ratio", self.ratio, math.inf, meaning)
        object.__setattr__(self, "params", selection("params", self.params))

    def find(self, site: Site) -> Found:
        """Cap the parameters of ``site`` that have a norm."""
        return Found([t for t in site.targets if has_norm(site.parameter(t))])

    def act(self, view: StepView, found: Found, memory: dict[str, Any]) -> Sequence[Change]:
        """Shorten the steps in place."""
        weights, before = [view.parameter(target) for target in found.targets], view.previous()
        numbers = read_scalars([*distances(weights, before), *tensor_norms(before)])
        lengths, norms = numbers[: len(weights)], numbers[len(weights) :]
        changes = []
        for i, (target, weight, old) in enumerate(zip(found.targets, weights, before, strict=True)):
            length, size = lengths[i], _reach(old, norms[i])
            limit = self._limit(target, view)
            if length <= limit * size:
                continue
            if not math.isfinite(length):
                length = safe_norm([weight - old])
            # A step that is not finite is left for the guard to see.
            if math.isfinite(length):
                stay_within(weight, old, limit * size / length)
                changes.append(Change(target.name, length / size, limit))
        return changes

    def _limit(self, target: Target, view: StepView) -> float:
        lr, peak = view.lr(target), view.peak_lr(target)
        share = abs(lr) / peak if lr is not None and peak else 1.0
        return self.ratio * math.sqrt(min(1.0, share))


def unit_norm(weight: Tensor) -> float:
    """Return the norm of a weight of this shape whose outputs are as large as its inputs."""
    inputs = weight[0].numel() if weight.dim() > 1 and len(weight) else weight.numel()
    return math.sqrt(weight.numel() / inputs) if inputs else 0.0


def _reach(weight: Tensor, norm: float) -> float:
    """Return R: what counts as the norm of a weight; one that overflows is large."""
    unit = unit_norm(weight)
    return max(LEAST * unit, min(norm, MOST * unit))
