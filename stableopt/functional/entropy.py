"""The entropy of a spectrum, as part of a loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stableopt.functional.norms import widest_real
from stableopt.functional.scaling import require_floating, scaled


def spectral_entropy(matrix: Tensor) -> Tensor:
    """Return H(p) = -Σ p log p in nats, where p are the singular values over their sum.

    Its exponential is :func:`~stableopt.functional.effective_rank`; this one is part of a loss:
    differentiable, batched, and defined for a matrix of zeros. From 0 (one direction) to
    log min(m, n) (all alike).

    Args:
        matrix: ``(..., m, n)``.

    Returns:
        ``(...)``, float32, or float64 if ``matrix`` is. 0 with a gradient of zero for a matrix of
        zeros, NaN for one that is not finite. The first derivative is finite everywhere and does
        not depend on the vectors that are chosen for repeated singular values; a singular value
        that is zero up to rounding has no part in it (the true one is unbounded there). The
        second derivative does not exist where singular values are repeated.

    Raises:
        ValueError: ``matrix`` is empty, of fewer than two dimensions or not real floating.

    Cost:
        A full decomposition per matrix, in float64 where the device has it: mind it in every
        step. On CUDA :func:`torch.linalg.svdvals` waits for the device.

    Reference:
        Roy & Vetterli, "The effective rank: a measure of effective dimensionality", 2007.

    Example:
        >>> round(spectral_entropy(torch.eye(4)).exp().item(), 5)
        4.0
    """
    require_floating("matrix", matrix)
    if matrix.dim() < 2 or matrix.numel() == 0:
        raise ValueError(f"matrix.shape={tuple(matrix.shape)} must be (..., m, n) and not empty")
    wide = matrix.to(widest_real(matrix.device))
    finite = torch.isfinite(wide).flatten(-2).all(-1)
    # A decomposition raises on NaN.
    quotient, scale = scaled(torch.where(finite[..., None, None], wide, 0.0), (-2, -1))
    # Tall is several times faster than wide.
    tall = matrix.shape[-2] >= matrix.shape[-1]
    values = torch.linalg.svdvals(quotient if tall else quotient.mT)
    noise = values.detach()[..., :1] * (max(matrix.shape[-2:]) * torch.finfo(wide.dtype).eps)
    values = torch.where(values > noise, values, 0.0)
    total = values.sum(-1, keepdim=True)
    # Below this the gradient, up to some 50 / total, would leave the range of the dtype.
    dead = total * scale[..., 0] <= 64 * torch.finfo(matrix.dtype).tiny
    share = torch.where(dead, 0.0, values) / torch.where(dead, 1.0, total)
    entropy = (share * -torch.where(share > 0, share, 1.0).log()).sum(-1)
    entropy = torch.where(finite, entropy, math.nan)
    return entropy.to(torch.promote_types(matrix.dtype, torch.float32))
