"""What rounding takes from a bound when a weight is written in its own dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


ROOM = 1e-5
"""How far above a bound, relatively, rounding may leave a metric: that calls for nothing."""


def aim(limit: float, weight: Tensor) -> float:
    """Return what to aim at so that the bound holds after rounding: 1% lower in bfloat16."""
    eps = torch.finfo(weight.dtype).eps
    return limit * (1 - 1.25 * eps) if eps > 1e-5 else limit


def write_matrix(weight: Tensor, matrix: Tensor) -> None:
    """Write a matrix ``(out, in)`` back into the weight it was made from, in place."""
    weight.copy_(matrix.reshape(weight.shape))
