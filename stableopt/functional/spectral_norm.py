"""The spectral norm by a few steps of Golub-Kahan-Lanczos, warm from the last visit."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from stableopt.functional.matrices import as_matrix, precisely

WARM_STEPS = 8
"""Lanczos steps where a vector of the last visit is known."""

COLD_STEPS = 12
"""Lanczos steps between two looks at a Ritz value that has to settle."""

SETTLED = 1e-5
"""Relative change of a Ritz value that counts as none."""

_RESTARTS = 8
_ROUNDING = 32.0
_KICK = 0.03
"""How much of the start is random: what grew orthogonal to the last vector must be seen."""


class SpectralNorm(NamedTuple):
    """What an estimate of the spectral norm is, and what the next one starts from.

    Attributes:
        sigma: The estimate, 0-dim, real; a lower bound. NaN if the matrix is not finite.
        vector: The right singular vector that belongs to it, ``(n,)``.
    """

    sigma: Tensor
    vector: Tensor


@precisely
def spectral_norm(
    weight: Tensor,
    vector: Tensor | None = None,
    *,
    steps: int = WARM_STEPS,
    generator: torch.Generator | None = None,
) -> SpectralNorm:
    """Estimate the largest singular value of ``weight``.

    With ``vector`` from an earlier visit, ``steps`` Lanczos steps with full
    reorthogonalisation start from it and a little noise; without one, as many as it takes for
    the Ritz value to settle. The estimate is never above the norm (up to rounding).

    Args:
        weight: ``(out, in)``, a convolution, or anything :func:`as_matrix` takes.
        vector: What an earlier call returned for a matrix of as many columns.
        steps: Of a warm estimate.
        generator: Of the noise; global random state is never consumed. ``None`` for a new
            one with a fixed seed.

    Returns:
        The estimate, and the vector for the next visit.

    Raises:
        ValueError: ``weight`` is no matrix.

    Cost:
        ``4·steps·m·n`` flops warm: 32 m n. Scales from 1e-30 to 1e30 are safe. No host
        synchronisation warm, one per twelve steps cold.

    Reference:
        Golub & Kahan, "Calculating the singular values and pseudo-inverse of a matrix", 1965.

    Example:
        >>> estimate = spectral_norm(torch.diag(torch.tensor([3.0, 1.0, 2.0])))
        >>> round(estimate.sigma.item(), 4)
        3.0
    """
    matrix = as_matrix(weight)
    noise = unit_noise(matrix, generator)
    if matrix.numel() == 0:
        return SpectralNorm(noise.new_zeros((), dtype=_real(matrix)), noise)
    product, scale = scaled_product(matrix)
    rank = min(matrix.shape)
    if vector is None:
        sigma, found = settled_norm(product, noise, rank)
    else:
        start = warm_start(vector, noise)
        sigma, found = _top(bidiagonalize(product, start, min(steps, rank + 1)))
    return SpectralNorm(sigma.to(scale.dtype) * scale, found)


class LinearMap(NamedTuple):
    """A matrix that is known by what it does.

    Attributes:
        apply: Multiplies it with a vector.
        adjoint: Multiplies its conjugate transpose with a vector.
    """

    apply: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]


def scaled_product(matrix: Tensor) -> tuple[LinearMap, Tensor]:
    """Return the map ``matrix / scale``, and its largest magnitude as that scale.

    Args:
        matrix: ``(m, n)``, not empty.

    Returns:
        The map, and the scale, 0-dim, above 0; NaN for a matrix that is not finite.

    Cost:
        One pass; no host synchronisation.
    """
    if matrix.is_complex():
        largest = matrix.abs().amax()
    else:
        low, high = torch.aminmax(matrix)
        largest = torch.maximum(-low, high)
    # Nothing is divided by a subnormal number, whose reciprocal overflows.
    scale = largest.clamp(min=torch.finfo(largest.dtype).tiny)
    scale = torch.where(torch.isfinite(scale), scale, torch.full_like(scale, torch.nan))
    return LinearMap(lambda x: matrix @ (x / scale), lambda y: matrix.mH @ (y / scale)), scale


def settled_norm(product: LinearMap, start: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the norm of ``product`` once its Ritz value has settled, and its vector.

    Args:
        product: The map.
        start: A unit vector with some of everything in it.
        rank: The smaller dimension.

    Cost:
        At most ``24·9`` applications, and a host synchronisation for every 24.
    """
    steps = min(COLD_STEPS, rank + 1)
    sigma, found = _top(bidiagonalize(product, start, steps))
    for _ in range(_RESTARTS):
        before = sigma
        sigma, found = _top(bidiagonalize(product, _unit(found + 1e-3 * start), steps))
        if not bool((sigma - before).abs() > SETTLED * sigma.abs()):
            break
    return sigma, found


class Bidiagonal(NamedTuple):
    """What a few Lanczos steps leave: a small bidiagonal matrix, and the basis it is in.

    Attributes:
        diagonal: ``(k,)``.
        above: ``(k - 1,)``.
        rights: ``(k, n)``, orthonormal rows.
    """

    diagonal: Tensor
    above: Tensor
    rights: Tensor


def bidiagonalize(product: LinearMap, start: Tensor, steps: int) -> Bidiagonal:
    """Take Golub-Kahan-Lanczos steps with full reorthogonalisation.

    Args:
        product: The map.
        start: A unit vector, ``(n,)``.
        steps: k, at least 1.

    Cost:
        2 k applications; no host synchronisation.
    """
    rights = start.new_zeros(steps, len(start))
    rights[0] = start
    left = product.apply(start)
    lefts = left.new_zeros(steps, len(left))
    diagonal, above = list[Tensor](), list[Tensor]()
    for k in range(steps):
        left, alpha = _normalized(_against(left, lefts[:k]))
        lefts[k] = left
        diagonal.append(alpha)
        if k + 1 == steps:
            break
        right, beta = _normalized(_against(product.adjoint(left), rights[: k + 1]))
        rights[k + 1] = right
        above.append(beta)
        left = product.apply(right) - beta * left
    return Bidiagonal(
        torch.stack(diagonal), torch.stack(above) if above else diagonal[0].new_zeros(0), rights
    )


def top_ritz(diagonal: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest singular value of a small bidiagonal matrix, and its right vector.

    Args:
        diagonal: ``(k,)``, real.
        above: ``(k - 1,)``, real.

    Returns:
        0-dim and ``(k,)``, float64. NaN, and a vector of zeros, if they are not finite.
    """
    steps = len(diagonal)
    chain = torch.zeros(2 * steps - 1, dtype=torch.float64, device=diagonal.device)
    chain[::2], chain[1::2] = diagonal.double(), above.double()
    # Where the chain ends in rounding the space is used up: what follows it means nothing.
    least = _ROUNDING * torch.finfo(diagonal.dtype).eps * chain.cummax(0).values
    chain = torch.where((chain > least).cumprod(0).bool(), chain, torch.zeros_like(chain))
    small = torch.diag(chain[::2])
    if steps > 1:
        small = small + torch.diag(chain[1::2], 1)
    _, values, vectors = torch.linalg.svd(small)
    finite = torch.isfinite(diagonal[0])
    value = torch.where(finite, values[0], torch.full_like(values[0], torch.nan))
    return value, torch.where(finite, vectors[0], torch.zeros_like(vectors[0]))


def right_vector(rights: Tensor, coefficients: Tensor) -> Tensor:
    """Return the unit vector with those coefficients in the basis ``rights``.

    Args:
        rights: ``(k, n)``.
        coefficients: ``(k,)``, real, on any device.
    """
    if rights.is_cuda and not coefficients.is_cuda:
        coefficients = coefficients.pin_memory()  # else the host would wait for the copy
    share = coefficients.to(device=rights.device, non_blocking=True).to(rights.dtype)
    return _unit(torch.nan_to_num(share @ rights))


def warm_start(vector: Tensor, noise: Tensor) -> Tensor:
    """Return where a warm estimate starts: the last vector, and a little of everything else."""
    return _unit(vector.to(noise) + _KICK * noise)


def unit_noise(matrix: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return a random unit vector ``(n,)``, drawn on the CPU so that it is the same everywhere.

    Args:
        matrix: ``(m, n)``; gives size, dtype and device.
        generator: Of the CPU; ``None`` for a new one with a fixed seed.
    """
    source = torch.Generator("cpu").manual_seed(0) if generator is None else generator
    drawn = torch.randn(matrix.shape[1], generator=source, dtype=torch.float32, device="cpu")
    if matrix.is_cuda:
        drawn = drawn.pin_memory()
    return _unit(drawn.to(device=matrix.device, non_blocking=True).to(matrix.dtype))


def _top(found: Bidiagonal) -> tuple[Tensor, Tensor]:
    sigma, coefficients = top_ritz(found.diagonal, found.above)
    return sigma, right_vector(found.rights, coefficients)


def _against(vector: Tensor, basis: Tensor) -> Tensor:
    """Make ``vector`` orthogonal to the rows of ``basis``; twice is enough (Kahan, Parlett)."""
    if len(basis):
        for _ in range(2):
            vector = torch.addmv(vector, basis.mT, torch.mv(basis.conj(), vector), alpha=-1)
    return vector


def _normalized(vector: Tensor) -> tuple[Tensor, Tensor]:
    norm = torch.linalg.vector_norm(vector)
    return vector / norm.clamp(min=torch.finfo(norm.dtype).tiny), norm


def _unit(vector: Tensor) -> Tensor:
    return _normalized(vector)[0]


def _real(matrix: Tensor) -> torch.dtype:
    return matrix.real.dtype if matrix.is_complex() else matrix.dtype
