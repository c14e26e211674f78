"""Sums of bits: every flip is seen, and nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stableopt.runtime.bit_sum import bit_sum
from stableopt.testing import flip_bit

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64, torch.int64)


def filled(shape, dtype):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 100
    return values.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@given(data=st.data(), shape=st.lists(st.integers(1, 7), max_size=3))
def test_any_flip_of_a_bit_changes_it(dtype, data, shape):
    tensor = filled(shape, dtype)
    before = bit_sum(tensor)
    bit = data.draw(st.integers(0, 8 * tensor.itemsize - 1))
    index = data.draw(st.integers(0, tensor.numel() - 1))
    flip_bit(tensor, bit, index=index)
    assert bit_sum(tensor) != before
    flip_bit(tensor, bit, index=index)
    assert bit_sum(tensor) == before


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bool, torch.float8_e4m3fn])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (8, 3), (2, 3, 4)])
def test_of_any_dtype_and_layout(dtype, shape):
    tensor = filled(shape, dtype)
    assert bit_sum(tensor).dtype is torch.int64
    assert bit_sum(tensor) == bit_sum(tensor.clone())
    if len(shape) == 2:
        transposed = tensor.t()
        assert bit_sum(transposed) == bit_sum(transposed.clone())
        assert bit_sum(tensor[1:, 1]).shape == ()
