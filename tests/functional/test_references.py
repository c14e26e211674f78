"""What a Gaussian matrix reads, against draws of one."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stableopt.functional import (
    gaussian_condition_number,
    gaussian_effective_rank,
    gaussian_fiedler_value,
    gaussian_kappa_p10,
    square_condition_tail,
)
from tests.reference import rows as oracle

SHAPES = {"rows": gaussian_effective_rank, "kappa": gaussian_kappa_p10}
SHAPES["condition"] = gaussian_condition_number


@lru_cache
def spectra_of_draws(rows, columns, count):
    """Return the singular values of that many Gaussian matrices, largest first."""
    draws = np.random.default_rng(7).standard_normal((count, rows, columns))
    return np.linalg.svd(draws, compute_uv=False)


def effective_ranks(values):
    share = values / values.sum(1, keepdims=True)
    return np.exp(-(share * np.log(share)).sum(1))


@pytest.mark.parametrize(
    ("shape", "count", "above"),
    [
        ((16, 16), 400, 0.015),
        ((16, 64), 200, 0.015),
        ((32, 32), 200, 0.009),
        ((128, 32), 100, 0.009),
        ((64, 64), 60, 0.005),
        ((64, 256), 20, 0.005),
        ((128, 128), 20, 0.005),
        ((128, 512), 5, 0.005),
    ],
)
def test_the_effective_rank_of_draws_is_a_little_below_the_law(shape, count, above):
    ratio = gaussian_effective_rank(*shape) / effective_ranks(spectra_of_draws(*shape, count))
    assert -0.001 < ratio.mean() - 1 < above


@pytest.mark.parametrize(
    ("shape", "count", "above"),
    [
        ((32, 32), 200, 0.12),
        ((32, 128), 100, 0.12),
        ((128, 128), 20, 0.05),
        ((128, 512), 5, 0.05),
        ((512, 128), 5, 0.05),
    ],
)
def test_the_tenth_of_draws_is_a_little_above_the_law(shape, count, above):
    values = spectra_of_draws(*shape, count)
    drawn = np.median(values[:, 0] / np.quantile(values, 0.1, axis=1))
    assert 0 < gaussian_kappa_p10(*shape) / drawn - 1 < above


@pytest.mark.parametrize(
    ("rows", "below"), [(16, (0.10, 0.14)), (32, (0.04, 0.065)), (128, (0.002, 0.017))]
)
def test_the_fiedler_value_of_draws_is_a_little_above_the_fit(rows, below):
    generator = np.random.default_rng(7)
    for columns in (2 * rows, 6 * rows):
        draws = generator.standard_normal((16384 // rows // rows + 4, rows, columns))
        drawn = [oracle.fiedler_value(draw) for draw in draws]
        assert below[0] < np.mean(drawn) - gaussian_fiedler_value(rows) < below[1]


def test_a_fiedler_value_of_two_rows_is_not_below_zero():
    assert gaussian_fiedler_value(2) == 0.0


@pytest.mark.parametrize(
    ("shape", "count", "off"),
    [((16, 64), 300, 0.15), ((64, 128), 40, 0.1), ((256, 64), 30, 0.06), ((32, 1024), 20, 0.03)],
)
def test_the_condition_number_of_rectangles_is_that_of_the_edges(shape, count, off):
    values = spectra_of_draws(*shape, count)
    drawn = np.median(values[:, 0] / values[:, -1])
    assert 0 < gaussian_condition_number(*shape) / drawn - 1 < off


def test_a_square_is_a_little_above_its_median():
    for size in (24, 64, 256):
        value = gaussian_condition_number(size, size)
        assert value / size == pytest.approx(4, rel=0.03)
        assert 0.4 < square_condition_tail(size, value) < 0.5


@pytest.mark.parametrize("times", [0.7, 1.5, 4.0, 10.0, 40.0])
def test_the_tail_of_squares_is_the_frequency_of_draws(times):
    size, count = 24, 600
    values = spectra_of_draws(size, size, count)
    frequency = (values[:, 0] / values[:, -1] > times * size).mean()
    law = square_condition_tail(size, times * size)
    # Four standard errors, and half a hundredth for a law that is that of large sizes.
    assert abs(frequency - law) < 4 * math.sqrt(law * (1 - law) / count) + 0.005


def test_the_tail_is_a_probability_that_falls():
    limits = [1e-200, 0.5, 1.0, 30.0, 300.0, 3e3, 3e5, 1e12, math.inf]
    tail = [square_condition_tail(100, limit) for limit in limits]
    assert tail[:4] == [1.0, 1.0, 1.0, pytest.approx(1)]
    assert tail == sorted(tail, reverse=True)
    assert tail[-2] == pytest.approx(200 / 1e12)
    assert tail[-1] == 0.0


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 3000), columns=st.integers(1, 3000))
def test_shapes_that_are_turned_are_alike_and_within_their_bounds(rows, columns):
    for reference in SHAPES.values():
        assert reference(rows, columns) == reference(columns, rows) >= 1
    assert gaussian_effective_rank(rows, columns) <= min(rows, columns)
    if min(rows, columns) > 1:
        assert gaussian_effective_rank(rows, columns) < gaussian_effective_rank(
            rows, 2 * columns + rows
        )
    assert gaussian_kappa_p10(rows, columns) <= gaussian_condition_number(rows, columns) * 4


def test_a_vector_has_one_direction():
    assert gaussian_effective_rank(1, 1) == gaussian_effective_rank(1, 50) == 1
    assert gaussian_kappa_p10(1, 1) == gaussian_kappa_p10(50, 1) == 1
    assert gaussian_condition_number(1, 50) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("reference", SHAPES.values())
def test_a_dimension_below_one_is_an_error(reference):
    for rows, columns, name in ((0, 4, "rows=0"), (4, -1, "columns=-1")):
        with pytest.raises(ValueError, match=f"{name} must be at least 1"):
            reference(rows, columns)


def test_what_has_no_tail_is_an_error():
    for limit in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"limit=.* must be above 0"):
            square_condition_tail(8, limit)
    with pytest.raises(ValueError, match="must be at least 1"):
        square_condition_tail(0, 10.0)


def test_one_row_has_no_neighbour():
    with pytest.raises(ValueError, match="rows=1 must be at least 2"):
        gaussian_fiedler_value(1)


def test_no_random_number_is_drawn():
    before = torch.get_rng_state()
    gaussian_effective_rank(37, 41)
    gaussian_kappa_p10(37, 43)
    assert torch.equal(torch.get_rng_state(), before)
