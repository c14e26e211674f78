"""Caps on singular values: none rises, the distance is the least, and nothing else moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stableopt.functional.caps import exact_cap, fast_cap, soft_cap
from tests.reference import caps, spectra

EXACT = settings(max_examples=120, deadline=None)
REAL = (torch.float32, torch.float64)
ALL = (*REAL, torch.complex64, torch.complex128)


@st.composite
def matrices(draw, dtypes=ALL, scales=(-30, 30)):
    """Draw a matrix with a known kind of spectrum, at any scale."""
    rows, columns = draw(st.integers(1, 32)), draw(st.integers(1, 32))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    dtype = draw(st.sampled_from(dtypes))
    weight = torch.randn(rows, columns, dtype=dtype, generator=generator)
    kind = draw(st.sampled_from(["gaussian", "decaying", "low rank", "repeated", "doubled"]))
    if kind == "decaying":
        weight = weight * torch.logspace(0, -4, columns).to(dtype)
    if kind == "low rank":
        weight = weight[:, :1] @ weight[:1]
    if kind == "repeated":
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        weight = (left * torch.where(values > values.median(), 2.0, 1.0)) @ right
    if kind == "doubled":
        weight = weight[torch.arange(rows) // 2]
    return weight * 10.0 ** draw(st.integers(*scales))


def values(weight):
    return spectra.singular_values(weight.numpy())


def distance(weight, other):
    wide = torch.complex128 if weight.is_complex() else torch.float64
    return float(torch.linalg.vector_norm(weight.to(wide) - other.to(wide)))


def basis_of(weight, size, generator):
    """Return a random orthonormal basis of as many rows."""
    drawn = torch.randn(weight.shape[1], size, dtype=weight.dtype, generator=generator)
    return torch.linalg.qr(drawn).Q.mH


class TestFastCap:
    @EXACT
    @given(weight=matrices(), share=st.floats(0.01, 1.5), data=st.data())
    def test_no_singular_value_rises_and_it_goes_no_farther_than_needed(self, weight, share, data):
        size = data.draw(st.integers(1, weight.shape[1]))
        basis = basis_of(weight, size, torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
        before = values(weight)
        limit = share * before[0]
        capped = fast_cap(weight, limit, basis)
        rounding = 1e-6 * before[0]
        assert (values(capped) <= before + rounding).all()
        assert distance(weight, capped) <= caps.distance(weight.numpy(), limit) + rounding
        assert capped.dtype == weight.dtype
        assert capped.shape == weight.shape

    @EXACT
    @given(weight=matrices(), share=st.floats(0.05, 0.95), spare=st.integers(0, 3))
    def test_with_the_leading_vectors_it_is_the_nearest_matrix(self, weight, share, spare):
        before = values(weight)
        limit = share * before[0]
        _, _, right = np.linalg.svd(caps._wide(weight.numpy()), full_matrices=False)
        size = min(len(right), int((before > limit).sum()) + spare)
        basis = torch.from_numpy(right[:size]).to(weight.dtype)
        capped = fast_cap(weight, limit, basis)
        nearest = torch.from_numpy(caps.capped(weight.numpy(), limit))
        assert distance(capped, nearest) <= 2e-6 * before[0]

    def test_a_stale_basis_takes_less_away_and_adds_nothing(self):
        torch.manual_seed(0)
        weight, other = torch.randn(40, 30), torch.randn(40, 30)
        stale = torch.linalg.svd(other).Vh[:4]
        before = values(weight)
        capped = fast_cap(weight, 0.3 * before[0], stale)
        assert (values(capped) <= before + 1e-6 * before[0]).all()
        assert 0 < distance(weight, capped) < caps.distance(weight.numpy(), 0.3 * before[0])

    @pytest.mark.parametrize("limit", [4.0, 4.1, 3.99997])
    def test_what_is_under_the_limit_is_returned_as_it_is(self, limit):
        weight = torch.diag(torch.tensor([4.0, 1.0]))
        assert fast_cap(weight, limit, torch.eye(2)) is weight

    def test_it_may_aim_lower_than_what_it_acts_on(self):
        weight = torch.diag(torch.tensor([4.0, 3.0]))
        assert fast_cap(weight, 2.0, torch.eye(2), only_above=4.0) is weight
        capped = fast_cap(weight, 2.0, torch.eye(2), only_above=3.9)
        assert capped.diagonal().tolist() == [2.0, 2.0]

    def test_without_a_matrix_or_a_basis_there_is_nothing_to_cap(self):
        empty, weight = torch.zeros(0, 3), torch.ones(2, 3)
        assert fast_cap(empty, 1.0, torch.eye(3)) is empty
        assert fast_cap(weight, 1.0, torch.zeros(0, 3)) is weight

    def test_autocast_is_out_of_reach(self):
        weight = torch.randn(9, 7, generator=torch.Generator().manual_seed(0))
        expected = fast_cap(weight, 1.0, torch.eye(7))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(fast_cap(weight, 1.0, torch.eye(7)), expected)


class TestExactCap:
    @EXACT
    @given(weight=matrices(), share=st.floats(1e-4, 1.5))
    def test_it_is_the_nearest_matrix_of_that_norm(self, weight, share):
        before = values(weight)
        limit = share * before[0]
        capped = exact_cap(weight, limit)
        assert values(capped)[0] <= limit * (1 + 1e-5)
        assert distance(weight, capped) <= caps.distance(weight.numpy(), limit) + 1e-6 * before[0]
        nearest = torch.from_numpy(caps.capped(weight.numpy(), limit))
        # Where nothing is above by more than rounding nothing is done.
        assert distance(capped, nearest) <= (1e-6 + 2e-5 * share) * before[0] * len(before)
        assert exact_cap(capped, limit) is capped
        assert capped.dtype == weight.dtype

    @pytest.mark.parametrize("dtype", ALL)
    @pytest.mark.parametrize("ratio", [1e2, 1e4, 1e6, 1e8, 1e12, 1e16])
    def test_a_norm_far_above_the_limit_hides_nothing_above_it(self, dtype, ratio):
        generator = torch.Generator().manual_seed(0)
        left, right = (
            torch.linalg.qr(torch.randn(20, 16, dtype=torch.float64, generator=generator)).Q
            for _ in range(2)
        )
        weight = ((left * torch.logspace(0, -15, 16, dtype=torch.float64)) @ right.mH).to(dtype)
        capped = exact_cap(weight, 1 / ratio)
        assert values(capped)[0] <= (1 + 1e-5) / ratio
        assert exact_cap(capped, 1 / ratio) is capped

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_keeps_its_dtype(self, dtype):
        weight = torch.randn(12, 20, generator=torch.Generator().manual_seed(0)).to(dtype)
        capped = exact_cap(weight, 2.0)
        assert capped.dtype == dtype
        assert values(capped.float())[0] <= 2.0 * (1 + torch.finfo(dtype).eps)

    @pytest.mark.parametrize("shape", [(3, 3), (0, 4), (4, 0), (7, 2)])
    def test_zero_and_empty_are_returned_as_they_are(self, shape):
        weight = torch.zeros(shape)
        assert exact_cap(weight, 1.0) is weight

    def test_it_may_aim_lower_than_what_it_acts_on(self):
        weight = torch.diag(torch.tensor([4.0, 3.0, 1.0]))
        assert exact_cap(weight, 2.0, only_above=4.0) is weight
        assert exact_cap(weight, 2.0, only_above=3.9).diagonal().tolist() == [2.0, 2.0, 1.0]

    def test_the_argument_is_not_written(self):
        weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
        before = weight.clone()
        for capped in (
            exact_cap(weight, 0.1),
            soft_cap(weight, 9.0),
            fast_cap(weight, 0.1, weight),
        ):
            assert capped is not weight
        assert torch.equal(weight, before)


class TestSoftCap:
    @EXACT
    @given(weight=matrices(), strength=st.floats(1e-3, 1 / 3))
    def test_it_is_one_cubic_step(self, weight, strength):
        before = values(weight)
        flat = soft_cap(weight, float(before[0]), strength)
        expected = torch.from_numpy(caps.flattened(weight.numpy(), strength))
        assert distance(flat, expected) <= 2e-6 * before[0]
        assert (values(flat) <= before + 1e-6 * before[0]).all()
        assert flat.dtype == weight.dtype

    @EXACT
    @given(
        weight=matrices(dtypes=(torch.float64, torch.complex128)), strength=st.floats(1e-3, 1 / 3)
    )
    def test_the_spectrum_gets_flatter(self, weight, strength):
        before = values(weight)
        after = values(soft_cap(weight, float(before[0]), strength))
        rank = int((before > 1e-7 * before[0]).sum())
        top = before[:rank]
        # The same vectors in the same order: what was larger stays larger.
        expected = top * (1 - strength * (top / top[0]) ** 2)
        np.testing.assert_allclose(after[:rank], expected, rtol=1e-6)
        assert after[0] / after[rank - 1] <= top[0] / top[-1] * (1 + 1e-6)
        ranks = [spectra.effective_rank(np.diag(x)) for x in (top, after[:rank])]
        assert ranks[1] >= ranks[0] * (1 - 1e-9)

    @settings(max_examples=60, deadline=None)
    @given(weight=matrices(dtypes=(torch.float64,)), excess=st.floats(1.0, 3.0))
    def test_an_upper_bound_of_the_norm_does_less_of_the_same(self, weight, excess):
        before = values(weight)
        after = values(soft_cap(weight, excess * float(before[0])))
        assert (after <= before + 1e-12 * before[0]).all()
        assert after[0] >= before[0] * (1 - 1 / (3 * excess**2)) * (1 - 1e-9)

    @pytest.mark.parametrize("strength", [0.0, -0.1, 0.34, 1.0, float("nan"), float("inf")])
    def test_a_strength_that_would_change_the_order_is_refused(self, strength):
        with pytest.raises(ValueError, match=r"strength=.* must be above 0 and at most 1/3"):
            soft_cap(torch.eye(3), 1.0, strength)
