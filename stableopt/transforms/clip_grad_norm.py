"""Clip the global gradient norm with the norm that the guard has measured already."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from stableopt.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from stableopt.types import GradientNorms


@dataclass(frozen=True, slots=True)
class ClipGradNorm:
    r"""Scale all gradients so that their global 2-norm is at most ``max_norm``.

    :math:`g \leftarrow g \cdot \min(1, \text{max\_norm} / (\lVert g \rVert + 10^{-6}))`,
    the same numbers as :func:`torch.nn.utils.clip_grad_norm_`, bit for bit, at the price of
    the multiplication alone: the norm is the one the step was judged by. Unlike torch's,
    it survives finite gradients whose norm overflows, which torch multiplies by zero.

    Args:
        max_norm: The bound, above 0; ``math.inf`` never clips.

    Raises:
        ConfigError: ``max_norm`` is not a number above 0.

    Cost:
        One read and write of the gradients when it clips, nothing when it does not.

    Reference:
        Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural
        networks", 2013, arXiv:1211.5063.

    Example:
        >>> import torch, stableopt
        >>> w = torch.nn.Parameter(torch.zeros(2))
        >>> opt = stableopt.StableOptimizer(
        ...     torch.optim.SGD([w], lr=1.0), transforms=[stableopt.ClipGradNorm(1.0)]
        ... )
        >>> w.grad = torch.tensor([30.0, 40.0])
        >>> opt.step()
        >>> w.detach()
        tensor([-0.6000, -0.8000])
    """

    max_norm: float

    def __post_init__(self) -> None:
        valid = isinstance(self.max_norm, (int, float)) and not isinstance(self.max_norm, bool)
        if not valid or math.isnan(self.max_norm) or self.max_norm <= 0:
            raise ConfigError(
                f"max_norm={self.max_norm!r} must be a number above 0: "
                "the largest global gradient norm that may reach the optimizer"
            )

    def transform_gradients(self, parameters: Sequence[Tensor], gradients: GradientNorms) -> None:
        """Clip in place; see the class."""
        # Well under the bound the coefficient is exactly 1: leave the gradients alone. The
        # margin keeps every rounding of the coefficient on torch's side.
        if gradients.total_value < 0.99 * self.max_norm - 1e-6:
            return
        torch.nn.utils.clip_grads_with_norm_(list(parameters), self.max_norm, gradients.total)
