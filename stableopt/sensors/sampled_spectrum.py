"""The sensor of everything that is read from one small Gram matrix of sampled rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stableopt.errors import require_int
from stableopt.functional import (
    as_matrix,
    gaussian_effective_rank,
    gaussian_fiedler_value,
    gaussian_kappa_p10,
)
from stableopt.functional.row_spectrum import SAMPLED_ROWS, row_gram, sample_rows, spectrum_of_gram
from stableopt.sensors.protocol import Measurement, Result, Visit

LEAST_KAPPA = 4.0
"""What κ_p10 is divided by at least: training takes wide matrices away from their 1 to 2."""


@dataclass(frozen=True)
class SampledSpectrum:
    """Reads ranks, conditioning, redundancy and connectivity of a fixed sample of the rows.

    ``effective_rank``, ``kappa_p10``, ``redundancy`` and ``fiedler`` as
    :func:`stableopt.functional.row_spectrum` defines them; ``relative_rank``,
    ``relative_kappa_p10`` and ``relative_fiedler`` are divided by what a Gaussian matrix of the
    same shape reads (κ_p10 by at least 4), so that one limit fits every layer. Which rows are
    read is drawn once for every parameter, from the sampler's seed and its name. A rank that
    falls and still exceeds ``rows`` shows in the redundancy alone.

    Attributes:
        rows: How many rows are sampled.

    Raises:
        ConfigError: ``rows`` is below 2.

    Cost:
        With p rows of length n: p² n flops on the device, and two eigenvalue problems of size p
        on the host: 1 to 2 ms for p = 128.
    """

    metrics: ClassVar[tuple[str, ...]] = (
        "effective_rank",
        "relative_rank",
        "kappa_p10",
        "relative_kappa_p10",
        "redundancy",
        "fiedler",
        "relative_fiedler",
    )
    on_suspicion: ClassVar[bool] = False

    rows: int = SAMPLED_ROWS

    def __post_init__(self) -> None:
        require_int("rows", self.rows, 2, "how many rows are sampled")

    def start(self, visit: Visit) -> Measurement:
        """Queue the Gram matrix."""
        weight = visit.weight
        finite = _finite(weight)
        chosen = sample_rows(weight.shape[0], self.rows, seed=visit.seed)
        if chosen is not None:
            if weight.is_cuda:
                chosen = chosen.pin_memory()
            weight = weight.index_select(0, chosen.to(weight.device, non_blocking=True))
        rows = as_matrix(weight)
        count, columns = rows.shape
        # A row that is not finite makes all of it undefined, sampled or not.
        gram = row_gram(rows)
        gram = torch.where(finite, gram, torch.full_like(gram, math.nan))
        return Measurement((gram,), lambda host: _finish(host, count, columns))


def _finite(weight: Tensor) -> Tensor:
    if weight.numel() == 0 or weight.is_complex():
        return torch.isfinite(weight).all()
    low, high = torch.aminmax(weight.float() if weight.itemsize < 2 else weight)
    return torch.isfinite(low) & torch.isfinite(high)


def _finish(host: Sequence[Tensor], rows: int, columns: int) -> Result:
    spectrum = spectrum_of_gram(host[0], columns)
    values = {name: float(value) for name, value in spectrum._asdict().items()}
    values["fiedler"] = values.pop("fiedler_value")
    rank = kappa = math.nan
    if rows and columns:
        rank, kappa = gaussian_effective_rank(rows, columns), gaussian_kappa_p10(rows, columns)
    connected = gaussian_fiedler_value(rows) if rows > 2 else math.nan
    values["relative_rank"] = values["effective_rank"] / rank
    values["relative_kappa_p10"] = values["kappa_p10"] / max(kappa, LEAST_KAPPA)
    values["relative_fiedler"] = values["fiedler"] / connected
    return Result(values)
