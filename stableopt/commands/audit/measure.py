"""Measure one weight with the sensors, and judge the readings by its shape."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from stableopt.commands.audit.checkpoint import NamedTensor, first_line
from stableopt.functional import (
    as_matrix,
    gaussian_condition_number,
    gaussian_effective_rank,
    singular_values,
)
from stableopt.functional.rank import effective_rank_of
from stableopt.health.spectra.tiers import SMALLEST, TIERS, standing_of
from stableopt.runtime.words import listed
from stableopt.sensors.condition_number import ConditionNumber
from stableopt.sensors.protocol import Sensor, Visit
from stableopt.sensors.published import AssrConditionNumber, AssrFiedler, KappaTilde
from stableopt.sensors.sampled_spectrum import SampledSpectrum
from stableopt.sensors.spectral_norm import SpectralNorm
from stableopt.sensors.targets import without_limits
from stableopt.types import Standing

_PUBLISHED = (AssrFiedler(), AssrConditionNumber(), KappaTilde())

_REAL = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_DTYPES = (*_REAL, torch.complex128, torch.complex64)
"""What the sensors take."""

_CAUGHT = (RuntimeError, ValueError, TypeError, IndexError, ArithmeticError, MemoryError)
"""What a tensor may raise without ending the audit of the others."""

_WORST = tuple(map(Standing, ("danger", "warning", "healthy", "unjudged", "undefined")))

_WORDS = {
    "relative_rank": "relative rank",
    "relative_kappa_p10": "κ_p10 over a random one's",
    "relative_fiedler": "relative Fiedler value",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightReport:
    """What was read from one tensor. All numbers are without a unit but for the spectral norm.

    A matrix ``(rows, columns)`` is the tensor with all but its first dimension flattened. NaN is
    what is undefined or failed, ``None`` what was not asked for.

    Attributes:
        name: In the checkpoint, dotted.
        aliases: Its other names, if it is shared.
        shape: As stored.
        dtype: As stored, e.g. ``"bfloat16"``.
        nonfinite: How many elements are NaN or infinite.
        spectral_norm: σ_max, in the unit of the weight; without the exact tier as
            :class:`~stableopt.sensors.SpectralNorm` estimates it from below, within 0.1% mostly.
        stable_rank: ‖W‖_F² / σ_max²; from 1 to the smaller dimension.
        effective_rank: Of the whole matrix, from 1 to the smaller dimension. Exact tier.
        relative_rank: As :class:`~stableopt.sensors.SampledSpectrum` reads it. With the exact tier
            that of the whole matrix, if that is less: a rank beyond 128 can fall unsampled.
        kappa_p10, relative_kappa_p10, fiedler, relative_fiedler, redundancy: As it reads them.
        condition_number: σ_max / σ_min, Inf for a singular matrix. Exact tier.
        gaussian_condition_number: The typical one of a Gaussian matrix of this shape.
        assr_fiedler, assr_condition_number, kappa_tilde: As their sensors read them.
        standing: The worst of what the metrics with limits say; ``DANGER`` if an element is not
            finite.
        note: Why, and what could not be measured; empty for a healthy weight.
    """

    name: str
    aliases: tuple[str, ...] = ()
    shape: tuple[int, ...]
    dtype: str
    nonfinite: int = 0
    spectral_norm: float = math.nan
    stable_rank: float = math.nan
    effective_rank: float | None = None
    relative_rank: float = math.nan
    kappa_p10: float = math.nan
    relative_kappa_p10: float = math.nan
    fiedler: float = math.nan
    relative_fiedler: float = math.nan
    redundancy: float = math.nan
    condition_number: float | None = None
    gaussian_condition_number: float = math.nan
    assr_fiedler: float | None = None
    assr_condition_number: float | None = None
    kappa_tilde: float | None = None
    standing: Standing = Standing.UNDEFINED
    note: str = ""

    @property
    def relative_condition(self) -> float:
        """The condition number over that of a Gaussian; NaN without the exact tier."""
        if self.condition_number is None:
            return math.nan
        return self.condition_number / self.gaussian_condition_number

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; what others publish is set apart, and left out if not asked for."""
        record = asdict(self)
        published = {metric: record.pop(metric) for s in _PUBLISHED for metric in s.metrics}
        record["standing"] = self.standing.value
        # The key under which long sentences are not redacted; see stableopt.telemetry.encode.
        record["reason"] = record.pop("note")
        if self.kappa_tilde is not None:
            record["as_published_by_assr_and_gradience"] = published
        return record


def measure_weight(
    named: NamedTensor, *, exact: bool = True, published: bool = False
) -> WeightReport:
    """Measure one tensor; never raises because of what is in it.

    Args:
        named: The tensor: any shape, dtype and layout. One of fewer than two dimensions is only
            looked through for a NaN or an Inf.
        exact: Whether to decompose the whole matrix.
        published: Whether to compute the formulas of ASSR and Gradience as well.

    Returns:
        The report; where a measure failed, NaN with the reason in the note.

    Cost:
        Some passes, and p² n flops for p ≤ 128 rows of length n. Exactly: O(m n min(m, n)) flops
        in float64 and three copies of the matrix in it; about 3 s for 2048 x 2048 on two cores,
        eight times as long for twice the size. Published: a second decomposition.
    """
    if named.tensor is None:
        return _unread(named, named.problem)
    try:
        with warnings.catch_warnings():
            # That a dtype is experimental or deprecated does not matter here.
            warnings.simplefilter("ignore")
            tensor = _plain(named.tensor)
        nonfinite = torch.isfinite(tensor).logical_not_()
        bad = int(nonfinite.sum())
    except _CAUGHT as error:
        return _unread(named, first_line(error))
    if bad:
        note = _where(tensor, nonfinite, bad)
        danger = Standing.DANGER
        return WeightReport(**_identity(named), nonfinite=bad, standing=danger, note=note)
    if tensor.numel() == 0:
        return WeightReport(**_identity(named), note="it is empty")
    if tensor.dim() < 2:
        return WeightReport(**_identity(named), standing=Standing.UNJUDGED, note="not a matrix")
    return _measure_matrix(named, tensor, exact, published)


def is_weight(named: NamedTensor) -> bool:
    """Return whether a tensor is of floating numbers, complex and quantized ones included."""
    tensor = named.tensor
    if tensor is None or tensor.is_floating_point() or tensor.is_complex():
        return True
    return bool(tensor.is_quantized)


def is_vector(named: NamedTensor) -> bool:
    """Return whether a tensor has fewer than two dimensions, and so no spectrum."""
    return named.tensor is not None and named.tensor.dim() < 2


def _measure_matrix(
    named: NamedTensor, tensor: Tensor, exact: bool, published: bool
) -> WeightReport:
    matrix, reasons = as_matrix(tensor), list[str]()
    rows, columns = matrix.shape
    read = _ask(SampledSpectrum(), tensor, reasons)
    del read["effective_rank"]  # of the sample; the report has that of the whole matrix
    whole = None
    if exact:
        read |= _read(_DECOMPOSED, lambda: _decompose(matrix), reasons)
        read |= _ask(ConditionNumber(), tensor, reasons)
        del read["relative_condition"]
        whole = read.pop("effective_rank")
        if not math.isnan(whole):
            relative = whole / gaussian_effective_rank(rows, columns)
            read["relative_rank"] = min(read["relative_rank"], relative)
    else:
        read |= _ask(SpectralNorm(), tensor, reasons)
    for sensor in _PUBLISHED if published else ():
        read |= _ask(sensor, tensor, reasons)
    names = (named.name, *named.aliases)
    exempt = next((found for found in map(without_limits, names) if found), None)
    standings = {
        metric: Standing.UNJUDGED if exempt else standing_of(metric, read[metric], rows, columns)
        for metric in TIERS
    }
    standing = min(standings.values(), key=_WORST.index)
    notes = [
        *_reasons(standings, read),
        *([f"{exempt}: no limit applies"] if exempt else []),
        *_remarks(standing, read, min(rows, columns)),
        *dict.fromkeys(reasons),
    ]
    known: dict[str, Any] = {**_identity(named), **read}
    return WeightReport(
        **known,
        effective_rank=whole,
        gaussian_condition_number=gaussian_condition_number(rows, columns),
        standing=standing,
        note="; ".join(notes),
    )


def _ask(sensor: Sensor, tensor: Tensor, reasons: list[str]) -> dict[str, float]:
    """Return what a sensor reads from a weight that it has never seen."""

    def measure() -> Mapping[str, float]:
        measurement = sensor.start(Visit(name="", weight=tensor, seed=0, draw=0))
        return measurement.finish(measurement.sent).values

    return _read(sensor.metrics, measure, reasons)


def _read(
    metrics: Sequence[str], measure: Callable[[], Mapping[str, float]], reasons: list[str]
) -> dict[str, float]:
    """Return some metrics, NaN if they cannot be measured; then the reason is added."""
    try:
        return {metric: float(value) for metric, value in measure().items()}
    except _CAUGHT as error:
        what = listed([metric.replace("_", " ") for metric in metrics])
        reasons.append(f"no {what}: {first_line(error)}")
        return dict.fromkeys(metrics, math.nan)


_DECOMPOSED = ("spectral_norm", "stable_rank", "effective_rank")


def _decompose(matrix: Tensor) -> dict[str, float]:
    """Return what all singular values say."""
    values = singular_values(matrix)
    numbers = (values[0], (values / values[0]).square().sum(), effective_rank_of(values))
    return dict(zip(_DECOMPOSED, map(float, numbers), strict=True))


def _reasons(standings: dict[str, Standing], read: Mapping[str, float]) -> list[str]:
    """Return which limits were passed."""
    return [
        f"{_WORDS[metric]} {read[metric]:.3g} is {TIERS[metric].passed(standing)}"
        for metric, standing in standings.items()
        if standing in (Standing.WARNING, Standing.DANGER)
    ]


def _remarks(standing: Standing, read: Mapping[str, float], smaller: int) -> list[str]:
    if read["spectral_norm"] == 0:
        return ["every element is zero"]
    remarks = []
    if math.isinf(read.get("condition_number", math.nan)):
        remarks.append("it is singular")
    if standing is Standing.UNJUDGED and smaller < SMALLEST:
        remarks.append(f"fewer than {SMALLEST} rows or columns are not judged")
    return remarks


def _plain(tensor: Tensor) -> Tensor:
    """Return a dense tensor on the CPU whose dtype the measures take."""
    tensor = tensor.detach()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_meta:
        raise ValueError("it is on the meta device, without data")
    tensor = tensor.cpu().resolve_conj().resolve_neg()
    if tensor.dtype not in _DTYPES:
        tensor = tensor.to(torch.complex64 if tensor.is_complex() else torch.float32)
    return tensor


def _where(tensor: Tensor, nonfinite: Tensor, bad: int) -> str:
    """Return how many elements are not finite, and where the first is."""
    nans = int(torch.isnan(tensor).sum())
    kinds = [f"{count} {kind}" for count, kind in ((nans, "NaN"), (bad - nans, "Inf")) if count]
    first = [int(i) for i in torch.unravel_index(nonfinite.flatten().int().argmax(), tensor.shape)]
    place = f", the first at {first}" if tensor.dim() else ""
    return f"{' and '.join(kinds)} among {tensor.numel()} elements{place}"


def _unread(named: NamedTensor, problem: str) -> WeightReport:
    return WeightReport(**_identity(named), note=f"it cannot be read: {problem}")


def _identity(named: NamedTensor) -> dict[str, Any]:
    tensor = named.tensor
    return {
        "name": named.name,
        "aliases": named.aliases,
        "shape": () if tensor is None else tuple(tensor.shape),
        "dtype": "unknown" if tensor is None else str(tensor.dtype).removeprefix("torch."),
    }
