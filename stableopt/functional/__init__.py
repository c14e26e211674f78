"""The mathematics: pure tensor functions, importing nothing else of stableopt."""

from stableopt.functional.condition_number import condition_exceeds, condition_number
from stableopt.functional.matrices import as_matrix, singular_values
from stableopt.functional.norms import (
    all_finite,
    dense_values,
    safe_norm,
    tensor_norms,
    total_norm,
    widest_real,
)
from stableopt.functional.rank import effective_rank, frobenius_norm, stable_rank
from stableopt.functional.spectral_norm import SpectralNorm, spectral_norm

__all__ = [
    "SpectralNorm",
    "all_finite",
    "as_matrix",
    "condition_exceeds",
    "condition_number",
    "dense_values",
    "effective_rank",
    "frobenius_norm",
    "safe_norm",
    "singular_values",
    "spectral_norm",
    "stable_rank",
    "tensor_norms",
    "total_norm",
    "widest_real",
]
