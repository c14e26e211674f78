"""Logits that cannot run away: the identity up to a threshold, a smooth ceiling beyond it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stableopt.functional.scaling import at_least_float32, require_floating


def soft_clamp_logits(x: Tensor, threshold: float = 50.0, limit: float = 100.0) -> Tensor:
    """Return ``x`` where |x| ≤ threshold; beyond it, bend smoothly towards ±limit.

    sign(x) · (t + (L - t) · tanh((|x| - t) / (L - t))) beyond the threshold t, with the limit L:
    odd, monotone, of slope 1 at the threshold. ``threshold=0`` is the logit soft-capping of
    Gemma 2, L · tanh(x / L).

    Args:
        x: Logits of any shape and real floating dtype; computed in float32 at least.
        threshold: t, at least 0. What is within is returned bit for bit.
        limit: L, above ``threshold``.

    Returns:
        As ``x`` in shape and dtype. The magnitude is at most ``limit``, in every dtype: where
        the limit is no number of the dtype, the next one towards zero is the ceiling. ±Inf
        becomes that ceiling; NaN stays NaN. The gradient is finite everywhere, and zero where
        the result is equal to the ceiling.

    Raises:
        ValueError: Not 0 ≤ threshold < limit < Inf, or ``x`` is not real floating.

    Cost:
        Element by element; no host synchronisation.

    Reference:
        Bello et al., arXiv:1611.09940; Gemma Team, arXiv:2408.00118 (Gemma 2).

    Example:
        >>> logits = torch.tensor([-1e30, 49.0, 500.0])
        >>> soft_clamp_logits(logits).tolist()
        [-100.0, 49.0, 100.0]
    """
    require_floating("x", x)
    if not 0 <= threshold < limit < math.inf:
        raise ValueError(
            f"threshold={threshold}, limit={limit} must be 0 <= threshold < limit < inf; "
            "to bend from zero on, pass threshold=0"
        )
    width = limit - threshold
    ceiling = _rounded_down(limit, x.dtype)
    wide = at_least_float32(x)
    core = wide.clamp(-threshold, threshold)
    bent = core + width * torch.tanh((wide - core) / width)
    bent = bent.clamp(-ceiling, ceiling).to(x.dtype)
    return torch.where(wide.abs() <= threshold, x, bent)


def _rounded_down(value: float, dtype: torch.dtype) -> float:
    """Return the largest number of ``dtype`` that is not above ``value``."""
    info = torch.finfo(dtype)
    value = min(value, info.max)
    spacing = max(math.ldexp(info.eps, math.frexp(value)[1] - 1), info.tiny * info.eps)
    return math.floor(value / spacing) * spacing
