"""Observations of a batch without a step do not count for the next one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from stableopt import ConfigError, Guard, StableOptimizer


def by_opt(opt, model):
    opt.zero_grad()


def by_model(opt, model):
    model.zero_grad()


def by_hand(opt, model):
    for parameter in model.parameters():
        parameter.grad = None


def never(opt, model):
    pass


RESETS = [by_opt, by_model, by_hand, never]


class Run:
    def __init__(self, reset, **guard):
        torch.manual_seed(0)
        self.model = nn.Linear(4, 1)
        inner = torch.optim.AdamW(self.model.parameters(), lr=1e-2, fused=True)
        self.opt = StableOptimizer(inner, model=self.model, guard=Guard(**guard))
        self.reset = reset
        self.losses = []

    def loss(self, bad=False):
        x = torch.randn(8, 4)
        if bad:
            x[0] = math.inf
        return (self.model(x) - x.sum(1, keepdim=True)).square().mean()

    def told(self):
        """Return the loss that was recorded with the last step."""
        return self.opt.summary()["last_loss"]


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("early", [True, False], ids=["observe first", "backward first"])
@pytest.mark.parametrize("response", ["warn", "skip"])
@pytest.mark.parametrize("sync", ["exact", "lagged"])
def test_an_overflow_that_a_scaler_leaves_out(reset, early, response, sync):
    run = Run(reset, responses={"nonfinite_loss": response}, sync=sync)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    run.opt.track(scaler=scaler)
    for step in range(12):
        loss = run.loss(bad=step == 5)
        if early:
            run.opt.observe(loss=loss)
        scaler.scale(loss).backward()
        if not early:
            run.opt.observe(loss=loss)
        scaler.step(run.opt)
        scaler.update()
        if step != 5 and not (reset is never and step > 4):
            assert run.told() == pytest.approx(float(loss.detach()))
        reset(run.opt, run.model)
        if reset is never:
            by_hand(run.opt, run.model) if step == 5 else None
    assert run.opt.ledger == ()
    assert run.opt.summary()["steps"] == 11


@pytest.mark.parametrize("reset", [by_opt, by_model, by_hand])
def test_a_batch_that_the_loop_leaves_out(reset):
    run = Run(reset)
    for step in range(10):
        loss = run.loss(bad=step == 5)
        loss.backward()
        run.opt.observe(loss=loss, seen=float(step))
        if not torch.isfinite(loss):
            reset(run.opt, run.model)
            continue
        run.opt.step()
        assert run.told() == pytest.approx(float(loss.detach()))
        reset(run.opt, run.model)
    assert run.opt.ledger == ()


@pytest.mark.parametrize("reset", [by_opt, by_model, by_hand])
@pytest.mark.parametrize("early", [True, False], ids=["observe first", "backward first"])
def test_micro_batches_belong_together(reset, early):
    run = Run(reset)
    for _ in range(3):
        losses = []
        for _ in range(4):
            loss = run.loss()
            losses.append(float(loss.detach()))
            if early:
                run.opt.observe(loss=loss)
            loss.backward()
            if not early:
                run.opt.observe(loss=loss)
        run.opt.step()
        assert run.told() == pytest.approx(sum(losses) / 4)
        reset(run.opt, run.model)


def test_parts_of_a_loss_belong_together():
    run = Run(by_opt)
    for _ in range(3):
        first, second = run.loss(), run.loss()
        run.opt.observe(loss=first)
        run.opt.observe(loss=second)
        (first + second).backward()
        run.opt.step()
        assert run.told() == pytest.approx(float((first + second).detach()) / 2)
        run.opt.zero_grad()


def test_experts_that_have_a_gradient_in_some_micro_batches_alone():
    experts = nn.ModuleList(nn.Linear(2, 1) for _ in range(3))
    opt = StableOptimizer(torch.optim.AdamW(experts.parameters()), model=experts)
    for first in (2, 1, 0):
        for i in (first, 0, 1, 2):
            experts[i](torch.ones(1, 2)).sum().backward()
            opt.observe(loss=float(i))
        opt.step()
        assert opt.summary()["last_loss"] == pytest.approx((first + 3) / 4)
        experts.zero_grad()


def test_refused_signals_are_not_the_end_of_a_batch():
    run = Run(by_opt)
    run.loss().backward()
    run.opt.observe(loss=1.0)
    with pytest.raises(ConfigError):
        run.opt.observe(loss={"a": 1.0})
    run.opt.observe(loss=3.0)
    run.opt.step()
    assert run.told() == 2.0
