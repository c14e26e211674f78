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
from stableopt.functional.published import assr_condition_number, assr_fiedler, kappa_tilde
from stableopt.functional.rank import effective_rank, frobenius_norm, stable_rank
from stableopt.functional.references import (
    gaussian_condition_number,
    gaussian_effective_rank,
    gaussian_fiedler_value,
    gaussian_kappa_p10,
    square_condition_tail,
)
from stableopt.functional.row_spectrum import (
    RowSpectrum,
    fiedler_value,
    kappa_p10,
    redundancy,
    row_spectrum,
)
from stableopt.functional.spectral_norm import SpectralNorm, spectral_norm

__all__ = [
    "RowSpectrum",
    "SpectralNorm",
    "all_finite",
    "as_matrix",
    "assr_condition_number",
    "assr_fiedler",
    "condition_exceeds",
    "condition_number",
    "dense_values",
    "effective_rank",
    "fiedler_value",
    "frobenius_norm",
    "gaussian_condition_number",
    "gaussian_effective_rank",
    "gaussian_fiedler_value",
    "gaussian_kappa_p10",
    "kappa_p10",
    "kappa_tilde",
    "redundancy",
    "row_spectrum",
    "safe_norm",
    "singular_values",
    "spectral_norm",
    "square_condition_tail",
    "stable_rank",
    "tensor_norms",
    "total_norm",
    "widest_real",
]
