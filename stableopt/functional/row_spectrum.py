"""What the rows of a weight have in common: one small Gram matrix, four quantities."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from stableopt.functional.matrices import as_matrix, precisely
from stableopt.functional.rank import effective_rank_of

SAMPLED_ROWS = 128
"""Rows that a sample has: log effective rank then varies by 0.3 to 0.5% between samples."""


class RowSpectrum(NamedTuple):
    """The quantities of one Gram matrix of rows; each 0-dim float64, or ``(...)`` for a batch.

    Attributes:
        effective_rank: Of the rows, between 1 and their number; falls when the spectrum decays.
        kappa_p10: σ₁ over the 10% quantile of the singular values; Inf where rounding hides that.
        redundancy: n times the mean squared cosine between two rows: 1 for independent ones,
            n for rows that are all alike.
        fiedler_value: Algebraic connectivity of the rows' graph; falls when they form clusters.
    """

    effective_rank: Tensor
    kappa_p10: Tensor
    redundancy: Tensor
    fiedler_value: Tensor


@precisely
def row_spectrum(weight: Tensor, rows: int | None = SAMPLED_ROWS, *, seed: int = 0) -> RowSpectrum:
    """Return effective rank, κ_p10, redundancy and Fiedler value of a sample of the rows.

    Args:
        weight: ``(out, in)``, or anything :func:`~stableopt.functional.as_matrix` takes.
        rows: How many are sampled, without replacement; ``None`` for all of them.
        seed: The same one samples the same rows.

    Returns:
        0-dim float64 on the CPU. NaN where a quantity is undefined: in a matrix that is zero,
        empty or not finite, and with fewer than two rows that are not zero for the last two.

    Raises:
        ValueError: ``weight`` is no matrix, or ``rows`` is below 1.

    Cost:
        With p rows of length n: p² n flops for the Gram matrix, an eigenvalue problem of size
        p in float64, twice. One pass over the weight. One host synchronisation.

    Reference:
        Roy & Vetterli 2007 (effective rank); Chung, "Spectral Graph Theory", 1997, chapter 1.

    Example:
        >>> round(row_spectrum(torch.eye(6)).effective_rank.item(), 6)
        6.0
    """
    matrix = as_matrix(weight)
    chosen = sample_rows(matrix.shape[0], rows, seed=seed)
    if chosen is None:
        return spectrum_of_gram(row_gram(matrix).cpu(), matrix.shape[1])
    gram = row_gram(matrix[chosen.to(matrix.device)])
    # A NaN in a row that is not in the sample is one in the matrix.
    gram = torch.where(torch.isfinite(matrix).all(), gram, torch.full_like(gram, math.nan))
    return spectrum_of_gram(gram.cpu(), matrix.shape[1])


@precisely
def fiedler_value(weight: Tensor) -> Tensor:
    """Return the algebraic connectivity of the rows, joined by the magnitude of their cosines.

    The second eigenvalue of the normalised Laplacian I - D^(-1/2) A D^(-1/2), with A = |cosine|
    and a zero diagonal: between 0 (the rows fall into clusters that know nothing of each
    other) and p / (p - 1) for the p rows that are joined to another. Independent of the scale of
    any row; rows that are zero, or in float32 below 1e-19 of the largest, have no part in it.
    It does not see a collapse to one direction, in which everything is connected: read it
    beside redundancy and effective rank.

    Args:
        weight: ``(out, in)``, or anything :func:`~stableopt.functional.as_matrix` takes.

    Returns:
        0-dim float64; NaN if not finite, or if no two rows are joined: all but one are zero,
        or every pair is orthogonal to the last bit. A row that stands alone is left out.

    Cost:
        O(p² n + p³) for p rows of length n; :func:`row_spectrum` takes a sample.

    Reference:
        Fiedler, "Algebraic connectivity of graphs", 1973; Chung 1997.

    Example:
        >>> pairs = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> abs(fiedler_value(pairs).item()) < 1e-12
        True
    """
    matrix = as_matrix(weight)
    return _fiedler(_cosines(row_gram(matrix).cpu())[0])


@precisely
def redundancy(weight: Tensor) -> Tensor:
    """Return n times the mean squared cosine between two different rows of length n.

    1 for independent rows, 0 for orthogonal ones, n for rows that are all alike.

    Args:
        weight: ``(out, in)``, or anything :func:`~stableopt.functional.as_matrix` takes.

    Returns:
        0-dim float64; NaN with fewer than two rows that are not zero, or if not finite.

    Cost:
        O(p² n) for p rows of length n.

    Example:
        >>> round(redundancy(torch.ones(3, 5)).item(), 6)
        5.0
    """
    matrix = as_matrix(weight)
    return _redundancy(*_cosines(row_gram(matrix).cpu()), matrix.shape[1])


@precisely
def kappa_p10(weight: Tensor) -> Tensor:
    """Return σ₁ over the 10% quantile of the singular values.

    What a condition number is used for, without its noise: a Gaussian square has a σ_min that
    is anything between 0 and 1/√n, and a 10% quantile that is known to within some percent.

    Args:
        weight: ``(out, in)``, or anything :func:`~stableopt.functional.as_matrix` takes.

    Returns:
        0-dim float64, at least 1; NaN if the matrix is zero, empty or not finite. What lies
        below √(8 ε) σ₁ is rounding of the Gram matrix and counts as zero, so that values of
        about 1,000 in float32 and more mean at least that, and Inf is one of them.

    Cost:
        O(p² n + p³) for p rows of length n.

    Example:
        >>> kappa_p10(torch.diag(torch.tensor([4.0, 2.0, 2.0]))).item()
        2.0
    """
    matrix = as_matrix(weight)
    return _kappa_p10(_values(row_gram(matrix).cpu(), matrix.shape[1]))


def sample_rows(count: int, rows: int | None, *, seed: int = 0) -> Tensor | None:
    """Return the sorted indices of a random sample; ``None`` if it is all of them.

    Args:
        count: Rows there are.
        rows: How many are wanted; ``None`` for all.
        seed: Of a generator of its own, on the CPU: the same rows everywhere.

    Raises:
        ValueError: ``rows`` is below 1.
    """
    if rows is not None and rows < 1:
        raise ValueError(f"rows={rows} must be at least 1, or None for all of them")
    if rows is None or count <= rows:
        return None
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randperm(count, generator=generator, device="cpu")[:rows].sort().values


def row_gram(rows: Tensor) -> Tensor:
    """Return the Gram matrix of ``rows``, divided by the square of their largest magnitude.

    Args:
        rows: ``(..., p, n)``, real or complex floating of at least 32 bits.

    Returns:
        ``(..., p, p)`` in the dtype of ``rows``; NaN where ``rows`` are not finite. No host
        synchronisation.
    """
    if rows.numel() == 0:
        return rows.new_zeros((*rows.shape[:-1], rows.shape[-2]))
    largest = rows.abs().amax(dim=(-2, -1), keepdim=True)
    scaled = rows / torch.where(largest > 0, largest, torch.ones_like(largest))
    gram = scaled @ scaled.mH
    finite = torch.isfinite(largest)
    return torch.where(finite, gram, torch.full_like(gram, math.nan))


def spectrum_of_gram(gram: Tensor, columns: int) -> RowSpectrum:
    """Return the four quantities of one Gram matrix, or of a batch.

    Args:
        gram: ``(..., p, p)``, as :func:`row_gram` returns it.
        columns: n, the length of the rows.

    Cost:
        Two eigenvalue problems of size p in float64.
    """
    values = _values(gram, columns)
    cosines, live = _cosines(gram)
    return RowSpectrum(
        effective_rank=effective_rank_of(values),
        kappa_p10=_kappa_p10(values),
        redundancy=_redundancy(cosines, live, columns),
        fiedler_value=_fiedler(cosines),
    )


def _values(gram: Tensor, columns: int) -> Tensor:
    """Return the singular values of the rows, largest first; NaN if they are not finite."""
    count = min(gram.shape[-1], columns)
    wide = gram.to(torch.complex128 if gram.is_complex() else torch.float64)
    finite = torch.isfinite(wide).all(-1, keepdim=True).all(-2, keepdim=True)
    squares = torch.linalg.eigvalsh(torch.where(finite, wide, torch.zeros_like(wide)))
    squares = squares.flip(-1)[..., :count]
    # What rounding leaves of a zero in the Gram matrix is no singular value.
    noise = 8 * torch.finfo(gram.dtype).eps
    if count:
        squares = torch.where(squares > noise * squares[..., :1], squares, 0.0)
    values = squares.clamp(min=0).sqrt()
    return torch.where(finite[..., 0], values, torch.full_like(values, math.nan))


def _cosines(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return |cosine| of the rows with a zero diagonal, and which rows are not zero."""
    wide = gram.to(torch.complex128 if gram.is_complex() else torch.float64)
    squares = wide.diagonal(dim1=-2, dim2=-1).real
    # The square of a shorter row has lost its digits to underflow, and its cosines with them.
    live = (squares > torch.finfo(gram.dtype).tiny) | torch.isnan(squares)
    lengths = torch.where(live, squares, torch.ones_like(squares)).sqrt()
    cosines = wide.abs() / (lengths[..., :, None] * lengths[..., None, :])
    # A product in float32 is symmetric but for its rounding.
    cosines = ((cosines + cosines.mT) / 2).clamp(max=1.0)
    hidden = torch.eye(gram.shape[-1], dtype=torch.bool, device=gram.device)
    hidden = hidden | ~live[..., :, None] | ~live[..., None, :]
    return torch.where(hidden, torch.zeros_like(cosines), cosines), live


def _kappa_p10(values: Tensor) -> Tensor:
    if values.numel() == 0:
        return values.new_full(values.shape[:-1], math.nan)
    largest = values[..., 0]
    tenth = torch.quantile(values, 0.1, dim=-1)
    return torch.where(largest > 0, largest / tenth, torch.full_like(largest, math.nan))


def _redundancy(cosines: Tensor, live: Tensor, columns: int) -> Tensor:
    count = live.sum(-1)
    pairs = count * (count - 1)
    mean = (cosines * cosines).sum((-2, -1)) / pairs.clamp(min=1)
    return torch.where(pairs > 0, columns * mean, torch.full_like(mean, math.nan))


def _fiedler(cosines: Tensor) -> Tensor:
    """Return the second eigenvalue of the normalised Laplacian of what is connected at all."""
    size = cosines.shape[-1]
    degrees = cosines.sum(-1)
    defined = torch.isfinite(degrees).all(-1)
    degrees = torch.where(defined[..., None], degrees, torch.zeros_like(degrees))
    joined = degrees > 0
    roots = torch.where(joined, degrees, torch.ones_like(degrees)).rsqrt()
    adjacency = torch.where(defined[..., None, None], cosines, torch.zeros_like(cosines))
    laplacian = -adjacency * roots[..., :, None] * roots[..., None, :]
    # What stands alone is out of the way of the eigenvalues of the rest, all at most 2.
    laplacian.diagonal(dim1=-2, dim2=-1).copy_(torch.where(joined, 1.0, 3.0))
    undefined = torch.full(cosines.shape[:-2], math.nan, dtype=cosines.dtype, device=cosines.device)
    if size < 2:
        return undefined
    second = torch.linalg.eigvalsh(laplacian)[..., 1].clamp(min=0.0)
    return torch.where(defined & (joined.sum(-1) > 1), second, undefined)
