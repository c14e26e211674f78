"""Norms inside a forward pass: no overflow, and a gradient wherever there is a value."""

from __future__ import annotations

import torch
from torch import Tensor


def require_floating(name: str, tensor: Tensor) -> None:
    """Raise ``ValueError`` unless ``tensor`` has a real floating dtype."""
    if not tensor.is_floating_point():
        raise ValueError(f"{name}.dtype={tensor.dtype} must be a real floating dtype")


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in float32, or in float64 if it has that."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def scaled(tensor: Tensor, dim: int | tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return ``tensor`` over its largest magnitude along ``dim``, and that magnitude.

    Squares of the quotient stay in range. The magnitude is a constant to autograd: for whatever
    is homogeneous in ``tensor`` the gradient is the right one all the same.

    Args:
        tensor: Of at least 32 bits and at least one value along ``dim``.
        dim: What is reduced; kept with size 1 in the magnitude.

    Returns:
        The quotient, and the magnitude: 1 where it is below the smallest normal number, so that
        dividing by it is harmless.
    """
    largest = tensor.detach().abs().amax(dim, keepdim=True)
    tiny = torch.finfo(tensor.dtype).tiny
    scale = torch.where(largest >= tiny, largest, torch.ones_like(largest))
    return tensor / scale, scale


def root(square: Tensor) -> Tensor:
    """Return √square, with the gradient zero where ``square`` is zero or, by rounding, below."""
    zero = square <= 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


def smooth_norm(tensor: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Return the 2-norm along ``dim``, kept with size 1; its gradient at zero is zero.

    :func:`torch.linalg.vector_norm` adds up float32 one by one on the CPU, and is off by 1% for
    16 million equal values; a sum goes by pairs, and is off by 4e-7.
    """
    return root((tensor * tensor).sum(dim, keepdim=True))
