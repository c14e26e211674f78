"""Slow and plainly right: what the rows of a matrix have in common, from the definitions."""

from __future__ import annotations

import numpy as np

from tests.reference import spectra


def cosines(weight: np.ndarray) -> np.ndarray:
    """Return |cosine| of every pair of rows that are not zero; the diagonal is zero."""
    matrix = np.asarray(weight)
    matrix = matrix.reshape(matrix.shape[0], -1)
    matrix = matrix.astype(np.complex128 if np.iscomplexobj(matrix) else np.float64)
    units = []
    for row in matrix:
        largest = np.abs(row).max()
        if largest > 0:
            units.append(row / largest / np.linalg.norm(row / largest))
    found = np.zeros((len(units), len(units)))
    for i, first in enumerate(units):
        for j, second in enumerate(units):
            if i != j:
                found[i, j] = abs(np.vdot(first, second))
    return found


def redundancy(weight: np.ndarray) -> float:
    """Return the row length times the mean squared cosine of a pair of rows."""
    found = cosines(weight)
    pairs = found[np.triu_indices(len(found), 1)]
    return float(np.asarray(weight)[0].size * np.mean(pairs**2)) if len(pairs) else float("nan")


def fiedler_value(weight: np.ndarray) -> float:
    """Return 1 minus the second eigenvalue of the random walk on the graph of |cosines|.

    The walk leaves row i for row j with probability |cos ij| over the sum of those of row i.
    """
    graph = cosines(weight)
    joined = graph.sum(1) > 0
    graph = graph[joined][:, joined]
    if len(graph) < 2:
        return float("nan")
    walk = graph / graph.sum(1, keepdims=True)
    return float(1 - np.sort(np.linalg.eigvals(walk).real)[-2])


def kappa_p10(weight: np.ndarray) -> float:
    """Return the largest singular value over the 10% quantile of all of them."""
    values = np.sort(spectra.singular_values(weight))
    place = 0.1 * (len(values) - 1)
    below, above = values[int(np.floor(place))], values[int(np.ceil(place))]
    tenth = below + (place - np.floor(place)) * (above - below)
    return float(values[-1] / tenth) if tenth > 0 else float("inf")


def kappa_tilde(weight: np.ndarray) -> float:
    """Return σ₁ / (‖W‖_F / (10 √min(m, n)))."""
    values = spectra.singular_values(weight)
    frobenius = values[0] * np.sqrt(((values / values[0]) ** 2).sum())
    return float(values[0] / (frobenius / (10 * np.sqrt(len(values)))))
