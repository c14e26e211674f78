"""How large the values of a tensor may be."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def largest(dtype: torch.dtype) -> float:
    """Return the magnitude above which squares overflow; float16 overflows by itself first."""
    return math.inf if dtype is torch.float16 else math.sqrt(torch.finfo(dtype).max)


def unmasked(table: Tensor) -> Tensor:
    """Return a table without what is there to rule something out: ±Inf, or the largest number."""
    sizes = table.abs()
    return torch.where(sizes >= torch.finfo(table.dtype).max, torch.zeros_like(table), table)
