"""The mathematics: pure tensor functions, importing nothing else of stableopt."""

from stableopt.functional.attention_logits import (
    attention_logit_bound,
    qk_norm_logit_bound,
    qk_scales,
)
from stableopt.functional.attention_maps import attention_entropy, overlap_penalty
from stableopt.functional.caps import exact_cap, fast_cap, soft_cap
from stableopt.functional.condition_number import condition_exceeds, condition_number
from stableopt.functional.delta_norm import clamp_delta_norm, lora_norm_penalty
from stableopt.functional.distances import distances, stay_within
from stableopt.functional.entropy import spectral_entropy
from stableopt.functional.lora import clamp_lora_output, lora_delta_norm
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
from stableopt.functional.soft_clamp import soft_clamp_logits
from stableopt.functional.spectral_norm import SpectralNorm, spectral_norm
from stableopt.functional.z_loss import z_loss

__all__ = [
    "RowSpectrum",
    "SpectralNorm",
    "all_finite",
    "as_matrix",
    "assr_condition_number",
    "assr_fiedler",
    "attention_entropy",
    "attention_logit_bound",
    "clamp_delta_norm",
    "clamp_lora_output",
    "condition_exceeds",
    "condition_number",
    "dense_values",
    "distances",
    "effective_rank",
    "exact_cap",
    "fast_cap",
    "fiedler_value",
    "frobenius_norm",
    "gaussian_condition_number",
    "gaussian_effective_rank",
    "gaussian_fiedler_value",
    "gaussian_kappa_p10",
    "kappa_p10",
    "kappa_tilde",
    "lora_delta_norm",
    "lora_norm_penalty",
    "overlap_penalty",
    "qk_norm_logit_bound",
    "qk_scales",
    "redundancy",
    "row_spectrum",
    "safe_norm",
    "singular_values",
    "soft_cap",
    "soft_clamp_logits",
    "spectral_entropy",
    "spectral_norm",
    "square_condition_tail",
    "stable_rank",
    "stay_within",
    "tensor_norms",
    "total_norm",
    "widest_real",
    "z_loss",
]
