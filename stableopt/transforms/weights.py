"""What a weight must be to be measured and scaled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def has_norm(weight: Tensor) -> bool:
    """Tell whether a weight has a norm: it is no integer, and every entry is there."""
    floating = weight.is_floating_point() or weight.is_complex()
    return floating and weight.layout is torch.strided


def has_matrix(weight: Tensor) -> bool:
    """Tell whether a weight can be taken for a matrix."""
    plain = type(weight.data) is torch.Tensor and has_norm(weight)
    return weight.dim() > 1 and weight.numel() > 0 and plain
