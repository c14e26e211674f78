"""The sensors of ASSR and Gradience exactly as their documents define them, for comparison.

The idea to watch a training run through its spectra is theirs. What they read and
where that misleads is measured in the documentation; no default of ours triggers on them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stableopt.functional.matrices import precisely
from stableopt.functional.rank import frobenius_norm
from stableopt.functional.spectral_norm import spectral_norm


def assr_fiedler(weight: Tensor) -> float:
    """Return the "Fiedler value" of ASSR: the second eigenvalue of D - G.

    G is the smaller Gram matrix of the weight, signs and all, and D the row sums of |G|. It is
    not the Laplacian of a graph, whose weights would not be negative: it is near zero for
    orthogonal rows, the healthiest there are, largest for identical ones, and grows with the
    square of the weight's scale. :func:`~stableopt.functional.fiedler_value` is the one of a
    graph.

    Args:
        weight: ``(out, in)``. As published, anything of more dimensions reads 1.0.

    Returns:
        The value, at least 1e-9; 1.0 where it cannot be computed (a NaN included), as published.

    Cost:
        A Gram matrix and a symmetric eigenvalue problem of the smaller dimension.

    Reference:
        ASSR, ``compute_fiedler_value``.

    Example:
        >>> assr_fiedler(torch.eye(4)) < 1e-6 < assr_fiedler(torch.ones(4, 4))
        True
    """
    if weight.dim() > 2:
        return 1.0
    with torch.no_grad():
        tall = weight.shape[0] > weight.shape[1]
        gram = weight.t() @ weight if tall else weight @ weight.t()
        laplacian = torch.diag(gram.abs().sum(dim=1)) - gram
        try:
            values = torch.linalg.eigvalsh(laplacian)
        except RuntimeError:
            return 1.0
        return max(1e-9, float(values[1])) if len(values) > 1 else 1.0


def assr_condition_number(weight: Tensor) -> float:
    """Return the condition number as ASSR computes it: Inf where σ_min is at most 1e-10.

    The number is right; the ceiling of 1000 that goes with it is not for square layers, where a
    Gaussian of size n has about 3.7 n (:func:`~stableopt.functional.square_condition_tail`).

    Args:
        weight: ``(out, in)``.

    Returns:
        σ_max / σ_min; Inf for a singular matrix, for more than two dimensions, and where it
        cannot be computed.

    Cost:
        A full decomposition, in the dtype of the weight.

    Reference:
        ASSR, ``compute_condition_number``.

    Example:
        >>> assr_condition_number(torch.diag(torch.tensor([4.0, 2.0])))
        2.0
    """
    with torch.no_grad():
        try:
            values = torch.linalg.svdvals(weight)
            smallest, largest = values[-1].item(), values[0].item()
        except (RuntimeError, ValueError, IndexError):
            return math.inf
    return largest / smallest if smallest > 1e-10 else math.inf


@precisely
def kappa_tilde(weight: Tensor, sigma: Tensor | None = None) -> Tensor:
    """Return the κ̃ of Gradience: σ₁ over ‖W‖_F / (10 √min(m, n)).

    Written out it is 10 √(min(m, n) / stable rank). σ_min has no part in it, so it is no proxy of
    a condition number: a singular matrix reads what a healthy one does. It is a fine measure of
    how much one direction dominates, which is what its slope is used for here.

    Args:
        weight: ``(out, in)``, or anything :func:`~stableopt.functional.as_matrix` takes.
        sigma: An estimate of the spectral norm, 0-dim; made here if not given.

    Returns:
        0-dim float64, between 10 and 10 √min(m, n); NaN for a matrix that is zero, empty or
        not finite.

    Cost:
        Two passes, and :func:`~stableopt.functional.spectral_norm` without ``sigma``.

    Reference:
        Gradience, "Spectral Monitoring".

    Example:
        >>> round(kappa_tilde(torch.eye(9)).item(), 3)
        10.0
    """
    norm = frobenius_norm(weight)
    estimate = spectral_norm(weight).sigma if sigma is None else sigma
    smaller = min(weight.shape[0], weight[0].numel() if weight.shape[0] else 0)
    value = estimate.to(norm) * (10 * math.sqrt(smaller)) / norm
    defined = torch.isfinite(value) & (norm > 0)
    return torch.where(defined, value, torch.full_like(norm, math.nan))
