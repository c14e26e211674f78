"""The shadow of the buffers follows every way a model may change them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stableopt.runtime.buffers import BufferShadow
from tests.contract.bits import assert_same
from tests.contract.scenario import copied


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("cache", torch.zeros(2, 3), persistent=False)
        self.register_buffer("initialized", torch.tensor(False))
        self.register_buffer("codes", torch.arange(4))
        self.register_buffer("later", None)
        self.register_buffer("shared", self.norm.running_mean)


def buffers(model):
    return copied(dict(model.named_buffers()))


def test_every_kind_of_change_is_undone():
    model = Odd()
    shadow = BufferShadow(model)
    for _ in range(3):
        model.norm(torch.randn(5, 2))
        model.cache = torch.randn(4, 3)
        shadow.refresh()
        before = buffers(model)
        pointer = model.norm.running_mean.data_ptr()
        model.norm(torch.full((5, 2), torch.nan))
        model.cache = torch.randn(7, 3)
        model.initialized.fill_(True)
        model.codes += 1
        model.later = torch.ones(2)
        shadow.restore()
        assert_same(buffers(model), before)
        assert model.later is None
        assert model.norm.running_mean.data_ptr() == pointer
        assert model.shared is model.norm.running_mean


def test_restoring_twice_does_not_hand_out_the_shadow():
    model = Odd()
    shadow = BufferShadow(model)
    before = buffers(model)
    for _ in range(2):
        model.cache = torch.ones(9)
        model.norm.running_var.fill_(5)
        shadow.restore()
        model.cache.add_(3)
        shadow.restore()
        assert_same(buffers(model), before)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_what_is_added_moved_or_materialized_later_is_seen():
    model = Odd()
    model.lazy = nn.LazyBatchNorm1d()
    shadow = BufferShadow(model)
    model.register_buffer("late", torch.zeros(2))
    model.norm.add_module("inner", nn.BatchNorm1d(3))
    model.lazy(torch.randn(4, 5))
    model.double()
    shadow.refresh()
    before = buffers(model)
    model.late.fill_(9)
    model.norm.inner(torch.randn(4, 3).double())
    model.lazy(torch.randn(4, 5).double())
    shadow.restore()
    assert_same(buffers(model), before)


def test_a_model_that_moved_since_keeps_its_dtype():
    model = Odd()
    shadow = BufferShadow(model)
    before = buffers(model)
    model.double()
    model.norm(torch.full((5, 2), torch.nan).double())
    model.cache = torch.ones(5, dtype=torch.float64)
    shadow.restore()
    assert model.norm.running_mean.dtype is torch.float64
    assert model.cache.dtype is torch.float64
    assert_same(model.norm.running_var.float(), before["norm.running_var"])
    model.norm(torch.randn(5, 2).double())


def test_refresh_takes_what_was_loaded():
    model = Odd()
    shadow = BufferShadow(model)
    model.load_state_dict(
        {k: v + 1 for k, v in model.state_dict().items() if v.dtype != torch.bool}, strict=False
    )
    model.extra = nn.BatchNorm1d(3)
    shadow.refresh()
    before = buffers(model)
    model.extra(torch.randn(4, 3))
    model.norm(torch.randn(4, 2))
    shadow.restore()
    assert_same(buffers(model), before)
