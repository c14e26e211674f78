"""A weight as a matrix that can be decomposed, and how that is done in its dtype."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

_P = ParamSpec("_P")
_R = TypeVar("_R")


def precisely(measure: Callable[_P, _R]) -> Callable[_P, _R]:
    """Have ``measure`` compute in the dtypes it was written for: out of reach of autocast."""

    @functools.wraps(measure)
    def measured(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with ExitStack() as stack:
            for kind in {"cpu", *(a.device.type for a in args if isinstance(a, Tensor))}:
                stack.enter_context(torch.autocast(kind, enabled=False))
            return measure(*args, **kwargs)

    return measured


def as_matrix(weight: Tensor) -> Tensor:
    """Return ``weight`` as a matrix ``(out, in)`` in a dtype that can be decomposed.

    A convolution ``(out, in, kh, kw)`` becomes ``(out, in·kh·kw)``. The spectral norm of that
    matrix is below the norm of the convolution as an operator, by at most the square root of
    ``kh·kw`` (Singla & Feizi, arXiv:1911.10258). Dtypes of less than 32 bits become
    float32.

    Args:
        weight: Of at least two dimensions, real or complex floating.

    Returns:
        A detached matrix; a view of ``weight`` where its dtype and strides allow it.

    Raises:
        ValueError: ``weight`` has fewer dimensions, or no floating dtype.

    Example:
        >>> as_matrix(torch.zeros(8, 3, 5, 5)).shape
        torch.Size([8, 75])
    """
    if weight.dim() < 2:
        raise ValueError(
            f"weight.dim()={weight.dim()} must be at least 2: a vector has no spectrum; "
            "leave it out"
        )
    if not (weight.is_floating_point() or weight.is_complex()):
        raise ValueError(f"weight.dtype={weight.dtype} must be a floating or complex dtype")
    matrix = weight.detach().flatten(1)
    if torch.finfo(matrix.dtype).bits >= 32:
        return matrix
    return matrix.to(torch.complex64 if matrix.is_complex() else torch.float32)


def normalized(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``matrix`` divided by its largest magnitude, and that magnitude.

    Squares of values beyond 1e±19 leave the range of float32; those of the quotient do not.

    Returns:
        The quotient in float64 (complex128), and the magnitude, 0-dim, real float64. The
        quotient of a zero or an empty matrix is zero, that of one with a NaN or an Inf is NaN.

    Cost:
        Two passes and a copy in float64.
    """
    wide = matrix.to(torch.complex128 if matrix.is_complex() else torch.float64)
    if matrix.numel() == 0:
        return wide, torch.zeros((), dtype=torch.float64, device=matrix.device)
    largest = wide.abs().amax()
    quotient = torch.where(largest > 0, wide / largest, torch.zeros_like(wide))
    return torch.where(torch.isfinite(largest), quotient, torch.full_like(wide, torch.nan)), largest


@precisely
def singular_values(matrix: Tensor) -> Tensor:
    """Return all singular values in float64, largest first; NaN if the matrix is not finite.

    The exact tier: a full decomposition, right at every scale.

    Args:
        matrix: As :func:`as_matrix` returns it.

    Cost:
        O(m n min(m, n)) in float64.

    Example:
        >>> singular_values(torch.tensor([[0.0, 2.0], [1e-30, 0.0]]))[0].item()
        2.0
    """
    quotient, largest = normalized(matrix)
    count = min(matrix.shape)
    undefined = torch.full((count,), torch.nan, dtype=torch.float64, device=matrix.device)
    if count == 0 or not bool(torch.isfinite(largest)):
        return undefined
    # Tall is several times faster than wide.
    tall = quotient if matrix.shape[0] >= matrix.shape[1] else quotient.mH
    values: Tensor = torch.linalg.svdvals(tall) * largest
    return values
