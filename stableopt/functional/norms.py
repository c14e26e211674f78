"""Norms of many tensors in one pass, right for every dtype, layout and magnitude."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def dense_values(tensor: Tensor) -> Tensor:
    """Return the stored values of ``tensor``: itself, or the values of a sparse tensor.

    Duplicate entries of an uncoalesced COO tensor are summed first, as every optimizer
    that accepts them does. ``tensor`` is not modified.

    Example:
        >>> import torch
        >>> i = torch.tensor([[0, 0]])
        >>> v = torch.tensor([3.0, 4.0])
        >>> dense_values(torch.sparse_coo_tensor(i, v, (2,), check_invariants=True)).tolist()
        [7.0]
    """
    if tensor.layout is torch.strided:
        return tensor
    if tensor.layout is torch.sparse_coo:
        return tensor.coalesce().values()
    return tensor.values()


def tensor_norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the 2-norm of each tensor, as 0-dim tensors of its own (real) dtype.

    One fused pass per device and dtype, in the dtype of the input, exactly as
    :func:`torch.nn.utils.get_total_norm` does it. A norm can therefore overflow to Inf on
    huge finite values (above about 1e19 in float32, 65504 in float16): see :func:`safe_norm`.

    Args:
        tensors: Dense tensors of any shape, real or complex.

    Cost:
        One read of every tensor; no host synchronisation.
    """
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, tensor in enumerate(tensors):
        groups.setdefault((tensor.device, tensor.dtype), []).append(i)
    if len(groups) == 1:
        return list(torch._foreach_norm(list(tensors)))
    norms: list[Tensor | None] = [None] * len(tensors)
    for members in groups.values():
        values = torch._foreach_norm([tensors[i] for i in members])
        for i, value in zip(members, values, strict=True):
            norms[i] = value
    return [norm for norm in norms if norm is not None]


def total_norm(norms: Sequence[Tensor]) -> Tensor:
    """Return the 2-norm of all tensors together, given the norm of each.

    Args:
        norms: 0-dim tensors, at least one; where dtypes or devices differ, the result is
            computed in the widest of them on the device of the first.

    Example:
        >>> total_norm([torch.tensor(3.0), torch.tensor(4.0)]).item()
        5.0
    """
    first = norms[0]
    if len({(norm.dtype, norm.device) for norm in norms}) > 1:
        dtype = first.dtype
        for norm in norms:
            dtype = torch.promote_types(dtype, norm.dtype)
        norms = [norm.to(device=first.device, dtype=dtype) for norm in norms]
    total: Tensor = torch.linalg.vector_norm(torch.stack(list(norms)))
    return total


def safe_norm(tensors: Sequence[Tensor]) -> float:
    """Return the 2-norm of all tensors together without overflow or underflow.

    Each tensor is divided by its largest magnitude before it is squared, in float64 where
    the device has it. Used only where :func:`total_norm` is not finite.

    Returns:
        The norm; NaN if any value is NaN, else Inf if any value is infinite.

    Cost:
        Three passes and one host synchronisation per tensor.

    Example:
        >>> safe_norm([torch.full((4,), 1e30)]) / 2e30 - 1 < 1e-6
        True
    """
    parts = []
    for tensor in tensors:
        if tensor.numel() == 0:
            continue
        magnitude = torch.view_as_real(tensor).abs() if tensor.is_complex() else tensor.abs()
        largest = float(magnitude.max())
        if largest == 0.0 or not math.isfinite(largest):
            parts.append(largest)
            continue
        wide = magnitude.to(widest_real(tensor.device))
        parts.append(largest * float(torch.linalg.vector_norm(wide / largest)))
    if any(math.isnan(part) for part in parts):
        return math.nan
    return math.hypot(*parts)


def widest_real(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on a device that has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def all_finite(tensor: Tensor) -> bool:
    """Return whether no value of ``tensor`` is NaN or infinite.

    Cost:
        One pass and one host synchronisation.
    """
    return bool(torch.isfinite(tensor).all())
