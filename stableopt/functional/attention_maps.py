"""Attention that collapses: onto one place, over everything, or all heads onto the same."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stableopt.functional.scaling import at_least_float32, require_floating, scaled, smooth_norm


def attention_entropy(weights: Tensor, *, dim: int = -1) -> Tensor:
    """Return the entropy of attention weights in nats: -Σ p log p with p = weights / Σ weights.

    From 0 (all on one place) to log n (spread over n places evenly).

    Args:
        weights: Attention after its softmax, not negative, any shape. They need not sum to 1:
            after dropout, or in bfloat16, they do not.
        dim: The places that are attended to.

    Returns:
        The shape of ``weights`` without ``dim``; float32, or float64 if ``weights`` are. 0 for a
        row of zeros (everything masked), NaN for a row with a NaN or a negative weight. The
        gradient is finite; a weight of exactly zero counts as masked and has none.

    Raises:
        ValueError: ``weights`` are not real floating, or empty along ``dim``.

    Cost:
        A few passes; no host synchronisation.

    Reference:
        Zhai et al., arXiv:2303.06296 (attention entropy collapse).

    Example:
        >>> attention_entropy(torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])).tolist()
        [0.6931471824645996, 0.0]
    """
    require_floating("weights", weights)
    if weights.dim() == 0 or weights.shape[dim] == 0:
        raise ValueError(
            f"weights.shape={tuple(weights.shape)}, dim={dim} must have at least one place"
        )
    wide = at_least_float32(weights)
    wide = torch.where(wide < 0, math.nan, wide)
    quotient, scale = scaled(wide, dim)
    total = quotient.sum(dim, keepdim=True)
    # Below this the gradient, up to some 100 / total, would leave the range of the dtype.
    dead = total * scale <= 64 * torch.finfo(weights.dtype).tiny
    share = torch.where(dead, 0.0, quotient) / torch.where(dead, 1.0, total)
    logs = torch.where(share == 0, 1.0, share).log()
    return (share * -logs).sum(dim)


def overlap_penalty(maps: Tensor) -> Tensor:
    """Return the mean cosine between the attention maps of a sample, over pairs of different maps.

    Keeps K maps from attending to the same places: 0 if no two share one, 1 if all are alike,
    whatever their scale. The sum of products Σ mₖ mₗ itself, which is often used for this,
    depends on it, and two maps that are spread over n places evenly have a product of only 1/n:
    minimising that teaches attention to spread out. Their cosine is 1. Divided is by the number
    of pairs, not by K², so that the value does not depend on K.

    Args:
        maps: ``(B, K, ...)``, commonly ``(B, K, H, W)``, not negative.

    Returns:
        0-dim, float32, or float64 if ``maps`` are. 0 with a gradient of zero for K = 1. A map of
        zeros overlaps with none and has no gradient; elsewhere it is finite.

    Raises:
        ValueError: ``maps`` are empty, of fewer than three dimensions or not real floating.

    Cost:
        K² flops per place and sample; no host synchronisation.

    Example:
        >>> maps = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 0.5]]])
        >>> round(overlap_penalty(maps).item(), 6)
        0.333333
    """
    require_floating("maps", maps)
    if maps.dim() < 3 or maps.numel() == 0:
        raise ValueError(
            f"maps.shape={tuple(maps.shape)} must be (B, K, ...) and not empty; "
            "give maps of one sample a first dimension of 1"
        )
    quotient, scale = scaled(at_least_float32(maps).flatten(2), 2)
    norm = smooth_norm(quotient, 2)
    dead = norm * scale <= torch.finfo(maps.dtype).tiny
    unit = torch.where(dead, 0.0, quotient) / torch.where(dead, 1.0, norm)
    with torch.autocast(maps.device.type, enabled=False):
        cosines = unit @ unit.mT
    count = maps.shape[1]
    return cosines.triu(1).sum((1, 2)).mean() / max(count * (count - 1) / 2, 1)
