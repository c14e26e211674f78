"""One matrix: what every sensor reads, what is exact, how long either takes, and the verdicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from stableopt.functional import (
    assr_condition_number,
    assr_fiedler,
    condition_number,
    gaussian_effective_rank,
    kappa_tilde,
)
from stableopt.functional.rank import effective_rank_of
from stableopt.functional.row_spectrum import sample_rows
from stableopt.health.spectra.tiers import TIERS, standing_of
from stableopt.sensors import Result, SampledSpectrum, Sensor, SpectralNorm, Visit
from stableopt.types import Standing

ASSR_FIEDLER = 0.05
ASSR_CONDITION = 1000.0
"""Below the one or above the other ASSR acts, as published."""

SAMPLE_SEED = 0
SINGULAR = 1e14
"""A condition number beyond which even float64 knows no digit of."""

_DOUBLED = 2048
_LARGEST_SAMPLE = 2048
_OURS = 5
"""How often the sensors, which take milliseconds, are timed beside each decomposition."""


def read(
    sensor: Sensor, weight: Tensor, *, draw: int = 0, memory: Tensor | None = None
) -> tuple[Result, float]:
    """Return what a sensor reads, and the seconds of its two halves, as a run calls them.

    Args:
        sensor: Which.
        weight: Of what.
        draw: Of the visit.
        memory: Of the last one.
    """
    visit = Visit(name="w", weight=weight, seed=SAMPLE_SEED, draw=draw, memory=memory)
    begun = perf_counter()
    with torch.no_grad():
        measurement = sensor.start(visit)
        result = measurement.finish([sent.cpu() for sent in measurement.sent])
    return result, perf_counter() - begun


def exact_spectrum(weight: Tensor) -> Tensor:
    """Return all singular values by a decomposition in float64, largest first."""
    wide = weight.double()
    return torch.linalg.svdvals(wide if wide.shape[0] >= wide.shape[1] else wide.T)


def exact_norm(weight: Tensor) -> float:
    """Return σ₁ by the eigenvalues of the Gram matrix in float64."""
    wide = weight.double()
    gram = wide.T @ wide if wide.shape[0] >= wide.shape[1] else wide @ wide.T
    return float(torch.linalg.eigvalsh(gram)[-1].sqrt())


def measure(weight: Tensor, *, repeats: int) -> dict[str, Any]:
    """Return everything about one matrix.

    Args:
        weight: ``(m, n)``, float32.
        repeats: How often decompositions are timed; sensors five times as often.
    """
    rows, columns = weight.shape
    cold, cold_seconds = read(SpectralNorm(), weight)
    seconds, told = _timed(weight, cold.memory, repeats)
    warm, _ = read(SpectralNorm(), weight, draw=1, memory=cold.memory)
    sampled, _ = read(SampledSpectrum(), weight)
    spectrum = exact_spectrum(weight)
    published = {
        "assr_fiedler": assr_fiedler(weight),
        "assr_condition_number": told["svd"],
        "kappa_tilde": float(kappa_tilde(weight)),
    }
    chosen = sample_rows(rows, SampledSpectrum().rows, seed=SAMPLE_SEED)
    sample = weight if chosen is None else weight[chosen]
    of_sample = _exact_rows(sample, exact_spectrum(sample))
    whole = _exact_rows(weight, spectrum)
    sigma, norm = float(spectrum[0]), float(spectrum.norm())
    condition = float(spectrum[0] / spectrum[-1])
    entries = [
        _row("spectral_norm, first visit", cold.values["spectral_norm"], sigma, "cold", "svd"),
        _row("spectral_norm, warm", warm.values["spectral_norm"], sigma, "warm", "svd"),
        _row("stable_rank", warm.values["stable_rank"], (norm / sigma) ** 2, "warm", "svd"),
    ]
    decompositions = {"effective_rank": "svd", "kappa_p10": "svd"}
    for metric, exact in of_sample.items():
        what = decompositions.get(metric, "eigenvalues" if metric == "fiedler" else "gram")
        found = sampled.values[metric]
        entries.append(_row(metric, found, exact, "sampled", what) | {"whole": whole[metric]})
    ours = float(told["condition"])
    entries.append(_row("condition_number", ours, condition, "condition", "svd"))
    exact_tilde = 10 * sigma * math.sqrt(min(rows, columns)) / norm
    # The formula in float64; not where that takes half a minute.
    doubled = assr_fiedler(weight.double()) if min(rows, columns) <= _DOUBLED else math.nan
    seeds = [
        _row("assr_fiedler", published["assr_fiedler"], doubled, None, None),
        _row("assr_condition_number", published["assr_condition_number"], condition, None, None),
        _row("kappa_tilde", published["kappa_tilde"], exact_tilde, None, None),
    ]
    seconds["cold"] = cold_seconds
    for entry in entries:
        entry["seconds"] = seconds[entry["seconds"]]
        entry["exact_seconds"] = seconds[entry["exact_seconds"]]
        entry["ratio"] = entry["seconds"] / entry["exact_seconds"]
    relative = {
        "relative_rank": whole["effective_rank"] / gaussian_effective_rank(rows, columns),
        "sampled_relative_rank": sampled.values["relative_rank"],
        "relative_fiedler": sampled.values["relative_fiedler"],
    }
    return {
        "rows": rows,
        "columns": columns,
        "entries": entries,
        "seeds": seeds,
        "relative": relative,
        "ours": standings(sampled.values, rows, columns),
        "assr": assr_verdict(published),
        "seconds": seconds,
    }


def rows_needed(weight: Tensor) -> int | None:
    """Return from which sample on the tiers complain, of 128, 256, 512, ... rows; or ``None``."""
    rows, columns = weight.shape
    count = SampledSpectrum().rows
    while True:
        values = read(SampledSpectrum(rows=count), weight)[0].values
        if standings(values, min(count, rows), columns)["complains"]:
            return min(count, rows)
        if count >= min(rows, _LARGEST_SAMPLE):
            return None
        count *= 2


def standings(values: Mapping[str, float], rows: int, columns: int) -> dict[str, Any]:
    """Return what the tiers say, and the worst of it."""
    found = {m: standing_of(m, values[m], rows, columns) for m in TIERS}
    order = (Standing.DANGER, Standing.WARNING, Standing.HEALTHY, Standing.UNJUDGED)
    worst = next((s for s in order if s in found.values()), Standing.UNDEFINED)
    by = [m for m, s in found.items() if s is worst] if worst in order[:2] else []
    return {
        "values": dict(values),
        "standing": worst.value,
        "by": by,
        "complains": worst in order[:2],
    }


def assr_verdict(published: Mapping[str, float]) -> dict[str, Any]:
    """Return what the thresholds of ASSR say."""
    by = []
    if published["assr_fiedler"] < ASSR_FIEDLER:
        by.append("fiedler")
    if published["assr_condition_number"] > ASSR_CONDITION:
        by.append("condition")
    return {"by": by, "complains": bool(by)}


def _timed(
    weight: Tensor, memory: Tensor | None, repeats: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Time sensors and decompositions in turn; return medians, and what the latter said."""
    gram = weight.T @ weight if weight.shape[0] > weight.shape[1] else weight @ weight.T
    laplacian = torch.diag(gram.abs().sum(1)) - gram
    told: dict[str, Any] = {}
    calls: dict[str, Callable[[], object]] = {
        "svd": lambda: assr_condition_number(weight),  # svdvals, and a quotient
        "eigenvalues": lambda: torch.linalg.eigvalsh(laplacian),
        "gram": lambda: weight @ weight.T,
        "condition": lambda: condition_number(weight),
    }
    times: dict[str, list[float]] = {name: [] for name in (*calls, "warm", "sampled", "set")}
    for _ in range(repeats):
        for name, call in calls.items():
            begun = perf_counter()
            told[name] = call()
            times[name].append(perf_counter() - begun)
            for draw in range(_OURS if name in ("svd", "eigenvalues") else 0):
                warm = read(SpectralNorm(), weight, draw=draw, memory=memory)[1]
                sampled = read(SampledSpectrum(), weight)[1]
                times["warm"].append(warm)
                times["sampled"].append(sampled)
                times["set"].append(warm + sampled)
    return {name: median(values) for name, values in times.items()}, told


def _exact_rows(matrix: Tensor, spectrum: Tensor) -> dict[str, float]:
    """Return what the sampled spectrum defines, in float64 and of all rows of ``matrix``."""
    wide = matrix.double()
    unit = torch.nn.functional.normalize(wide, dim=1)
    cosines = (unit @ unit.T).abs()
    cosines.fill_diagonal_(0)
    count = len(cosines)
    root = cosines.sum(1).rsqrt()
    laplacian = torch.eye(count, dtype=wide.dtype) - cosines * root[:, None] * root
    return {
        "effective_rank": float(effective_rank_of(spectrum)),
        "kappa_p10": float(spectrum[0] / torch.quantile(spectrum, 0.1)),
        "redundancy": float(cosines.square().sum() / (count * (count - 1)) * wide.shape[1]),
        "fiedler": float(torch.linalg.eigvalsh(laplacian)[1]),
    }


def _row(metric: str, value: float, exact: float, ours: Any, decomposition: Any) -> dict[str, Any]:
    return {
        "metric": metric,
        "value": value,
        "exact": exact,
        "error": _error(value, exact),
        "seconds": ours,
        "exact_seconds": decomposition,
    }


def _error(value: float, exact: float) -> float:
    if value == exact:
        return 0.0
    if exact > SINGULAR or math.isinf(value):
        return math.nan  # only that it is large is known
    return abs(value - exact) / abs(exact) if exact and math.isfinite(exact) else math.nan
