"""How many directions a matrix uses: stable rank and effective rank."""

from __future__ import annotations

import torch
from torch import Tensor

from stableopt.functional.matrices import as_matrix, normalized, precisely, singular_values


@precisely
def stable_rank(weight: Tensor) -> Tensor:
    """Return ‖W‖_F² / ‖W‖₂², between 1 and the rank.

    Args:
        weight: ``(out, in)``, or anything :func:`~stableopt.functional.as_matrix` takes.

    Returns:
        0-dim float64; NaN for a matrix that is zero, empty or not finite.

    Cost:
        A full decomposition. The sampled sensor divides the Frobenius norm by a warm
        :func:`~stableopt.functional.spectral_norm` instead.

    Reference:
        Rudelson & Vershynin, arXiv:math/0503442.

    Example:
        >>> stable_rank(torch.eye(4)).item()
        4.0
    """
    return _stable_rank_of(singular_values(as_matrix(weight)))


@precisely
def effective_rank(weight: Tensor) -> Tensor:
    """Return exp(H(p)), where p are the singular values over their sum.

    Between 1 (one direction) and min(m, n) (all alike).

    Args:
        weight: ``(out, in)``, or anything :func:`~stableopt.functional.as_matrix` takes.

    Returns:
        0-dim float64; NaN for a matrix that is zero, empty or not finite.

    Cost:
        A full decomposition.

    Reference:
        Roy & Vetterli, "The effective rank: a measure of effective dimensionality", 2007.

    Example:
        >>> round(effective_rank(torch.diag(torch.tensor([1.0, 1.0, 0.0]))).item(), 6)
        2.0
    """
    return effective_rank_of(singular_values(as_matrix(weight)))


def effective_rank_of(values: Tensor) -> Tensor:
    """Return the effective rank of a spectrum, or of a batch of them.

    Args:
        values: ``(..., r)`` singular values, any order; not negative.

    Returns:
        ``(...)``; NaN for a spectrum that is zero, empty or not finite.
    """
    total = values.sum(-1)
    share = values / total[..., None]
    entropy = -torch.special.xlogy(share, share).sum(-1)
    return torch.where(total > 0, torch.exp(entropy), torch.full_like(total, torch.nan))


@precisely
def frobenius_norm(weight: Tensor) -> Tensor:
    """Return ‖W‖_F in float64, without overflow or underflow; NaN if it is not finite.

    Example:
        >>> frobenius_norm(torch.full((2, 2), 1e30)).item() / 2e30 - 1 < 1e-6
        True
    """
    quotient, largest = normalized(as_matrix(weight))
    norm: Tensor = torch.linalg.vector_norm(quotient) * largest
    return norm


def _stable_rank_of(values: Tensor) -> Tensor:
    if values.numel() == 0:
        return torch.full((), torch.nan, dtype=torch.float64)
    share = values / values[0]
    undefined = torch.full_like(values[0], torch.nan)
    return torch.where(values[0] > 0, (share * share).sum(), undefined)
