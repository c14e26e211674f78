"""The sensor of the spectral norm and the stable rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stableopt.functional import as_matrix, widest_real
from stableopt.functional.spectral_norm import (
    WARM_STEPS,
    bidiagonalize,
    right_vector,
    scaled_product,
    top_ritz,
    unit_noise,
    warm_start,
)
from stableopt.sensors.protocol import Measurement, Result, Visit

COLD_STEPS = 24
"""Lanczos steps of a first visit, which has no estimate to start from."""


@dataclass(frozen=True)
class SpectralNorm:
    """Reads ``spectral_norm`` (σ₁) and ``stable_rank`` (‖W‖_F² / σ₁²).

    Eight Golub-Kahan-Lanczos steps, warm from the last visit: a lower bound, mostly within 1e-6
    in training, and within 0.5% in 99 of 100 visits that are 80 steps apart early on. It sees a
    new direction that has grown past σ₁ mostly at once.
    A convolution is measured as ``(out, in·kh·kw)``.

    Cost:
        32 m n flops, in 18 passes over the weight; one vector of n in memory.

    Reference:
        Golub & Kahan 1965; see :func:`stableopt.functional.spectral_norm`.
    """

    metrics: ClassVar[tuple[str, ...]] = ("spectral_norm", "stable_rank")
    on_suspicion: ClassVar[bool] = False

    def start(self, visit: Visit) -> Measurement:
        """Queue the Lanczos steps."""
        matrix = as_matrix(visit.weight)
        if matrix.numel() == 0:
            return Measurement((), lambda sent: Result({"spectral_norm": 0.0, **_NO_RANK}))
        noise = unit_noise(matrix, torch.Generator("cpu").manual_seed(visit.draw))
        known = visit.memory is not None and visit.memory.shape == noise.shape
        start = warm_start(visit.memory, noise) if known and visit.memory is not None else noise
        steps = min(WARM_STEPS if known else COLD_STEPS, min(matrix.shape) + 1)
        product, scale = scaled_product(matrix)
        found = bidiagonalize(product, start, steps)
        wide = widest_real(matrix.device)
        norm = _frobenius(matrix, scale, wide)
        numbers = torch.cat([found.diagonal, found.above])
        sent = (numbers, torch.stack([scale.to(wide), norm.to(wide)]))
        return Measurement(sent, lambda host: _finish(host, steps, found.rights))


def _frobenius(matrix: Tensor, scale: Tensor, wide: torch.dtype) -> Tensor:
    """Return ‖W‖_F; ``scale`` is the largest magnitude.

    On the CPU the norm of every row in its own dtype, where its squares are in range, and of
    these in float64: a norm in float64 throughout would copy the matrix, and take longer than
    the Lanczos steps.
    """
    if matrix.device.type != "cpu":
        dtype = torch.complex128 if matrix.is_complex() and wide == torch.float64 else wide
        norm: Tensor = torch.linalg.vector_norm(matrix, dtype=dtype)
    elif 1e-15 < float(scale) < 1e15:
        rows = matrix if matrix.stride(1) <= matrix.stride(0) else matrix.mT
        norm = torch.linalg.vector_norm(torch.linalg.vector_norm(rows, dim=1).to(wide))
    else:
        norm = torch.linalg.vector_norm(matrix / scale) * scale.to(wide)
    return norm


_NO_RANK = {"stable_rank": float("nan")}


def _finish(host: Sequence[Tensor], steps: int, rights: Tensor) -> Result:
    numbers, (scale, norm) = host[0], host[1].tolist()
    ritz, coefficients = top_ritz(numbers[:steps], numbers[steps:])
    sigma = float(ritz) * scale
    rank = (norm / sigma) ** 2 if sigma > 0 else float("nan")
    # Lanczos steps give a lower bound of σ₁, and rounding must not give a rank below 1.
    values = {"spectral_norm": sigma, "stable_rank": max(rank, 1.0) if rank == rank else rank}
    return Result(values, right_vector(rights, coefficients) if sigma > 0 else None)
