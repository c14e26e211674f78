"""Slow and plainly right: matrices whose singular values are capped, by full decompositions."""

from __future__ import annotations

import numpy as np


def capped(weight: np.ndarray, limit: float) -> np.ndarray:
    """Return the nearest matrix, in the Frobenius norm, of spectral norm ``limit`` at most."""
    left, values, right = np.linalg.svd(_wide(weight), full_matrices=False)
    return (left * np.minimum(values, limit)) @ right


def distance(weight: np.ndarray, limit: float) -> float:
    """Return how far that matrix is."""
    values = np.linalg.svd(_wide(weight), compute_uv=False)
    return float(np.linalg.norm(np.maximum(values - limit, 0)))


def flattened(weight: np.ndarray, strength: float) -> np.ndarray:
    """Return the matrix whose singular values are σ (1 - β σ²/σ₁²)."""
    left, values, right = np.linalg.svd(_wide(weight), full_matrices=False)
    return (left * (values * (1 - strength * (values / values[0]) ** 2))) @ right


def _wide(weight: np.ndarray) -> np.ndarray:
    return weight.astype(np.complex128 if np.iscomplexobj(weight) else np.float64)
