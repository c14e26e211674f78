"""How far many tensors are from others, and how to go only a part of the way."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stableopt.functional.norms import tensor_norms


def distances(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    """Return ‖aᵢ − bᵢ‖₂ for each pair, as 0-dim tensors in the dtype of the pair.

    Args:
        tensors: aᵢ, dense, of any shapes, dtypes and devices.
        others: bᵢ, like them.

    Cost:
        One read of both; on accelerators also memory for the differences. No host
        synchronisation.

    Example:
        >>> [float(d) for d in distances([torch.tensor([3.0, 1.0])], [torch.tensor([0.0, 5.0])])]
        [5.0]
    """
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return [torch.dist(a, b) for a, b in zip(tensors, others, strict=True)]
    return tensor_norms(torch._foreach_sub(list(tensors), list(others)))


def stay_within(tensor: Tensor, start: Tensor, share: float) -> None:
    """Move ``tensor`` back towards ``start``, in place, to a share of its way from there.

    However long the way was, what is left of it is right to the last bits: it is measured from
    the start, not from the end.

    Args:
        tensor: Where the way ended.
        start: Where it began.
        share: Of it, in [0, 1/2) where it was long; from there on rounding is that of the end.

    Cost:
        Two reads, one write.

    Example:
        >>> end = torch.tensor([1e20, 1.0])
        >>> stay_within(end, torch.tensor([1.0, 1.0]), 1e-20)
        >>> end.tolist()
        [2.0, 1.0]
    """
    torch.lerp(start, tensor, share, out=tensor)
