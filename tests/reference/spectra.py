"""Slow and plainly right: the quantities of a spectrum from a full float64 decomposition."""

from __future__ import annotations

import numpy as np


def singular_values(weight: np.ndarray) -> np.ndarray:
    """Return all singular values, largest first, whatever the scale of the matrix."""
    matrix = np.asarray(weight)
    matrix = matrix.reshape(matrix.shape[0], -1)
    kind = np.complex128 if np.iscomplexobj(matrix) else np.float64
    matrix = matrix.astype(kind)
    scale = np.abs(matrix).max()
    if scale == 0:
        return np.zeros(min(matrix.shape))
    return np.linalg.svd(matrix / scale, compute_uv=False) * scale


def spectral_norm(weight: np.ndarray) -> float:
    """Return the largest singular value."""
    return float(singular_values(weight)[0])


def stable_rank(weight: np.ndarray) -> float:
    """Return the squared Frobenius norm over the squared spectral norm."""
    values = singular_values(weight)
    return float(((values / values[0]) ** 2).sum())


def effective_rank(weight: np.ndarray) -> float:
    """Return the exponential of the entropy of the normalised singular values."""
    values = singular_values(weight)
    share = values[values > 0] / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def condition_number(weight: np.ndarray) -> float:
    """Return the largest over the smallest singular value."""
    values = singular_values(weight)
    return float(values[0] / values[-1]) if values[-1] > 0 else float("inf")
