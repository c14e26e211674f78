"""Changes of frozen weights are found and reported."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from stableopt import Action, DivergenceError, Guard, StableOptimizer
from stableopt.testing import flip_bit


class Adapter:
    """A frozen base of two layers, and a head that is trained on top of it."""

    def __init__(self, *, hold=False, named=True, **guard):
        torch.manual_seed(0)
        self.base = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))
        self.base.requires_grad_(False)
        self.head = nn.Linear(8, 2)
        self.model = nn.Sequential(self.base, self.head)
        trained = self.model if hold else self.head
        self.opt = StableOptimizer(
            torch.optim.AdamW(trained.parameters()),
            model=self.model if named else None,
            sensors=(),
            guard=Guard(**guard),
        )

    def steps(self, count):
        for _ in range(count):
            self.opt.zero_grad()
            loss = self.model(torch.randn(16, 8)).pow(2).mean()
            loss.backward()
            self.opt.observe(loss=loss)
            self.opt.step()
        return self.opt


@pytest.mark.parametrize(
    ("hold", "named", "name"),
    [(False, True, "0.2.weight"), (True, True, "0.2.weight"), (True, False, "0.2")],
)
def test_the_lowest_bit_is_seen_within_a_scan_and_told_once(hold, named, name):
    run = Adapter(hold=hold, named=named)
    run.steps(65)
    assert not run.opt.ledger
    flip_bit(run.base[2].weight.data, 0, index=5)
    run.steps(20)
    (event,) = run.opt.ledger
    (finding,) = event.findings
    assert (event.action, event.intervened) == (Action.TAKE, False)
    assert (finding.kind, finding.where) == ("changed_frozen", (name,))
    assert event.reason == f"the frozen weights of {name} have changed"
    run.steps(60)
    assert len(run.opt.ledger) == 1
    flip_bit(run.base[0].bias.data, 3, index=5)
    run.steps(20)
    assert len(run.opt.ledger) == 2


def test_one_that_is_not_finite_stops_the_run_and_says_why():
    """Batches are skipped and weights rolled back in vain otherwise."""
    run = Adapter()
    run.steps(65)
    run.base[0].weight.data[0, 0] = math.nan
    with pytest.raises(DivergenceError, match=r"the frozen weights of 0\.0\.weight are not finite"):
        run.steps(1)
    assert torch.isfinite(run.head.weight).all()


def test_one_that_is_not_finite_and_does_not_show():
    run = Adapter()
    run.model.append(nn.Linear(2, 2).requires_grad_(False))
    run.model[2].weight.data.zero_()
    forward = run.model.forward
    run.model.forward = lambda x: forward(x) * 0 + run.head(run.base(x))
    run.steps(65)
    run.model[2].register_parameter("spare", nn.Parameter(torch.zeros(3), requires_grad=False))
    run.steps(60)
    run.model[2].spare.data[1] = math.inf
    with pytest.raises(DivergenceError, match=r"2\.spare are not finite, and no snapsh"):
        run.steps(120)


def test_one_that_always_was_infinite_is_meant_to_be():
    run = Adapter()
    mask = torch.full((3, 3), -math.inf).triu(1)
    run.model.register_parameter("mask", nn.Parameter(mask, requires_grad=False))
    run.steps(150)
    assert not run.opt.ledger


def test_a_teacher_that_follows_its_student_is_none():
    run = Adapter()
    teacher = copy.deepcopy(run.head).requires_grad_(False)
    run.model.register_module("teacher", teacher)
    run.model.forward = lambda x: run.head(run.base(x)) - teacher(run.base(x)).detach()
    for _ in range(120):
        run.steps(1)
        with torch.no_grad():
            teacher.weight.lerp_(run.head.weight, 0.1)
    assert not run.opt.ledger


def test_weights_may_freeze_and_thaw():
    run = Adapter(hold=True)
    run.steps(50)
    run.base[2].requires_grad_(True)
    run.steps(50)
    run.base[2].requires_grad_(False)
    run.steps(70)
    assert not run.opt.ledger
    flip_bit(run.base[2].weight.data, 0, index=5)
    run.steps(20)
    assert len(run.opt.ledger) == 1


def test_a_checkpoint_brings_others():
    run, other = Adapter(), Adapter()
    run.steps(65)
    for weight in other.base.parameters():
        weight.data += 1e-6
    run.model.load_state_dict(other.model.state_dict())
    run.opt.load_state_dict(run.opt.state_dict())
    run.steps(50)
    assert not run.opt.ledger


def test_stopping_instead():
    run = Adapter(responses={"changed_frozen": "stop"})
    run.steps(65)
    flip_bit(run.base[2].weight.data, 0, index=5)
    with pytest.raises(DivergenceError, match="have changed"):
        run.steps(20)
