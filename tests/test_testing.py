"""Fault injectors change what they name, say what they did, and draw no global randomness."""

from __future__ import annotations

import math
from collections import OrderedDict, UserDict
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from stableopt import ConfigError, testing
from tests.contract.bits import assert_same
from tests.contract.scenario import copied, rng_state


@pytest.fixture
def trained():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    opt = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    opt.step()
    return model, opt


def changed(before, after):
    """Count elements whose bits differ."""
    count = 0
    for name, old in before.items():
        new = after[name]
        same = (old == new) | (old.isnan() & new.isnan())
        count += int((~same).sum())
    return count


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
def test_one_gradient_element(trained, value):
    model, opt = trained
    before = {n: p.grad.clone() for n, p in model.named_parameters()}
    done = testing.inject_gradient(opt, value, model=model, name="0.weight", seed=1)
    after = {n: p.grad for n, p in model.named_parameters()}
    assert changed(before, after) == 1
    assert done.target == "0.weight.grad"
    actual = float(model[0].weight.grad.flatten()[done.index])
    assert actual == done.after or (math.isnan(actual) and math.isnan(value))
    assert float(before["0.weight"].flatten()[done.index]) == done.before


@pytest.mark.parametrize("coalesced", [False, True])
def test_a_sparse_gradient(coalesced):
    embedding = nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1, 3, 1])).sum().backward()
    if coalesced:
        embedding.weight.grad = embedding.weight.grad.coalesce()
    testing.inject_gradient(torch.optim.SparseAdam(embedding.parameters()), math.nan)
    assert embedding.weight.grad.coalesce().values().isnan().sum() == 1


def test_weights_moments_and_buffers(trained):
    model, opt = trained
    for corrupt, tensor in (
        (
            lambda **k: testing.corrupt_weight(opt, model=model, name="0.weight", **k),
            lambda: model[0].weight,
        ),
        (
            lambda **k: testing.corrupt_moment(
                opt, "exp_avg_sq", model=model, name="2.weight", **k
            ),
            lambda: opt.state[model[2].weight]["exp_avg_sq"],
        ),
        (
            lambda **k: testing.corrupt_buffer(model, name="1.running_var", **k),
            lambda: model[1].running_var,
        ),
    ):
        pointer = tensor().data_ptr()
        done = corrupt(bit=30, index=2)
        assert done.index == 2
        assert abs(done.after) > 1e30 * abs(done.before)
        corrupt(value=math.nan, seed=3)
        assert tensor().isnan().sum() == 1
        assert tensor().data_ptr() == pointer


DTYPES = {torch.float32: 32, torch.float64: 64, torch.float16: 16, torch.bfloat16: 16}


@given(st.data(), st.sampled_from(list(DTYPES)))
def test_a_bit_flipped_twice_is_the_original(data, dtype):
    bit = data.draw(st.integers(0, DTYPES[dtype] - 1))
    index = data.draw(st.integers(-6, 5))
    tensor = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).to(dtype).t()
    before = tensor.clone()
    done = testing.flip_bit(tensor, bit, index=index)
    assert not torch.equal(tensor, before)
    assert (tensor.flatten() == before.flatten()).sum() >= 5
    testing.flip_bit(tensor, bit, index=done.index)
    assert_same(tensor, before)


def test_known_flips():
    assert testing.flip_bit(torch.tensor([1.0]), 31).after == -1.0
    assert testing.flip_bit(torch.tensor([1.0]), 23).after == 0.5
    assert testing.flip_bit(torch.tensor([0.02]), 30).after > 1e36
    assert testing.flip_bit(torch.tensor([1.0], dtype=torch.bfloat16), 15).after == -1.0


def test_a_poisoned_batch_is_a_copy():
    batch = {"x": torch.zeros(2, 3), "y": [torch.arange(100), "name"], "mask": torch.ones(2).bool()}
    before = copied({"x": batch["x"], "y": batch["y"][0]})
    poisoned = testing.poison_batch(batch, math.inf)
    assert poisoned["x"].isinf().sum() == 1
    assert not torch.equal(poisoned["y"][0], batch["y"][0])
    assert 0 <= int(poisoned["y"][0].min()) <= int(poisoned["y"][0].max()) < 100
    assert poisoned["y"][1] == "name"
    assert poisoned["mask"].all()
    assert_same({"x": batch["x"], "y": batch["y"][0]}, before)


@dataclass
class Sample:
    x: torch.Tensor
    name: str


def test_batches_of_any_make():
    poisoned = testing.poison_batch(UserDict(x=torch.zeros(3), n=1))
    assert isinstance(poisoned, UserDict)
    assert poisoned["x"].isnan().sum() == 1
    assert testing.poison_batch(Sample(torch.zeros(3), "a")).x.isnan().sum() == 1
    assert isinstance(testing.poison_batch(OrderedDict(x=torch.zeros(3))), OrderedDict)
    extremes = testing.poison_batch(torch.tensor([-(2**63), 2**63 - 1, 0, 5]))
    assert extremes.dtype is torch.int64


def test_empty_parameters_are_never_drawn():
    opt = torch.optim.SGD([nn.Parameter(torch.ones(0)), nn.Parameter(torch.ones(1))], lr=0.1)
    assert {testing.corrupt_weight(opt, seed=seed).target for seed in range(6)} == {"0.1"}


def test_seeds_decide_and_global_randomness_is_not_touched(trained):
    model, opt = trained
    before = rng_state()
    places = {testing.inject_gradient(opt, 0.5, seed=seed) for seed in range(12)}
    again = {testing.inject_gradient(opt, 0.5, seed=seed).index for seed in (3, 3)}
    testing.poison_batch(torch.arange(9))
    testing.corrupt_buffer(model)
    assert len({p.target for p in places}) > 2
    assert len(again) == 1
    assert_same(rng_state(), before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m, o: testing.inject_gradient(o, name="0.wieght", model=m),
            "did you mean '0.weight'",
        ),
        (lambda m, o: testing.corrupt_moment(o, "momentum"), "no parameter with state 'momentum'"),
        (lambda m, o: testing.corrupt_buffer(nn.Linear(1, 1)), "no floating buffer"),
        (lambda m, o: testing.corrupt_weight(o, value=None), "value=None"),
        (lambda m, o: testing.flip_bit(torch.ones(2), 32), "bit=32 must be"),
        (lambda m, o: testing.flip_bit(torch.ones(2), -1), "bit=-1"),
        (lambda m, o: testing.flip_bit(torch.ones(2, dtype=torch.complex64), 1), "dtype"),
        (lambda m, o: testing.inject_value(torch.ones(2), 1.0, index=2), "index=2 is out of range"),
        (lambda m, o: testing.inject_value(torch.ones(0), 1.0), "empty"),
        (lambda m, o: testing.inject_value(torch.arange(3), 1.0), "dtype"),
        (lambda m, o: testing.inject_value(torch.ones(2), 1e39), "value=1e.39 cannot be held"),
        (lambda m, o: testing.inject_value(torch.ones(2).half(), 1e5), "cannot be held"),
        (lambda m, o: testing.inject_value(torch.ones(2), "1"), "value='1' must be a number"),
        (lambda m, o: testing.inject_value(torch.ones(2), 1.0, index=0.5), "index=0.5 must be"),
        (lambda m, o: testing.inject_value(torch.ones(2), 1.0, seed="a"), "seed='a' must be"),
        (lambda m, o: testing.inject_value([1.0], 1.0), "must be a tensor"),
        (lambda m, o: testing.inject_value(torch.ones(2, device="meta"), 1.0), "must be a tensor"),
        (lambda m, o: testing.poison_batch("text"), "nothing can be poisoned"),
        (lambda m, o: testing.poison_batch([torch.ones(3).long()]), "nothing can be poisoned"),
    ],
)
def test_bad_input(trained, call, message):
    with pytest.raises(ConfigError, match=message):
        call(*trained)


def test_no_gradient_to_inject_into():
    opt = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(ConfigError, match="no parameter with a gradient"):
        testing.inject_gradient(opt)
