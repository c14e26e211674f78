"""The published formulas: exactly what was published, and where that misleads."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stableopt.functional import (
    assr_condition_number,
    assr_fiedler,
    condition_number,
    fiedler_value,
    kappa_tilde,
    redundancy,
    spectral_norm,
    square_condition_tail,
    stable_rank,
)
from tests.reference import published
from tests.reference import rows as oracle


def gaussian(rows, columns, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=dtype)


def with_value(value):
    weight = gaussian(6, 5)
    weight[2, 3] = value
    return weight


ODD = {
    "square": gaussian(12, 12),
    "tall": gaussian(20, 7),
    "wide": gaussian(7, 20),
    "double": gaussian(9, 8, dtype=torch.float64),
    "complex": gaussian(9, 8, dtype=torch.complex64),
    "parameter": torch.nn.Parameter(gaussian(6, 8)),
    "transposed": gaussian(6, 8).T,
    "identity": torch.eye(6),
    "ones": torch.ones(6, 6),
    "zero": torch.zeros(4, 6),
    "huge": gaussian(5, 5) * 1e25,
    "tiny": gaussian(5, 5) * 1e-25,
    "at the threshold": torch.diag(torch.tensor([1.0, 0.99e-10], dtype=torch.float64)),
    "above the threshold": torch.diag(torch.tensor([1.0, 1.01e-10], dtype=torch.float64)),
    "nan": with_value(math.nan),
    "inf": with_value(math.inf),
    "half": gaussian(6, 8).half(),
    "bfloat16": gaussian(6, 8).bfloat16(),
    "integers": torch.arange(12).reshape(3, 4),
    "no rows": torch.zeros(0, 5),
    "no columns": torch.zeros(5, 0),
    "nothing": torch.zeros(0, 0),
    "one row": gaussian(1, 6),
    "one column": gaussian(6, 1),
    "one": torch.full((1, 1), 3.0),
    "convolution": gaussian(6, 27).reshape(6, 3, 3, 3),
    "batch of columns": gaussian(4, 3).reshape(4, 3, 1),
    "batch of ones": gaussian(4, 1).reshape(4, 1, 1),
}


class TestAsPublished:
    @pytest.mark.parametrize("name", ODD)
    def test_odd_weights_read_what_they_did(self, name):
        weight = ODD[name]
        assert assr_fiedler(weight) == published.compute_fiedler_value(weight)
        assert assr_condition_number(weight) == published.compute_condition_number(weight)

    @settings(max_examples=60, deadline=None)
    @given(
        rows=st.integers(1, 20),
        columns=st.integers(1, 20),
        seed=st.integers(0, 2**16),
        exponent=st.integers(-12, 12),
        dtype=st.sampled_from([torch.float32, torch.float64]),
    )
    def test_every_weight_reads_what_it_did(self, rows, columns, seed, exponent, dtype):
        weight = gaussian(rows, columns, seed, dtype) * 10.0**exponent
        assert assr_fiedler(weight) == published.compute_fiedler_value(weight)
        assert assr_condition_number(weight) == published.compute_condition_number(weight)

    @pytest.mark.parametrize("weight", [torch.ones(()), torch.ones(3)])
    def test_what_is_no_matrix_raises_as_it_did(self, weight):
        for measure in (assr_fiedler, published.compute_fiedler_value):
            with pytest.raises(IndexError):
                measure(weight)
        assert assr_condition_number(weight) == published.compute_condition_number(weight)

    def test_a_number_is_a_number(self):
        assert type(assr_fiedler(torch.eye(3))) is float
        assert type(assr_condition_number(torch.eye(3))) is float


class TestKappaTilde:
    @settings(max_examples=100, deadline=None)
    @given(
        rows=st.integers(1, 24),
        columns=st.integers(1, 24),
        seed=st.integers(0, 2**16),
        exponent=st.integers(-30, 30),
        dtype=st.sampled_from([torch.float32, torch.float64, torch.complex64]),
    )
    def test_the_value_is_that_of_the_definition(self, rows, columns, seed, exponent, dtype):
        weight = gaussian(rows, columns, seed, dtype) * 10.0**exponent
        found = kappa_tilde(weight)
        assert found.shape == ()
        assert found.dtype == torch.float64
        assert found.item() == pytest.approx(oracle.kappa_tilde(weight.numpy()), rel=1e-4)
        least = min(rows, columns)
        assert 10 * (1 - 1e-4) <= found.item() <= 10 * math.sqrt(least) * (1 + 1e-4)
        # Written out: a stable rank, and nothing else.
        expected = 10 * math.sqrt(least / stable_rank(weight).item())
        assert found.item() == pytest.approx(expected, rel=1e-4)

    def test_an_estimate_that_is_at_hand_is_used(self):
        weight = gaussian(12, 9)
        sigma = spectral_norm(weight).sigma
        assert kappa_tilde(weight, sigma).item() == kappa_tilde(weight).item()
        assert kappa_tilde(weight, 2 * sigma).item() == 2 * kappa_tilde(weight).item()

    def test_convolutions_are_flattened(self):
        weight = gaussian(6, 75).reshape(6, 3, 5, 5)
        assert kappa_tilde(weight).item() == kappa_tilde(weight.flatten(1)).item()

    def test_halves_are_their_values(self):
        weight = gaussian(16, 24).bfloat16()
        expected = oracle.kappa_tilde(weight.double().numpy())
        assert kappa_tilde(weight).item() == pytest.approx(expected, rel=1e-4)

    @pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (0, 3, 5, 5), (4, 4), (1, 7)])
    def test_zero_and_empty_are_undefined(self, shape):
        assert math.isnan(kappa_tilde(torch.zeros(shape)))
        assert math.isnan(kappa_tilde(torch.zeros(shape), torch.ones(())))

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_what_is_not_finite_is_undefined(self, value):
        assert math.isnan(kappa_tilde(with_value(value)))
        assert math.isnan(kappa_tilde(with_value(value), torch.ones(())))
        assert math.isnan(kappa_tilde(torch.ones(3, 3), torch.tensor(value)))

    def test_a_norm_beyond_the_range_is_undefined(self):
        assert math.isnan(kappa_tilde(torch.full((3, 4), 3e38)))

    @pytest.mark.parametrize("weight", [torch.ones(()), torch.ones(3), torch.ones(2, 2).long()])
    def test_vectors_and_integers_are_refused(self, weight):
        with pytest.raises(ValueError, match=r"weight\."):
            kappa_tilde(weight)

    def test_global_random_state_is_not_consumed(self):
        before = torch.get_rng_state()
        kappa_tilde(gaussian(9, 12))
        assert torch.equal(torch.get_rng_state(), before)


class TestWhereTheyMislead:
    def test_orthogonal_rows_read_as_broken_and_identical_ones_as_the_best(self):
        orthogonal = torch.linalg.qr(gaussian(16, 16, dtype=torch.float64)).Q
        random = gaussian(16, 16, dtype=torch.float64) / 4
        identical = orthogonal[:1].expand(16, 16)
        assert assr_fiedler(orthogonal) < 1e-6
        assert 0.5 < assr_fiedler(random) < 8
        assert assr_fiedler(identical) == pytest.approx(16)
        # Of rows of length one, nothing reads more.
        lengths = torch.linalg.vector_norm(random, dim=1, keepdim=True)
        assert assr_fiedler(random / lengths) < assr_fiedler(identical)
        assert redundancy(identical) > 10 * redundancy(random) > 10 * redundancy(orthogonal)

    @pytest.mark.parametrize("factor", [0.5, 4.0])
    def test_the_published_fiedler_value_is_a_scale_squared(self, factor):
        weight = gaussian(12, 20)
        expected = factor**2 * assr_fiedler(weight)
        assert assr_fiedler(factor * weight) == pytest.approx(expected, rel=1e-5)
        assert fiedler_value(factor * weight).item() == pytest.approx(fiedler_value(weight).item())

    def test_a_nan_reads_as_healthy(self):
        assert assr_fiedler(with_value(math.nan)) == 1.0
        assert math.isnan(fiedler_value(with_value(math.nan)))

    def test_a_convolution_reads_as_healthy_whatever_it_is(self):
        assert assr_fiedler(torch.zeros(4, 3, 3, 3)) == 1.0
        assert assr_condition_number(gaussian(4, 27).reshape(4, 3, 3, 3)) == math.inf

    def test_a_small_weight_reads_as_singular(self):
        weight = 1e-11 * torch.eye(4, dtype=torch.float64)
        assert assr_condition_number(weight) == math.inf
        assert condition_number(weight).item() == pytest.approx(1)

    def test_kappa_tilde_is_blind_to_the_smallest_singular_value(self):
        weight = gaussian(24, 24, dtype=torch.float64)
        left, values, right = torch.linalg.svd(weight)
        values[-1] = 0
        singular = (left * values) @ right
        assert condition_number(singular) > 1e12 > 1e6 > condition_number(weight)
        assert kappa_tilde(singular).item() == pytest.approx(kappa_tilde(weight).item(), rel=1e-3)

    def test_a_new_square_layer_trips_a_ceiling_as_often_as_edelmans_law_says(self):
        size, limit, count = 256, 250.0, 40
        kappas = [
            assr_condition_number(gaussian(size, size, seed, torch.float64) / 16)
            for seed in range(count)
        ]
        law = square_condition_tail(size, limit)
        assert law > 0.97
        tripped = np.mean([kappa > limit for kappa in kappas])
        assert abs(tripped - law) < 4 * math.sqrt(law * (1 - law) / count) + 0.005
        # Not a matter of the ceiling: ten times as high, a fifth of them still trip it.
        law = square_condition_tail(size, 10 * limit)
        tripped = np.mean([kappa > 10 * limit for kappa in kappas])
        assert abs(tripped - law) < 4 * math.sqrt(law * (1 - law) / count) + 0.005
        assert law > 0.15

    @pytest.mark.parametrize("seed", range(3))
    def test_a_uniform_shrink_moves_none_of_the_metrics_it_was_to_mend(self, seed):
        weight = gaussian(24, 32, seed)
        for measure in (condition_number, stable_rank, fiedler_value, kappa_tilde, redundancy):
            assert measure(0.5 * weight).item() == pytest.approx(measure(weight).item(), rel=1e-6)
        # And moves what the published actuator is triggered by away from its floor's good side.
        assert assr_fiedler(0.5 * weight) < 0.3 * assr_fiedler(weight)
