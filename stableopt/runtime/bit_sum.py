"""Checksums of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bit_sum(tensor: Tensor) -> Tensor:
    """Return the sum of all values, read as integers, modulo the size of an integer.

    Any flip of a single bit changes it, and so does nearly every other change; whole words that
    have changed places do not. Equal bits in equal strides give equal sums.

    Args:
        tensor: Strided, of any dtype and shape.

    Returns:
        A 0-dim int64 tensor on its device.

    Cost:
        One read of the tensor, about half as long as its 2-norm; no host synchronisation.
    """
    values = tensor.detach()
    if values.is_complex():
        values = torch.view_as_real(values)
    size, offset = values.itemsize, values.storage_offset() * values.itemsize
    if values.is_contiguous() and values.numel() * size % 8 == 0 and offset % 8 == 0:
        return values.view(-1).view(torch.int64).sum()
    integers = values.view(_INTEGERS[size])
    return integers.sum(dtype=integers.dtype if size >= 4 else torch.int64).to(torch.int64)
