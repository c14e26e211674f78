"""What every sensor reads: the right value, or an explicit undefined."""

from __future__ import annotations

import math

import pytest
import torch

from stableopt import ConfigError
from stableopt.functional import (
    assr_condition_number,
    assr_fiedler,
    condition_number,
    gaussian_condition_number,
    gaussian_effective_rank,
    gaussian_fiedler_value,
    kappa_tilde,
    row_spectrum,
    spectral_norm,
    stable_rank,
)
from stableopt.sensors import (
    AssrConditionNumber,
    AssrFiedler,
    ConditionNumber,
    KappaTilde,
    SampledSpectrum,
    SpectralNorm,
    Visit,
)

OURS = (SpectralNorm(), SampledSpectrum(), SampledSpectrum(rows=4), ConditionNumber(), KappaTilde())
PUBLISHED = (AssrFiedler(), AssrConditionNumber())


def read(sensor, weight, memory=None, draw=1):
    """Measure as it is done between two steps; return the result."""
    visit = Visit(name="w", weight=weight.detach(), seed=7, draw=draw, memory=memory)
    measurement = sensor.start(visit)
    return measurement.finish([tensor.cpu() for tensor in measurement.sent])


def gaussian(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_the_spectral_norm_cold_and_warm():
    weight = gaussian(200, 300)
    cold = read(SpectralNorm(), weight)
    exact = spectral_norm(weight).sigma.item()
    assert cold.values["spectral_norm"] == pytest.approx(exact, rel=2e-3)
    moved = weight + 0.01 * gaussian(200, 300, seed=1)
    warm = read(SpectralNorm(), moved, cold.memory)
    assert warm.values["spectral_norm"] == pytest.approx(
        spectral_norm(moved).sigma.item(), rel=2e-3
    )
    assert warm.values["stable_rank"] == pytest.approx(stable_rank(moved).item(), rel=4e-3)


def test_a_memory_of_another_shape_is_a_cold_start():
    weight = gaussian(30, 40)
    stale = torch.ones(17)
    assert read(SpectralNorm(), weight, stale).values == read(SpectralNorm(), weight).values


def test_the_sampled_spectrum_is_that_of_its_rows():
    weight = gaussian(300, 64)
    values = read(SampledSpectrum(), weight).values
    expected = row_spectrum(weight, 128, seed=7)
    assert values["effective_rank"] == expected.effective_rank.item()
    assert values["kappa_p10"] == expected.kappa_p10.item()
    assert values["redundancy"] == expected.redundancy.item()
    assert values["fiedler"] == expected.fiedler_value.item()
    assert values["relative_rank"] == values["effective_rank"] / gaussian_effective_rank(128, 64)
    assert values["relative_fiedler"] == values["fiedler"] / gaussian_fiedler_value(128)


def test_the_condition_number():
    weight = gaussian(40, 40)
    values = read(ConditionNumber(), weight).values
    assert values["condition_number"] == condition_number(weight).item()
    typical = gaussian_condition_number(40, 40)
    assert values["relative_condition"] == pytest.approx(values["condition_number"] / typical)


def test_the_published_ones():
    weight = gaussian(40, 30)
    assert read(AssrFiedler(), weight).values == {"assr_fiedler": assr_fiedler(weight)}
    condition = read(AssrConditionNumber(), weight).values["assr_condition_number"]
    assert condition == assr_condition_number(weight)
    kappa = read(KappaTilde(), weight).values["kappa_tilde"]
    assert kappa == pytest.approx(kappa_tilde(weight).item(), rel=1e-3)


ODD = {
    "convolution": gaussian(24, 8, 3, 3),
    "1-d convolution": gaussian(24, 8, 5),
    "embedding": gaussian(5000, 8),
    "one row": gaussian(1, 30),
    "one column": gaussian(30, 1),
    "one element": gaussian(1, 1),
    "two rows": gaussian(2, 30),
    "huge": gaussian(20, 30) * 1e30,
    "minute": gaussian(20, 30) * 1e-30,
    "subnormal": gaussian(20, 30) * 1e-42,
    "bfloat16": gaussian(20, 30).bfloat16(),
    "half": gaussian(20, 30).half(),
    "float8": gaussian(20, 30).to(torch.float8_e4m3fn),
    "double": gaussian(20, 30, dtype=torch.float64),
    "complex": gaussian(20, 30, dtype=torch.complex64),
    "not contiguous": gaussian(40, 60)[::2, ::2],
    "transposed": gaussian(30, 20).T,
    "expanded": gaussian(20, 1).expand(20, 30),
    "channels last": gaussian(24, 8, 3, 3).to(memory_format=torch.channels_last),
    "identity": torch.eye(20),
    "identical rows": torch.ones(20, 30),
    "a dead row": torch.cat([gaussian(19, 30), torch.zeros(1, 30)]),
}


@pytest.mark.parametrize("weight", ODD.values(), ids=ODD)
@pytest.mark.parametrize("sensor", OURS, ids=repr)
def test_odd_weights_have_right_values(sensor, weight):
    values = read(sensor, weight).values
    assert set(values) == set(sensor.metrics)
    copy = read(sensor, weight.contiguous().clone()).values
    assert values == pytest.approx(copy, nan_ok=True, rel=1e-3)
    if weight.itemsize <= 2:
        assert values == pytest.approx(read(sensor, weight.float()).values, nan_ok=True, rel=1e-3)
    if "spectral_norm" in values and "subnormal" not in str(weight):
        flat = weight.flatten(1)
        exact = torch.linalg.svdvals(flat if flat.is_complex() else flat.double())
        low = 0.98 if exact[0] < 1e-37 else 0.999
        assert low * exact[0] <= values["spectral_norm"] <= (2 - low) * exact[0]
    if "effective_rank" in values:
        assert 0.999 <= values["effective_rank"] <= min(weight.flatten(1).shape) * 1.001


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sensor", OURS, ids=repr)
def test_what_is_not_finite_is_undefined(sensor, value):
    weight = gaussian(300, 20)
    weight[299, 7] = value  # a row that a sample need not have
    assert all(math.isnan(v) for v in read(sensor, weight).values.values())
    assert read(sensor, weight).memory is None


@pytest.mark.parametrize("sensor", OURS, ids=repr)
def test_zero_has_a_norm_and_nothing_else(sensor):
    values = dict(read(sensor, torch.zeros(20, 30)).values)
    assert values.pop("spectral_norm", 0.0) == 0.0
    assert all(math.isnan(value) for value in values.values())


@pytest.mark.parametrize("sensor", OURS, ids=repr)
@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_empty_has_a_norm_and_nothing_else(sensor, shape):
    values = dict(read(sensor, torch.zeros(shape)).values)
    assert values.pop("spectral_norm", 0.0) == 0.0
    assert all(math.isnan(value) for value in values.values())


@pytest.mark.parametrize("sensor", OURS + PUBLISHED, ids=repr)
def test_nothing_is_written_and_no_random_number_consumed(sensor):
    weight = gaussian(40, 30)
    before, state = weight.clone(), torch.get_rng_state()
    result = read(sensor, weight)
    read(sensor, weight, result.memory)
    assert torch.equal(weight, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("rows", [0, 1, -3, 2.0, True, "all"])
def test_a_sample_needs_two_rows(rows):
    with pytest.raises(ConfigError, match=f"^rows={rows!r} must be an int of at least 2"):
        SampledSpectrum(rows=rows)
