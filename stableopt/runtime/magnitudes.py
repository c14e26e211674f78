"""How large the values of a tensor may be."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


NARROW = 1e10
"""Above the largest number of float16 and of all eight-bit floats."""


def largest(dtype: torch.dtype) -> float:
    """Return the magnitude above which squares overflow; infinity for narrow dtypes."""
    numbers = torch.finfo(dtype).max if dtype.is_floating_point or dtype.is_complex else 0.0
    return math.sqrt(numbers) if numbers > NARROW else math.inf


def unmasked(table: Tensor) -> Tensor:
    """Return a tensor with zeros in place of ±Inf and the largest number, as masks have them."""
    sizes = table.abs()
    return torch.where(sizes >= torch.finfo(table.dtype).max, torch.zeros_like(table), table)
