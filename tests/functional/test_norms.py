"""Norms against float64 oracles, over dtypes, layouts and magnitudes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stableopt.functional import all_finite, dense_values, safe_norm, tensor_norms, total_norm

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64]

lists = st.lists(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=0, max_size=6), min_size=1, max_size=5
)


def oracle(tensors):
    return math.sqrt(sum(float(t.to(torch.complex128).abs().pow(2).sum()) for t in tensors))


@given(lists, st.lists(st.sampled_from(DTYPES), min_size=5, max_size=5))
def test_norms_of_any_mix_agree_with_float64(values, dtypes):
    tensors = [torch.tensor(v).to(d) for v, d in zip(values, dtypes, strict=False)]
    norms = tensor_norms(tensors)
    for norm, tensor in zip(norms, tensors, strict=True):
        if math.isfinite(float(norm)):  # float16 overflows, which safe_norm is for
            assert float(norm) == pytest.approx(oracle([tensor]), rel=0.02, abs=1e-5)
    total = float(total_norm(norms))
    if math.isfinite(total):
        assert total == pytest.approx(oracle(tensors), rel=0.02, abs=1e-4)
    assert safe_norm(tensors) == pytest.approx(oracle(tensors), rel=1e-9, abs=1e-12)


@given(lists)
def test_the_total_is_the_one_of_torch_bit_for_bit(values):
    tensors = [torch.tensor(v) for v in values]
    ours = total_norm(tensor_norms(tensors))
    theirs = torch.nn.utils.get_total_norm(tensors)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e30, 3e38])
def test_safe_norm_neither_overflows_nor_underflows(scale):
    tensors = [torch.full((16,), scale), torch.full((9,), scale)]
    exact = float(tensors[0][0]) * 5
    assert safe_norm(tensors) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, math.nan], math.nan),
        ([1.0, math.inf], math.inf),
        ([math.inf, -math.inf], math.inf),
        ([math.inf, math.nan], math.nan),
        ([0.0, 0.0], 0.0),
        ([], 0.0),
    ],
)
def test_safe_norm_of_what_is_no_number(values, expected):
    actual = safe_norm([torch.tensor(values), torch.ones(1) * 0])
    assert actual == expected or (math.isnan(actual) and math.isnan(expected))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_bad_value_is_found(bad, dtype):
    tensor = torch.ones(3, 5).to(dtype).t()
    assert all_finite(tensor)
    tensor[2, 1] = bad
    assert not all_finite(tensor)
    assert all_finite(torch.zeros(0))


def test_values_of_sparse_tensors_are_summed_first():
    i = torch.tensor([[0, 2, 0]])
    v = torch.tensor([3e38, 1.0, 3e38])
    sparse = torch.sparse_coo_tensor(i, v, (4,), check_invariants=True)
    assert dense_values(sparse).tolist() == [math.inf, 1.0]
    assert not sparse.is_coalesced()


@pytest.mark.filterwarnings("ignore:Sparse")
def test_values_of_compressed_sparse_tensors():
    assert dense_values(torch.eye(3).to_sparse_csr()).tolist() == [1.0, 1.0, 1.0]
