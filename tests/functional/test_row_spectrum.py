"""What rows have in common: the laws, the oracles, the faults it is for, and odd matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stableopt.functional import (
    condition_number,
    effective_rank,
    fiedler_value,
    gaussian_effective_rank,
    gaussian_fiedler_value,
    kappa_p10,
    redundancy,
    row_spectrum,
    singular_values,
)
from stableopt.functional.rank import effective_rank_of
from stableopt.functional.row_spectrum import (
    SAMPLED_ROWS,
    row_gram,
    sample_rows,
    spectrum_of_gram,
)
from tests.reference import rows as oracle
from tests.reference import spectra

SINGLE = (torch.float32, torch.complex64)
DOUBLE = (torch.float64, torch.complex128)
MEASURES = {"fiedler_value": fiedler_value, "redundancy": redundancy, "kappa_p10": kappa_p10}
ORACLES = {
    "effective_rank": spectra.effective_rank,
    "kappa_p10": oracle.kappa_p10,
    "redundancy": oracle.redundancy,
    "fiedler_value": oracle.fiedler_value,
}


@st.composite
def matrices(draw, dtypes=SINGLE + DOUBLE, least_rows=1):
    """Draw a matrix with a known kind of rows, at any scale."""
    rows, columns = draw(st.integers(least_rows, 24)), draw(st.integers(1, 24))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    dtype = draw(st.sampled_from(dtypes))
    weight = torch.randn(rows, columns, dtype=dtype, generator=generator)
    kind = draw(st.sampled_from(["gaussian", "decaying", "one direction", "clustered", "dead"]))
    if kind == "decaying":
        weight = weight * torch.logspace(0, -1, columns).to(dtype)
    if kind == "one direction":
        weight = weight[:, :1] @ weight[:1] + 0.2 * weight
    if kind == "clustered":
        weight = weight[torch.arange(rows) // 3] + 0.2 * weight
    if kind == "dead":
        weight = weight * (torch.arange(rows) % 3 != 1)[:, None]
    return weight * 10.0 ** draw(st.integers(-30, 30))


def same(found, expected, tolerance=1e-5):
    return found == pytest.approx(expected, rel=tolerance, abs=tolerance, nan_ok=True)


def numbers(spectrum):
    return {name: value.item() for name, value in spectrum._asdict().items()}


def gaussian(rows, columns, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=dtype)


class TestLaws:
    @settings(max_examples=150, deadline=None)
    @given(weight=matrices(dtypes=DOUBLE))
    def test_in_double_precision_the_values_are_those_of_the_definitions(self, weight):
        found = numbers(row_spectrum(weight, None))
        for name, value in found.items():
            expected = ORACLES[name](weight.numpy())
            if name == "kappa_p10" and expected > 1e6:
                assert value > 1e6
            else:
                assert same(value, expected, 1e-6), name

    @settings(max_examples=150, deadline=None)
    @given(weight=matrices(dtypes=SINGLE))
    def test_in_single_precision_they_are_but_for_what_its_gram_matrix_hides(self, weight):
        found = numbers(row_spectrum(weight, None))
        exact = {name: measure(weight.numpy()) for name, measure in ORACLES.items()}
        assert same(found["redundancy"], exact["redundancy"], 1e-4)
        assert same(found["fiedler_value"], exact["fiedler_value"], 1e-4)
        assert same(found["effective_rank"], exact["effective_rank"], 1e-2)
        # Singular values below √(p ε) σ₁ count as zero: the quantile is off by that at most.
        hidden = math.sqrt(24 * torch.finfo(torch.float32).eps)
        assert abs(1 / found["kappa_p10"] - 1 / exact["kappa_p10"]) < hidden
        if spectra.condition_number(weight.numpy()) < 100:
            assert same(found["kappa_p10"], exact["kappa_p10"], 1e-2)

    @settings(max_examples=100, deadline=None)
    @given(weight=matrices())
    def test_every_quantity_is_within_its_bounds(self, weight):
        columns = weight.shape[1]
        live = int((weight != 0).any(1).sum())
        found = row_spectrum(weight, None)
        assert all(v.shape == () and v.dtype == torch.float64 for v in found)
        assert 1 - 1e-9 <= found.effective_rank <= min(live, columns) * (1 + 1e-9)
        assert found.kappa_p10 >= 1
        if live > 1:
            assert 0 <= found.redundancy <= columns * (1 + 1e-9)
            assert 0 <= found.fiedler_value <= live / (live - 1) * (1 + 1e-9)
        else:
            assert math.isnan(found.redundancy)
            assert math.isnan(found.fiedler_value)

    @settings(max_examples=80, deadline=None)
    @given(weight=matrices(dtypes=DOUBLE))
    def test_the_tenth_is_never_below_the_smallest(self, weight):
        exact = spectra.condition_number(weight.numpy())
        if exact < 1e6:
            assert kappa_p10(weight) <= exact * (1 + 1e-6)
            assert kappa_p10(weight) <= condition_number(weight) * (1 + 1e-4)

    @settings(max_examples=80, deadline=None)
    @given(weight=matrices(), seed=st.integers(0, 2**16))
    def test_the_order_of_rows_and_columns_does_not_matter(self, weight, seed):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(weight.shape[0], generator=generator)
        columns = torch.randperm(weight.shape[1], generator=generator)
        for name, measure in MEASURES.items():
            expected = measure(weight).item()
            if name == "kappa_p10" and expected > 100:
                continue
            for twin in (weight[rows], weight[:, columns], weight.conj(), -weight):
                assert same(measure(twin).item(), expected, 1e-3), name

    @settings(max_examples=80, deadline=None)
    @given(weight=matrices(), exponent=st.integers(-20, 20))
    def test_the_scale_does_not_matter(self, weight, exponent):
        # A power of two rounds nothing: the very same bits.
        twin = (weight / weight.abs().amax()).nan_to_num() * 2.0**exponent
        unit = twin / 2.0**exponent
        for name, measure in {**MEASURES, "effective_rank": row_spectrum}.items():
            found, expected = measure(twin), measure(unit)
            if name == "effective_rank":
                found, expected = found.effective_rank, expected.effective_rank
            assert same(found.item(), expected.item(), 1e-12), name

    @settings(max_examples=80, deadline=None)
    @given(weight=matrices(), seed=st.integers(0, 2**16))
    def test_the_scale_of_single_rows_does_not_matter_to_cosines(self, weight, seed):
        double = weight.dtype in DOUBLE
        generator = torch.Generator().manual_seed(seed)
        spread = 30 if double else 6
        unit = weight / weight.abs().amax()
        exponents = spread * (2 * torch.rand(len(unit), 1, generator=generator) - 1)
        twin = unit * (10.0 ** exponents.double()).to(weight.real.dtype)
        tolerance = 1e-9 if double else 1e-4
        assert same(fiedler_value(twin).item(), fiedler_value(unit).item(), tolerance)
        assert same(redundancy(twin).item(), redundancy(unit).item(), tolerance * 24)

    @settings(max_examples=60, deadline=None)
    @given(weight=matrices(least_rows=2), dead=st.integers(1, 4))
    def test_dead_rows_change_no_cosines(self, weight, dead):
        zeros = torch.zeros(dead, weight.shape[1], dtype=weight.dtype)
        twin = torch.cat([zeros, weight, zeros])
        assert same(fiedler_value(twin).item(), fiedler_value(weight).item(), 1e-4)
        assert same(redundancy(twin).item(), redundancy(weight).item(), 1e-4)

    @settings(max_examples=40, deadline=None)
    @given(
        count=st.integers(2, 12),
        columns=st.integers(1, 12),
        dtype=st.sampled_from(SINGLE + DOUBLE),
        exponent=st.integers(-30, 30),
        seed=st.integers(0, 2**16),
    )
    def test_rows_that_are_all_alike(self, count, columns, dtype, exponent, seed):
        row = gaussian(1, columns, seed, dtype) * 10.0**exponent
        found = numbers(row_spectrum(row.expand(count, columns), None))
        assert found["redundancy"] == pytest.approx(columns, rel=1e-5)
        # Everything is connected to everything: what the Fiedler value cannot see.
        assert found["fiedler_value"] == pytest.approx(count / (count - 1), rel=1e-5)
        assert found["effective_rank"] == pytest.approx(1, rel=1e-5)
        # The quantile of two values is a tenth of the way from one to the other.
        tenths = {1: 1.0, 2: 10.0}.get(min(count, columns), math.inf)
        assert found["kappa_p10"] == pytest.approx(tenths)

    @settings(max_examples=40, deadline=None)
    @given(weight=matrices(least_rows=2))
    def test_the_single_functions_say_what_the_spectrum_says(self, weight):
        found = row_spectrum(weight, None)
        for name, measure in MEASURES.items():
            assert same(measure(weight).item(), getattr(found, name).item(), 1e-12), name


class TestFaults:
    """What each quantity is there to see, on a Gaussian background, with a margin."""

    ROWS, COLUMNS = 128, 192

    @pytest.mark.parametrize("seed", range(4))
    def test_nothing_is_wrong_with_gaussian_rows(self, seed):
        found = row_spectrum(gaussian(self.ROWS, self.COLUMNS, seed))
        assert found.effective_rank > 0.97 * gaussian_effective_rank(self.ROWS, self.COLUMNS)
        assert found.fiedler_value > 0.95 * gaussian_fiedler_value(self.ROWS)
        assert 0.9 < found.redundancy < 1.1
        assert found.kappa_p10 < 10

    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("clusters", [2, 8])
    def test_clusters_of_rows_have_a_low_fiedler_value(self, seed, clusters):
        centres = gaussian(clusters, self.COLUMNS, seed + 100)
        noise = gaussian(self.ROWS, self.COLUMNS, seed)
        clustered = centres[torch.arange(self.ROWS) % clusters] + 0.2 * noise
        assert fiedler_value(clustered) < 0.5 * gaussian_fiedler_value(self.ROWS)
        assert fiedler_value(clustered) < 0.6 * fiedler_value(noise)

    def test_clusters_that_know_nothing_of_each_other_have_none(self):
        weight = torch.zeros(8, 8)
        weight[:4, :4] = gaussian(4, 4, 1)
        weight[4:, 4:] = gaussian(4, 4, 2)
        assert fiedler_value(weight).item() == pytest.approx(0, abs=1e-12)
        assert fiedler_value(weight[:4]) > 0.1

    def test_a_row_that_stands_alone_is_left_out(self):
        weight = torch.zeros(5, 8, dtype=torch.float64)
        weight[:4, :6] = gaussian(4, 6, dtype=torch.float64)
        weight[4, 7] = 3.0
        assert same(fiedler_value(weight).item(), fiedler_value(weight[:4]).item(), 1e-12)

    def test_rows_of_which_no_two_are_joined_make_no_graph(self):
        assert math.isnan(fiedler_value(torch.eye(6)))
        assert redundancy(torch.eye(6)) == 0

    def test_two_joined_rows_are_as_connected_as_can_be(self):
        assert fiedler_value(torch.tensor([[1.0, 0.0], [1.0, 9.0]])).item() == pytest.approx(2)

    @pytest.mark.parametrize("seed", range(4))
    def test_one_direction_mixed_in_lowers_the_effective_rank(self, seed):
        noise = gaussian(self.ROWS, self.COLUMNS, seed)
        mixed = 10 * gaussian(self.ROWS, 1, seed + 100) @ gaussian(1, self.COLUMNS, seed + 200)
        healthy = row_spectrum(noise).effective_rank
        assert row_spectrum(noise + mixed).effective_rank < 0.6 * healthy
        assert row_spectrum(noise + mixed).kappa_p10 > 40

    @pytest.mark.parametrize("seed", range(4))
    def test_duplicates_raise_redundancy(self, seed):
        weight = gaussian(self.ROWS, self.COLUMNS, seed)
        twice = weight.clone()
        twice[self.ROWS // 2 :] = twice[0]
        assert redundancy(twice) > 20 * redundancy(weight)

    @pytest.mark.parametrize("seed", range(4))
    def test_rows_turned_away_or_turned_phase_are_as_redundant(self, seed):
        row = gaussian(1, 24, seed, torch.complex128)
        turned = row * torch.exp(1j * torch.linspace(0, 6, 9, dtype=torch.float64))[:, None]
        assert redundancy(turned).item() == pytest.approx(24)
        assert redundancy(torch.cat([row.real, -row.real])).item() == pytest.approx(24)

    @pytest.mark.parametrize("seed", range(3))
    def test_samples_of_one_matrix_agree(self, seed):
        weight = gaussian(512, 192, seed)
        ranks = [row_spectrum(weight, seed=s).effective_rank.log().item() for s in range(8)]
        assert np.std(ranks) < 0.01


class TestSampling:
    @settings(max_examples=100, deadline=None)
    @given(count=st.integers(0, 300), rows=st.integers(1, 300), seed=st.integers(0, 2**31))
    def test_a_sample_is_sorted_distinct_and_the_same_every_time(self, count, rows, seed):
        found = sample_rows(count, rows, seed=seed)
        if count <= rows:
            assert found is None
            return
        listed = found.tolist()
        assert listed == sorted(set(listed))
        assert len(listed) == rows
        assert set(listed) <= set(range(count))
        assert listed == sample_rows(count, rows, seed=seed).tolist()

    def test_all_rows_if_none_are_asked_for(self):
        assert sample_rows(1000, None) is None

    def test_another_seed_is_another_sample_and_every_row_is_drawn(self):
        samples = [sample_rows(40, 10, seed=seed).tolist() for seed in range(40)]
        assert len({tuple(sample) for sample in samples}) == 40
        assert {row for sample in samples for row in sample} == set(range(40))

    def test_the_spectrum_is_that_of_the_sampled_rows(self):
        weight = gaussian(300, 40)
        for seed in (0, 5):
            chosen = weight[sample_rows(300, 20, seed=seed)]
            found = numbers(row_spectrum(weight, 20, seed=seed))
            assert found == numbers(row_spectrum(chosen, None))
        assert numbers(row_spectrum(weight, 20)) != found
        assert numbers(row_spectrum(weight)) == numbers(row_spectrum(weight, SAMPLED_ROWS))
        assert numbers(row_spectrum(weight, 300)) == numbers(row_spectrum(weight, None))

    @pytest.mark.parametrize("rows", [0, -1])
    def test_no_rows_are_no_sample(self, rows):
        with pytest.raises(ValueError, match=f"rows={rows} must be at least 1"):
            row_spectrum(torch.eye(4), rows)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_row_that_is_not_finite_and_not_sampled_is_noticed(self, value):
        weight = gaussian(64, 16)
        weight[next(i for i in range(64) if i not in sample_rows(64, 8).tolist()), 3] = value
        assert all(math.isnan(v) for v in row_spectrum(weight, 8))

    def test_global_random_state_is_neither_consumed_nor_asked(self):
        weight = gaussian(300, 8)
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = numbers(row_spectrum(weight, 20))
        for measure in MEASURES.values():
            measure(weight)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        assert numbers(row_spectrum(weight, 20)) == first


class TestBatches:
    @pytest.mark.parametrize("dtype", SINGLE + DOUBLE)
    @pytest.mark.parametrize("columns", [3, 9, 40])
    def test_a_batch_of_gram_matrices_is_one_by_one(self, dtype, columns):
        rows = torch.randn(7, 9, columns, dtype=dtype, generator=torch.Generator().manual_seed(0))
        rows[1] = 0
        rows[2, 4] = 0
        rows[3, 2, 1] = math.nan
        rows[4, :, 1:] = 0
        rows[5, 1:] = 0
        rows[6] *= 1e-20
        grams = row_gram(rows)
        assert grams.dtype == dtype
        batch = spectrum_of_gram(grams, columns)
        for i in range(len(rows)):
            one = spectrum_of_gram(row_gram(rows[i]), columns)
            alone = row_spectrum(rows[i], None)
            for name in one._fields:
                value = getattr(batch, name)
                assert value.shape == (7,)
                assert same(value[i].item(), getattr(one, name).item(), 1e-6), (i, name)
                assert getattr(one, name).equal(getattr(alone, name)) or math.isnan(value[i])
        assert batch.effective_rank.isnan().tolist() == [False, True, False, True] + 3 * [False]

    def test_any_number_of_leading_dimensions(self):
        rows = torch.randn(2, 3, 6, 10, generator=torch.Generator().manual_seed(0))
        grid = spectrum_of_gram(row_gram(rows), 10)
        line = spectrum_of_gram(row_gram(rows.flatten(0, 1)), 10)
        for name in grid._fields:
            assert getattr(grid, name).shape == (2, 3)
            assert torch.allclose(getattr(grid, name).flatten(), getattr(line, name)), name

    @pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 5), (3, 4, 0), (3, 1, 5)])
    def test_batches_of_nothing_much(self, shape):
        found = spectrum_of_gram(row_gram(torch.ones(shape)), shape[-1])
        for name, value in found._asdict().items():
            one = shape[1] == 1 and name in ("effective_rank", "kappa_p10")
            assert value.shape == shape[:1]
            assert bool((value == 1).all() if one else value.isnan().all()), name

    def test_a_gram_matrix_is_of_rows_over_their_largest_magnitude(self):
        rows = gaussian(5, 7, dtype=torch.float64)
        expected = (rows @ rows.T) / rows.abs().max() ** 2
        assert torch.allclose(row_gram(rows), expected)
        assert torch.allclose(row_gram(1e200 * rows), expected)
        mixed = gaussian(5, 7, dtype=torch.complex128)
        assert torch.allclose(row_gram(mixed).mT, row_gram(mixed.conj()))
        assert row_gram(mixed).diagonal().imag.abs().max() < 1e-15

    def test_a_gram_matrix_that_rounding_made_unsymmetric_leaves_nothing_out_of_bounds(self):
        gram = torch.tensor([[1.0, 0.5], [0.5 + 1e-6, 1.0]])
        for twin in (gram, gram.T):
            assert spectrum_of_gram(twin, 2).fiedler_value.item() == pytest.approx(2, rel=1e-12)

    def test_effective_ranks_of_many_spectra(self):
        values = torch.tensor([[1.0, 1, 1], [2, 0, 0], [0, 0, 0], [1, math.nan, 1], [3, 1, 0]])
        found = effective_rank_of(values.double())
        share = np.array([0.75, 0.25])
        expected = [3, 1, math.nan, math.nan, float(np.exp(-(share * np.log(share)).sum()))]
        assert found.tolist() == pytest.approx(expected, nan_ok=True)
        assert effective_rank_of(values.double().flip(-1)).tolist() == pytest.approx(
            expected, nan_ok=True
        )
        assert effective_rank_of(torch.tensor([1.0, math.inf])).isnan()
        assert effective_rank_of(torch.zeros(4, 0)).isnan().tolist() == 4 * [True]

    def test_the_effective_rank_of_a_matrix_is_that_of_its_spectrum(self):
        weights = [gaussian(9, 12, seed) for seed in range(3)]
        batch = effective_rank_of(torch.stack([singular_values(weight) for weight in weights]))
        assert batch.tolist() == [effective_rank(weight).item() for weight in weights]


class TestOddMatrices:
    @pytest.mark.parametrize("dtype", SINGLE + DOUBLE + (torch.bfloat16, torch.float16))
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_what_is_not_finite_is_undefined(self, value, dtype):
        weight = gaussian(12, 10).to(dtype)
        weight[3, 4] = value
        for measure in MEASURES.values():
            assert math.isnan(measure(weight))
        assert all(math.isnan(v) for v in row_spectrum(weight))
        assert all(math.isnan(v) for v in row_spectrum(weight[3:4]))

    def test_an_imaginary_part_that_is_not_finite_is_undefined(self):
        weight = gaussian(6, 5, dtype=torch.complex64)
        weight[2, 2] = complex(1, math.nan)
        assert all(math.isnan(v) for v in row_spectrum(weight))

    @pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (0, 3, 5, 5), (4, 4), (1, 9)])
    def test_zero_and_empty(self, shape):
        for measure in MEASURES.values():
            assert math.isnan(measure(torch.zeros(shape)))
        assert all(math.isnan(v) for v in row_spectrum(torch.zeros(shape)))
        assert all(math.isnan(v) for v in row_spectrum(torch.zeros(shape), 2))

    def test_a_single_row(self):
        found = row_spectrum(gaussian(1, 7))
        assert found.effective_rank.item() == pytest.approx(1)
        assert found.kappa_p10.item() == pytest.approx(1)
        assert math.isnan(found.redundancy)
        assert math.isnan(found.fiedler_value)

    def test_a_single_column(self):
        found = row_spectrum(gaussian(7, 1))
        assert found.effective_rank.item() == pytest.approx(1)
        assert found.kappa_p10.item() == pytest.approx(1)
        assert found.redundancy.item() == pytest.approx(1)
        assert found.fiedler_value.item() == pytest.approx(7 / 6)

    def test_all_rows_dead_but_one(self):
        weight = torch.zeros(6, 5)
        weight[2] = torch.arange(5.0)
        found = row_spectrum(weight)
        assert found.effective_rank.item() == pytest.approx(1)
        assert found.kappa_p10 == math.inf
        assert math.isnan(found.redundancy)
        assert math.isnan(found.fiedler_value)

    def test_rows_too_short_to_have_an_angle_are_dead(self):
        weight = gaussian(8, 12)
        for factor in (1e-21, 1e-24, 1e-30):
            twin = weight.clone()
            twin[:3] *= factor
            assert same(fiedler_value(twin).item(), fiedler_value(weight[3:]).item(), 1e-6)
            assert same(redundancy(twin).item(), redundancy(weight[3:]).item(), 1e-6)
        alike = torch.cat([weight[:1].expand(4, 12), 1e-21 * weight])
        assert fiedler_value(alike).item() == pytest.approx(4 / 3)
        assert redundancy(alike).item() == pytest.approx(12)

    @pytest.mark.parametrize(
        "dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
    )
    def test_short_floats_are_their_values(self, dtype):
        weight = gaussian(16, 24).to(dtype)
        for name, value in numbers(row_spectrum(weight)).items():
            assert same(value, ORACLES[name](weight.double().numpy()), 1e-4), name

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_subnormal_values_are_their_values(self, dtype):
        weight = gaussian(10, 12, dtype=dtype) * (1e-42 if dtype == torch.float32 else 1e-316)
        assert weight.abs().max() > 0
        for name, value in numbers(row_spectrum(weight)).items():
            assert same(value, ORACLES[name](weight.numpy()), 1e-3), name

    def test_values_at_the_end_of_the_range(self):
        found = numbers(row_spectrum(torch.full((3, 4), 3e38)))
        assert found == pytest.approx(
            {"effective_rank": 1, "kappa_p10": math.inf, "redundancy": 4, "fiedler_value": 1.5}
        )

    @pytest.mark.parametrize(
        "strided",
        [
            lambda w: w.T.contiguous().T,
            lambda w: torch.stack([w, -w], dim=1).flatten(0, 1)[::2],
            lambda w: torch.stack([w, -w], dim=2)[..., 0],
            lambda w: w.clone().requires_grad_(),
            torch.nn.Parameter,
        ],
    )
    def test_strides_and_gradients_do_not_matter(self, strided):
        weight = gaussian(14, 9)
        twin = strided(weight)
        for name, value in numbers(row_spectrum(twin, 10)).items():
            assert same(value, numbers(row_spectrum(weight, 10))[name], 1e-5), name
        assert not any(v.requires_grad for v in row_spectrum(twin))

    def test_rows_are_not_columns(self):
        weight = gaussian(6, 12)
        weight[1] = weight[0]
        for name, value in numbers(row_spectrum(weight.T)).items():
            assert same(value, ORACLES[name](weight.T.numpy()), 1e-4), name
        assert abs(redundancy(weight.T) - redundancy(weight)) > 0.2

    def test_the_weight_is_not_changed(self):
        weight = gaussian(6, 12)
        before = weight.clone()
        row_spectrum(weight, 4)
        for measure in MEASURES.values():
            measure(weight)
        assert torch.equal(weight, before)

    def test_convolutions_are_flattened(self):
        weight = gaussian(6, 75).reshape(6, 3, 5, 5)
        assert numbers(row_spectrum(weight)) == numbers(row_spectrum(weight.flatten(1)))
        for measure in MEASURES.values():
            assert measure(weight).item() == measure(weight.flatten(1)).item()
        channels_last = weight.to(memory_format=torch.channels_last)
        assert numbers(row_spectrum(channels_last)) == numbers(row_spectrum(weight))

    @pytest.mark.parametrize("measure", [*MEASURES.values(), row_spectrum])
    def test_vectors_and_integers_have_no_spectrum(self, measure):
        for weight in (torch.ones(()), torch.ones(3)):
            with pytest.raises(ValueError, match=r"weight.dim\(\)=.* must be at least 2"):
                measure(weight)
        for dtype in (torch.int64, torch.bool):
            with pytest.raises(ValueError, match=f"weight.dtype={dtype}"):
                measure(torch.ones(3, 3, dtype=dtype))
