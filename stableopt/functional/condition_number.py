"""The condition number, by Lanczos steps on the inverse; and whether it is above a limit."""

from __future__ import annotations

import torch
from torch import Tensor

from stableopt.functional.matrices import as_matrix, normalized, precisely, singular_values
from stableopt.functional.spectral_norm import LinearMap, settled_norm, spectral_norm

_EXACT_BELOW = 8


@precisely
def condition_number(weight: Tensor) -> Tensor:
    """Return σ_max / σ_min over the smaller dimension; Inf for a singular matrix.

    Singular is what is singular up to rounding in float64: σ_min below max(m, n) ε σ_max.

    σ_min is the reciprocal of the spectral norm of the inverse: Lanczos steps that solve with
    the triangle of a QR decomposition. Methods that only multiply saturate at a fraction of
    the answer.

    Args:
        weight: ``(out, in)``, or anything :func:`~stableopt.functional.as_matrix` takes.

    Returns:
        0-dim float64; NaN for a matrix that is zero, empty or not finite.

    Cost:
        One QR decomposition in float64, and some dozens of triangular solutions.

    Reference:
        Golub & Van Loan, "Matrix Computations", 4th edition, 5.4.

    Example:
        >>> condition_number(torch.diag(torch.tensor([8.0, 4.0, 2.0]))).item()
        4.0
    """
    matrix = as_matrix(weight)
    least = max(matrix.shape) * torch.finfo(torch.float64).eps
    if min(matrix.shape) < _EXACT_BELOW:
        return _exact(singular_values(matrix), least)
    quotient, largest = normalized(matrix)
    if not bool(torch.isfinite(largest)) or not bool(largest > 0):
        return torch.full_like(largest, torch.nan)
    tall = quotient if matrix.shape[0] >= matrix.shape[1] else quotient.mH
    _, triangle = torch.linalg.qr(tall, mode="r")
    smallest = _smallest(triangle)
    norm = spectral_norm(triangle).sigma
    if not bool(smallest > least * norm):
        return torch.full_like(largest, torch.inf)
    return norm / smallest


@precisely
def condition_exceeds(weight: Tensor, limit: float) -> Tensor:
    """Return whether the condition number is above ``limit``, without computing it.

    κ > C if and only if WᵀW - (σ₁/C)² I is not positive definite, which a Cholesky
    decomposition in float64 answers. Right while C is below about 10⁷.

    Args:
        weight: ``(out, in)``, or anything :func:`~stableopt.functional.as_matrix` takes.
        limit: C; above 1.

    Returns:
        0-dim bool; False for a matrix that is zero, empty or not finite (its condition number
        is undefined: look at :func:`condition_number`).

    Raises:
        ValueError: ``limit`` is not above 1.

    Cost:
        A Gram matrix and a Cholesky decomposition of the smaller dimension, in float64.

    Example:
        >>> condition_exceeds(torch.diag(torch.tensor([8.0, 2.0])), 5.0).item()
        False
    """
    if not limit > 1:
        raise ValueError(f"limit={limit} must be above 1: no condition number is below it")
    matrix = as_matrix(weight)
    quotient, largest = normalized(matrix)
    if matrix.numel() == 0 or not bool(torch.isfinite(largest)) or not bool(largest > 0):
        return torch.zeros((), dtype=torch.bool, device=matrix.device)
    tall = quotient if matrix.shape[0] >= matrix.shape[1] else quotient.mH
    gram = tall.mH @ tall
    bound = spectral_norm(gram).sigma / limit**2
    shifted = gram - bound * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    failed: Tensor = torch.linalg.cholesky_ex(shifted).info > 0
    return failed


def _smallest(triangle: Tensor) -> Tensor:
    """Return the smallest singular value of an upper triangle; 0 if it is singular."""
    if bool((triangle.diagonal() == 0).any()):
        return torch.zeros((), dtype=torch.float64, device=triangle.device)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(triangle), 1, generator=generator, dtype=torch.float64).to(triangle)
    inverse = LinearMap(
        lambda x: torch.linalg.solve_triangular(triangle, x[:, None], upper=True)[:, 0],
        lambda y: torch.linalg.solve_triangular(triangle.mH, y[:, None], upper=False)[:, 0],
    )
    start = noise[:, 0] / torch.linalg.vector_norm(noise)
    return 1 / settled_norm(inverse, start, len(triangle))[0]


def _exact(values: Tensor, least: float) -> Tensor:
    if values.numel() == 0:
        return torch.full((), torch.nan, dtype=torch.float64)
    undefined, singular = (torch.full_like(values[0], v) for v in (torch.nan, torch.inf))
    ratio = torch.where(values[-1] > least * values[0], values[0] / values[-1], singular)
    return torch.where(values[0] > 0, ratio, undefined)
