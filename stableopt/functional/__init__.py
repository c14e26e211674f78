"""The mathematics: pure tensor functions, importing nothing else of stableopt."""

from stableopt.functional.norms import (
    all_finite,
    dense_values,
    safe_norm,
    tensor_norms,
    total_norm,
    widest_real,
)

__all__ = ["all_finite", "dense_values", "safe_norm", "tensor_norms", "total_norm", "widest_real"]
