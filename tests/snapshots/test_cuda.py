"""Snapshots of what lives on an accelerator, on it and in pinned host memory."""

from __future__ import annotations

import math

import pytest
import torch

from stableopt import Action, Guard, StableOptimizer
from stableopt.testing import corrupt_weight
from tests.contract.bits import assert_same
from tests.contract.scenario import copied

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def trained(batches, fault_at=None, **options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(16, 32), torch.nn.BatchNorm1d(32), torch.nn.Dropout(0.3)
    ).cuda()
    inner = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    opt = StableOptimizer(inner, model=model, guard=Guard(**options)) if options else inner
    rollback = None
    for batch in batches:
        if batch == fault_at:
            corrupt_weight(opt, math.nan, seed=2)
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(batch)).cuda()
        opt.zero_grad()
        model(x).pow(2).mean().backward()
        opt.step()
        if options and opt.verdict.rollback is not None:
            rollback = opt.verdict.rollback
    ended = copied([dict(model.state_dict()), inner.state_dict()["state"]])
    return opt, rollback, [ended, torch.cuda.get_rng_state()]


@pytest.mark.parametrize("memory", ["device", "host"])
def test_the_run_is_the_one_that_never_saw_the_fault(memory):
    opt, rollback, actual = trained(range(14), fault_at=9, every=4, memory=memory)
    assert [event.action for event in opt.ledger] == [Action.ROLL_BACK]
    assert opt.summary()["snapshots"]["memory"] == memory
    _, _, expected = trained([*range(rollback.to_step), *range(10, 14)])
    assert_same(actual, expected)


@pytest.mark.parametrize("memory", ["device", "host"])
def test_snapshots_lie_where_they_are_said_to_lie(memory):
    opt, _, _ = trained(range(10), every=4, memory=memory)
    for snapshot in opt._loop.restorer.keeper._snapshots:
        for tensor in snapshot._state._params:
            assert tensor.is_cuda is (memory == "device")
            assert tensor.is_pinned() is (memory == "host")


def test_what_does_not_fit_on_the_device_moves_to_the_host(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    opt, _, _ = trained(range(3), every=4)
    assert opt.summary()["snapshots"]["memory"] == "host"
