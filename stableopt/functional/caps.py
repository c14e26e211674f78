"""Matrices whose largest singular values are brought down, and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

from stableopt.functional.matrices import normalized, precisely

_ROOM = 1e-5
"""How far above a bound a norm may be before anything is done: rounding must not repeat it."""

_STEEP = 1e5
"""How far above a bound a norm may be for a Gram matrix to resolve what is near the bound."""


@precisely
def fast_cap(
    matrix: Tensor, limit: float, basis: Tensor, *, only_above: float | None = None
) -> Tensor:
    r"""Cap the singular values that a matrix has within a subspace.

    With orthonormal columns :math:`V` and :math:`W V = U S Q^\top`, returns
    :math:`W' = W - U\,\mathrm{diag}\big((S - c)_+\big)\,Q^\top V^\top`. Whatever :math:`V` is, no
    singular value rises, and :math:`W'` is no farther from :math:`W` than the nearest matrix of
    norm :math:`c`. If :math:`V` contains the leading right singular vectors, it is that matrix.

    Args:
        matrix: ``(m, n)``, float32 or float64, finite.
        limit: c, above 0.
        basis: ``(k, n)``, orthonormal rows: Vᵀ.
        only_above: The norm from which on anything is done; the limit if not given.

    Returns:
        The capped matrix; ``matrix`` itself where nothing is above by more than 1e-5.

    Cost:
        4 k m n flops, one host synchronisation.

    Example:
        >>> fast_cap(torch.diag(torch.tensor([4.0, 1.0])), 2.0, torch.eye(2)).diagonal().tolist()
        [2.0, 1.0]
    """
    if matrix.numel() == 0 or basis.numel() == 0:
        return matrix
    product = (matrix @ basis.mH).to(_wide(matrix))
    left, values, right = torch.linalg.svd(product, full_matrices=False)
    above = values - limit
    if not _is_above(values[0], limit, only_above):
        return matrix
    share = left * above.clamp(min=0)
    capped: Tensor = matrix - share.to(matrix.dtype) @ (right.to(matrix.dtype) @ basis)
    return capped


@precisely
def exact_cap(matrix: Tensor, limit: float, *, only_above: float | None = None) -> Tensor:
    r"""Return the nearest matrix whose spectral norm is at most ``limit``.

    :math:`W' = U \min(S, c)\,V^\top`, by an eigendecomposition of the smaller Gram matrix in
    float64: :math:`W' = W\,Q\,\mathrm{diag}(\min(1, c/\sigma))\,Q^\top`. Where the norm is more
    than 1e5 times the limit, whose square is lost in the Gram matrix, by a full decomposition.

    Args:
        matrix: ``(m, n)``, finite.
        limit: c, above 0.
        only_above: The norm from which on anything is done; the limit if not given.

    Returns:
        The capped matrix in its dtype; ``matrix`` itself where nothing is above by more than 1e-5.

    Cost:
        A product and an eigendecomposition of ``min(m, n)`` rows in float64, one host
        synchronisation.

    Reference:
        Sedghi, Gupta, Long, "The Singular Values of Convolutional Layers", 2019,
        arXiv:1805.10408 (the projection).

    Example:
        >>> exact_cap(torch.diag(torch.tensor([4.0, 1.0])), 2.0).diagonal().tolist()
        [2.0, 1.0]
    """
    return exact_cap_and_norm(matrix, limit, only_above=only_above)[0]


@precisely
def exact_cap_and_norm(
    matrix: Tensor, limit: float, *, only_above: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return what :func:`exact_cap` does, and the spectral norm before, which it knows anyway.

    Example:
        >>> exact_cap_and_norm(torch.diag(torch.tensor([4.0, 1.0])), 2.0)[1].item()
        4.0
    """
    if matrix.numel() == 0:
        return matrix, matrix.new_zeros(())
    quotient, scale = normalized(matrix)
    wide = matrix.shape[0] < matrix.shape[1]
    gram = quotient @ quotient.mH if wide else quotient.mH @ quotient
    squares, vectors = torch.linalg.eigh(gram)
    values = squares.clamp(min=0).sqrt() * scale
    if not _is_above(values[-1], limit, only_above):
        return matrix, values[-1]
    if values[-1] > _STEEP * limit:
        left, found, right = torch.linalg.svd(quotient, full_matrices=False)
        steep: Tensor = (left * (found * scale).clamp(max=limit)) @ right
        return steep.to(matrix.dtype), values[-1]
    # Only what is above the limit is touched; what is below keeps its bits as far as it can.
    top = values > limit
    found, excess = vectors[:, top], 1 - limit / values[top]
    if wide:
        change = (found * excess) @ (found.mH @ quotient)
    else:
        change = (quotient @ found * excess) @ found.mH
    capped: Tensor = ((quotient - change) * scale).to(matrix.dtype)
    return capped, values[-1]


@precisely
def soft_cap(matrix: Tensor, sigma: Tensor | float, strength: float = 1 / 3) -> Tensor:
    r"""Flatten the spectrum of a matrix by one cubic step.

    :math:`W' = W - \frac{\beta}{\sigma_1^2} W W^\top W`: each singular value becomes
    :math:`\sigma\,(1 - \beta \sigma^2 / \sigma_1^2)`. None rises, their order stays, and the
    condition number falls by up to :math:`1 - \beta`; small ones hardly move.

    Args:
        matrix: ``(m, n)``, finite.
        sigma: Its spectral norm, or an upper bound of it; above 0.
        strength: β, above 0 and at most 1/3, beyond which the order would not stay.

    Raises:
        ValueError: ``strength`` is out of range.

    Cost:
        ``4·m·n·min(m, n)`` flops.

    Reference:
        The first step of the Newton-Schulz iteration: Björck & Bowie, "An iterative algorithm
        for computing the best estimate of an orthogonal matrix", 1971.

    Example:
        >>> flat = soft_cap(torch.diag(torch.tensor([3.0, 0.3])), 3.0)
        >>> [round(value, 4) for value in flat.diagonal().tolist()]
        [2.0, 0.299]
    """
    if not 0 < strength <= 1 / 3:
        raise ValueError(
            f"strength={strength!r} must be above 0 and at most 1/3, or the largest singular value "
            "would fall below others"
        )
    quotient = matrix / sigma
    if matrix.shape[0] < matrix.shape[1]:
        cube = (quotient @ quotient.mH) @ quotient
    else:
        cube = quotient @ (quotient.mH @ quotient)
    return matrix - cube * (sigma * strength)


def _is_above(norm: Tensor, limit: float, only_above: float | None) -> bool:
    return bool(norm > (limit if only_above is None else only_above) * (1 + _ROOM))


def _wide(matrix: Tensor) -> torch.dtype:
    if matrix.device.type == "mps":
        return matrix.dtype
    return torch.complex128 if matrix.is_complex() else torch.float64
