"""ClipGradNorm equals torch's clip bit for bit, and survives what torch's does not."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from stableopt import Action, ClipGradNorm, StableOptimizer
from tests.contract.bits import assert_same
from tests.contract.scenario import copied


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("max_norm", [1e-8, 0.1, 1.0, 5.0, math.inf])
def test_a_run_equals_torch_clipping_bit_for_bit(dtype, max_norm):
    def trained(ours):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 2)).to(dtype)
        opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
        if ours:
            opt = StableOptimizer(opt, transforms=[ClipGradNorm(max_norm)])
        for step in range(12):
            opt.zero_grad()
            (model(torch.randn(4, 5, dtype=dtype)).float().pow(2).mean() * 3**step).backward()
            if not ours:
                torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            opt.step()
        return copied(model.state_dict()), [p.grad.clone() for p in model.parameters()]

    assert_same(trained(True), trained(False))


def test_right_at_the_bound_the_rounding_is_that_of_torch():
    for norm in torch.linspace(0.98, 1.02, 401).tolist():
        ours = torch.nn.Parameter(torch.zeros(3))
        ours.grad = torch.tensor([norm, 0.0, 1e-4])
        theirs = copy.deepcopy(ours)
        theirs.grad = ours.grad.clone()
        torch.nn.utils.clip_grad_norm_([theirs], 1.0)
        still = torch.optim.SGD([ours], lr=0.0)
        StableOptimizer(still, sensors=(), transforms=[ClipGradNorm(1.0)]).step()
        assert_same(ours.grad, theirs.grad)


def test_huge_finite_gradients_are_scaled_where_torch_zeroes_them():
    ours = torch.nn.Parameter(torch.zeros(4))
    theirs = torch.nn.Parameter(torch.zeros(4))
    ours.grad = torch.full((4,), 1e30)
    theirs.grad = torch.full((4,), 1e30)
    opt = StableOptimizer(torch.optim.SGD([ours], lr=1.0), transforms=[ClipGradNorm(2.0)])
    opt.step()
    torch.nn.utils.clip_grad_norm_([theirs], 2.0)
    assert opt.verdict.action is Action.TAKE
    assert ours.tolist() == pytest.approx([-1.0] * 4)
    assert theirs.grad.tolist() == [0.0] * 4


def test_sparse_gradients_are_clipped():
    embedding = torch.nn.Embedding(6, 2, sparse=True)
    opt = StableOptimizer(
        torch.optim.SGD(embedding.parameters(), lr=1.0), transforms=[ClipGradNorm(1.0)]
    )
    before = embedding.weight.detach().clone()
    (embedding(torch.tensor([1, 1, 3])).sum() * 10).backward()
    opt.step()
    assert float((embedding.weight - before).detach().norm()) == pytest.approx(1.0)


def test_a_skipped_step_leaves_the_gradients_as_they_were():
    w = torch.nn.Parameter(torch.zeros(3))
    opt = StableOptimizer(torch.optim.SGD([w], lr=1.0), transforms=[ClipGradNorm(1.0)])
    w.grad = torch.tensor([30.0, 40.0, math.nan])
    opt.step()
    assert w.grad[:2].tolist() == [30.0, 40.0]


def test_without_a_guard_it_clips_like_torch():
    w = torch.nn.Parameter(torch.zeros(2))
    opt = StableOptimizer(torch.optim.SGD([w], lr=1.0), guard=False, transforms=[ClipGradNorm(1.0)])
    w.grad = torch.tensor([30.0, 40.0])
    opt.step()
    assert w.tolist() == pytest.approx([-0.6, -0.8])
