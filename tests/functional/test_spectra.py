"""Spectral norm, ranks and condition number: the laws, the oracles, and every odd matrix."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stableopt.functional import (
    as_matrix,
    condition_exceeds,
    condition_number,
    effective_rank,
    frobenius_norm,
    singular_values,
    spectral_norm,
    stable_rank,
)
from tests.reference import spectra

MEASURES = {
    "spectral_norm": lambda w: spectral_norm(w).sigma,
    "stable_rank": stable_rank,
    "effective_rank": effective_rank,
    "condition_number": condition_number,
    "frobenius_norm": frobenius_norm,
}
SCALE_FREE = ("stable_rank", "effective_rank", "condition_number")


@st.composite
def matrices(draw, dtypes=(torch.float32, torch.float64, torch.complex64, torch.complex128)):
    """Draw a matrix with a known kind of spectrum, at any scale."""
    rows, columns = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    dtype = draw(st.sampled_from(dtypes))
    weight = torch.randn(rows, columns, dtype=dtype, generator=generator)
    kind = draw(st.sampled_from(["gaussian", "decaying", "low rank", "clustered"]))
    if kind == "decaying":
        weight = weight * torch.logspace(0, -4, columns).to(dtype)
    if kind == "low rank":
        weight = weight[:, :1] @ weight[:1] + 0.1 * weight
    if kind == "clustered":
        weight = weight[torch.arange(rows) // 3] + 0.05 * weight
    return weight * 10.0 ** draw(st.integers(-30, 30))


@settings(max_examples=150, deadline=None)
@given(weight=matrices())
def test_the_values_are_those_of_a_full_decomposition(weight):
    double = weight.dtype in (torch.float64, torch.complex128)
    for name, measure in MEASURES.items():
        if name == "frobenius_norm":
            values = spectra.singular_values(weight.numpy())
            expected = float(np.linalg.norm(values / values[0]) * values[0])
        else:
            expected = getattr(spectra, name)(weight.numpy())
        tolerance = 1e-5 if name == "condition_number" or not double else 1e-6
        if name == "spectral_norm":
            tolerance = 1e-4
        assert measure(weight).item() == pytest.approx(expected, rel=tolerance), name


@settings(max_examples=100, deadline=None)
@given(weight=matrices(), seed=st.integers(0, 2**16), warm=st.booleans())
def test_an_estimate_is_never_above_the_norm(weight, seed, warm):
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(weight.shape[1], generator=generator) if warm else None
    estimate = spectral_norm(weight, start, generator=generator)
    exact = spectra.spectral_norm(weight.numpy())
    assert estimate.sigma.item() <= exact * (1 + 1e-5)
    assert torch.linalg.vector_norm(estimate.vector).item() == pytest.approx(1, rel=1e-4)


@settings(max_examples=60, deadline=None)
@given(weight=matrices(dtypes=(torch.float64,)), seed=st.integers(0, 2**16))
def test_what_does_not_change_a_spectrum_changes_no_measure(weight, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(weight), generator=generator)
    for name, measure in MEASURES.items():
        expected = measure(weight).item()
        twins = [weight[rows], weight.T, weight.T.contiguous(), weight.conj()]
        twins.append(torch.stack([weight, weight])[0])
        for twin in twins:
            assert measure(twin).item() == pytest.approx(expected, rel=1e-4), name
        factor = 1.0 if name in SCALE_FREE else 7.5
        assert measure(-7.5 * weight).item() == pytest.approx(factor * expected, rel=1e-4), name


@settings(max_examples=60, deadline=None)
@given(weight=matrices())
def test_ranks_lie_between_one_and_the_smaller_dimension(weight):
    least = min(weight.shape)
    for rank in (stable_rank(weight).item(), effective_rank(weight).item()):
        assert 1 - 1e-9 <= rank <= least * (1 + 1e-9)
    assert condition_number(weight).item() >= 1 - 1e-9


@settings(max_examples=60, deadline=None)
@given(weight=matrices(), factor=st.sampled_from([0.9, 0.99, 1.01, 1.1]))
def test_the_question_is_answered_as_the_number_would(weight, factor):
    exact = spectra.condition_number(weight.numpy())
    limit = exact * factor
    if 1 < limit < 1e6 and exact < 1e6:
        assert condition_exceeds(weight, limit).item() is (factor < 1)


def test_a_spike_that_is_orthogonal_to_the_last_vector_is_mostly_seen_at_the_next_visit():
    torch.manual_seed(0)
    left, values, right = torch.linalg.svd(torch.randn(256, 256))
    vector = right[0]  # exactly: nothing of the spike is in it
    values[40] = 1.3 * values[0]
    spiked = (left * values) @ right
    draws = [torch.Generator().manual_seed(seed) for seed in range(41)]
    estimates = [spectral_norm(spiked, vector, generator=draw).sigma.item() for draw in draws]
    assert np.median(estimates) > 1.2 * values[0].item()


def test_warm_estimates_follow_a_weight_in_training():
    torch.manual_seed(0)
    weight = torch.randn(192, 256)
    generator = torch.Generator().manual_seed(1)
    vector = spectral_norm(weight).vector
    errors = []
    for _ in range(60):
        weight = weight + 0.02 * torch.randn(192, 256)
        sigma, vector = spectral_norm(weight, vector, generator=generator)
        errors.append(1 - sigma.item() / spectra.spectral_norm(weight.numpy()))
    assert max(errors) < 0.01


def test_global_random_state_is_not_consumed():
    before = torch.get_rng_state()
    for measure in MEASURES.values():
        measure(torch.ones(9, 12))
    assert torch.equal(torch.get_rng_state(), before)


def test_autocast_is_out_of_reach():
    weight = torch.randn(30, 40, generator=torch.Generator().manual_seed(0))
    for measure in MEASURES.values():
        expected = measure(weight).item()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert measure(weight).item() == expected


class TestOddMatrices:
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("name", MEASURES)
    def test_what_is_not_finite_is_undefined(self, name, value):
        weight = torch.randn(12, 10)
        weight[3, 4] = value
        assert math.isnan(MEASURES[name](weight).item())
        assert not condition_exceeds(weight, 10.0)

    @pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
    def test_empty(self, shape):
        empty = torch.zeros(shape)
        assert spectral_norm(empty).sigma.item() == frobenius_norm(empty).item() == 0.0
        for name in SCALE_FREE:
            assert math.isnan(MEASURES[name](empty).item())

    @pytest.mark.parametrize("shape", [(4, 4), (1, 9), (20, 12)])
    def test_zero(self, shape):
        zero = torch.zeros(shape)
        assert spectral_norm(zero).sigma.item() == frobenius_norm(zero).item() == 0.0
        for name in SCALE_FREE:
            assert math.isnan(MEASURES[name](zero).item())

    @pytest.mark.parametrize("size", [3, 30])
    def test_singular(self, size):
        weight = torch.ones(size, size)
        assert condition_number(weight).item() == math.inf
        assert condition_number(torch.randn(size, size)[torch.arange(size) // 2]) == math.inf
        assert stable_rank(weight).item() == pytest.approx(1)
        assert effective_rank(weight).item() == pytest.approx(1)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_that_of_its_values(self, dtype):
        weight = torch.randn(16, 24).to(dtype)
        for measure in MEASURES.values():
            assert measure(weight).item() == pytest.approx(measure(weight.double()).item(), 1e-4)

    def test_subnormal(self):
        weight = torch.randn(10, 10) * 1e-42
        exact = spectra.spectral_norm(weight.numpy())
        assert spectral_norm(weight).sigma.item() == pytest.approx(exact, rel=1e-2)

    def test_convolutions_are_flattened(self):
        weight = torch.randn(6, 3, 5, 5)
        assert as_matrix(weight).shape == (6, 75)
        flat = weight.reshape(6, 75)
        for measure in MEASURES.values():
            assert measure(weight).item() == measure(flat).item()

    @pytest.mark.parametrize("weight", [torch.ones(()), torch.ones(3)])
    def test_vectors_have_no_spectrum(self, weight):
        for measure in MEASURES.values():
            with pytest.raises(ValueError, match=r"weight.dim\(\)=.* must be at least 2"):
                measure(weight)

    def test_integers_are_refused(self):
        with pytest.raises(ValueError, match=r"weight.dtype=torch.int64"):
            singular_values(as_matrix(torch.ones(2, 2, dtype=torch.int64)))

    @pytest.mark.parametrize("limit", [1.0, 0.0, -3.0, math.nan])
    def test_a_limit_of_one_is_no_question(self, limit):
        with pytest.raises(ValueError, match="limit="):
            condition_exceeds(torch.eye(3), limit)
