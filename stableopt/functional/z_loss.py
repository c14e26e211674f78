"""The z-loss, which keeps the logits of a softmax from drifting."""

from __future__ import annotations

import torch
from torch import Tensor

from stableopt.functional.scaling import at_least_float32, require_floating


def z_loss(logits: Tensor, *, dim: int = -1, mask: Tensor | None = None) -> Tensor:
    """Return the mean of (log Σ exp logits)² over all positions.

    A softmax does not see a constant that is added to its logits; nothing else holds it. Not
    weighted: add ``1e-4 * z_loss(logits)`` to the loss.

    Args:
        logits: Any shape, real floating; computed in float32 at least. Single classes may be
            masked with -Inf.
        dim: The classes.
        mask: Boolean, ``logits.shape`` without ``dim`` or what broadcasts to it: true where a
            position counts. What is not counted may be anything, NaN included. Without a mask a
            position that is -Inf throughout makes the loss Inf.

    Returns:
        0-dim, float32, or float64 if ``logits`` are; 0 if no position counts. For finite logits
        the gradient, 2 log Z · softmax / positions, is finite even where the square is not.

    Raises:
        ValueError: ``logits`` are empty or not real floating, or ``mask`` is not boolean.

    Cost:
        A softmax, in float32; no host synchronisation.

    Reference:
        de Brébisson & Vincent, arXiv:1604.08859; Chowdhery et al., arXiv:2204.02311 (PaLM).

    Example:
        >>> round(z_loss(torch.full((2, 4), 10.0)).sqrt().item() - 10, 4)  # log 4
        1.3863
    """
    require_floating("logits", logits)
    if logits.dim() == 0 or logits.numel() == 0:
        raise ValueError(f"logits.shape={tuple(logits.shape)} must have classes and positions")
    if mask is None:
        return _square(torch.logsumexp(at_least_float32(logits), dim)).mean()
    if mask.dtype is not torch.bool:
        raise ValueError(f"mask.dtype={mask.dtype} must be torch.bool; pass mask != 0")
    mask = mask.expand(logits.select(dim, 0).shape)
    counted = torch.where(mask.unsqueeze(dim), at_least_float32(logits), 0.0)
    squares = _square(torch.logsumexp(counted, dim))
    return torch.where(mask, squares, 0.0).sum() / mask.sum().clamp(min=1)


def _square(value: Tensor) -> Tensor:
    """Return value², by a product: the backward of a power doubles before it weights."""
    return value * value
