"""Responses that a limit or another response prevents, in real runs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stableopt import Action, Guard, SignalRule, StableOptimizer
from stableopt.guard.policy import Policy
from stableopt.guard.ring import Ring
from stableopt.testing import corrupt_weight, flip_bit
from stableopt.types import Finding, Scope

LOWER = Finding(kind="rule", message="it is low", scope=Scope.RULE, response="back_off")


class Run:
    """A small run whose signals are observed step by step."""

    def __init__(self, *rules, **options):
        torch.manual_seed(0)
        self.model = nn.Linear(3, 2)
        guard = Guard(**{"every": 5, "confirm": 2, "rules": rules, **options})
        inner = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.opt = StableOptimizer(inner, model=self.model, sensors=(), guard=guard)

    def steps(self, count, **signals):
        for _ in range(count):
            self.opt.zero_grad()
            loss = self.model(torch.randn(4, 3)).square().mean()
            loss.backward()
            self.opt.observe(**{"loss": loss, **signals})
            self.opt.step()
        return self.opt.verdict

    def steps_with_spikes(self, count):
        for number in range(count):  # each one unlike those before
            verdict = self.steps(1, loss=1e6 * 10.0**number)
        return verdict

    @property
    def lr_scale(self):
        return self.opt.summary()["lr_scale"]


def test_what_may_not_be_skipped_any_more_is_still_answered():
    """Two rules hold: once no more may be skipped the other one counts."""
    rules = SignalRule("a > 0.5", response="skip"), SignalRule("b > 0.5", response="back_off")
    run = Run(*rules, max_skips=2)
    run.steps(10, a=0.0, b=0.0)
    assert run.steps(2, a=1.0, b=1.0).action is Action.SKIP
    verdict = run.steps(1, a=1.0, b=1.0)
    assert verdict.action is Action.TAKE
    assert "no more than 2 steps in a row may be skipped" in verdict.reason
    assert verdict.backs_off
    assert run.lr_scale == 0.5


@pytest.mark.parametrize("lr_backoff", [0.5, 0.6, 0.7, 0.9])
@pytest.mark.parametrize("most", range(7))
def test_rounding_costs_no_step_of_the_learning_rate(lr_backoff, most):
    policy = Policy(Guard(lr_backoff=lr_backoff, max_rollbacks=most, lr_recovery=None))
    ring = Ring(2, 1, 1)
    for lowered in range(most + 2):
        verdict = policy.decide((LOWER,), step=lowered, ring=ring)
        assert verdict.backs_off is (lowered < most)
        policy.note(verdict, lowered)
    assert policy.lr_scale == pytest.approx(lr_backoff**most)


class TestSpikes:
    """A step that is taken in spite of one is not a healthy step."""

    @pytest.mark.parametrize("lr_recovery", [0, 1, 4])
    def test_the_step_that_lowers_the_learning_rate_does_not_raise_it(self, lr_recovery):
        run = Run(lr_recovery=lr_recovery, responses={"loss_spike": "back_off"})
        run.steps(60)
        verdict = run.steps_with_spikes(1)
        assert verdict.backs_off
        assert run.lr_scale == run.opt.ledger[-1].lr_scale == 0.5
        run.steps(max(1, lr_recovery))
        assert run.lr_scale == 1.0

    def test_it_brings_no_learning_rate_back(self):
        rule = SignalRule("a > 0.5", response="back_off")
        run = Run(rule, lr_recovery=10, responses={"loss_spike": "warn"})
        run.steps(60, a=0.0)
        run.steps(1, a=1.0)
        run.steps(3, a=0.0)
        before = run.lr_scale
        assert 0.5 < before < 1.0
        run.steps_with_spikes(3)
        assert run.lr_scale == before

    def test_it_ends_no_episode(self):
        run = Run(cooldown=5, responses={"loss_spike": "warn"})
        run.steps(60)
        corrupt_weight(run.opt, model=run.model)
        assert run.steps(1).rollback.attempt == 1
        from_step = run.opt.verdict.rollback.from_step
        run.steps(from_step + 5 - run.opt.summary()["steps"])
        run.steps_with_spikes(3)
        corrupt_weight(run.opt, model=run.model)
        assert run.steps(1).rollback.attempt == 2

    def test_it_verifies_no_snapshot(self):
        run = Run(every=1, confirm=1, slots=4, responses={"loss_spike": "warn"})
        run.steps(60)
        trusted = [s for s in run.opt.summary()["snapshots"]["steps"] if s["verified"]]
        run.steps_with_spikes(3)
        known = run.opt.summary()["snapshots"]["steps"]
        assert max(s["step"] for s in known if s["verified"]) == trusted[0]["step"]
        run.steps(1)
        known = run.opt.summary()["snapshots"]["steps"]
        assert max(s["step"] for s in known if s["verified"]) > trusted[0]["step"]


def test_a_rollback_by_hand_that_finds_every_snapshot_damaged_is_no_step():
    """A response that is not possible: either the step is taken instead, or that is reported."""
    run = Run(every=100)
    run.steps(5)
    copies = run.opt._loop.restorer.keeper._snapshots[0]._state._params
    flip_bit(copies[0], 30, index=0)
    before = [parameter.detach().clone() for parameter in run.model.parameters()]
    run.opt.rollback("the user knows why")
    run.steps(1)
    moved = not all(map(torch.equal, before, run.model.parameters()))
    assert run.opt.summary()["steps"] == 5 + moved
    assert moved or run.opt.ledger
