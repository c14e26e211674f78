"""What bounds on weights have in common: which weights, how strictly, and how they round."""

from __future__ import annotations

import torch
from torch import Tensor

from stableopt.errors import ConfigError, require_int, require_number
from stableopt.runtime.shards import is_sharded

ROOM = 1e-5
"""How far above a bound, relatively, rounding may leave a metric without another correction."""


def has_norm(weight: Tensor) -> bool:
    """Return whether a weight has a norm: it is a strided tensor, and not of integers."""
    floating = weight.is_floating_point() or weight.is_complex()
    return floating and weight.layout is torch.strided


def has_matrix(weight: Tensor) -> bool:
    """Return whether a weight can be flattened to a matrix ``(out, in)``."""
    plain = type(weight.data) is torch.Tensor or is_sharded(weight)
    return plain and has_norm(weight) and weight.dim() > 1 and weight.numel() > 0


def aim(limit: float, weight: Tensor) -> float:
    """Return what to aim at so that the bound holds after rounding: 1% lower in bfloat16."""
    eps = torch.finfo(weight.dtype).eps
    return limit * (1 - 1.25 * eps) if eps > 1e-5 else limit


def write_matrix(weight: Tensor, matrix: Tensor) -> None:
    """Write a matrix ``(out, in)`` back into the weight it was made from, in place."""
    weight.copy_(matrix.reshape(weight.shape))


def check_strictness(slack: float, every: int) -> None:
    """Check the options of a bound that is computed from weights.

    Args:
        slack: How far above the limit the bound may be.
        every: Steps from one computation of the bound to the next.

    Raises:
        ConfigError: One of them is out of range.
    """
    require_number("slack", slack, 1e6, "how far above the limit the bound may be")
    if slack < 1:
        raise ConfigError(f"slack={slack!r} must be at least 1, the limit itself")
    require_int("every", every, 1, "updates from one look at the weights to the next")
