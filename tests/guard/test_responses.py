"""The response to each cause: one table, which the run follows."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from stableopt import Action, ConfigError, DivergenceError, Guard, StableOptimizer
from stableopt.guard.responses import CAUSES, ON_RISK
from stableopt.types import Finding, Response, Scope

PACKAGE = Path(__file__).parents[2] / "stableopt"


class Run:
    def __init__(self, **responses):
        torch.manual_seed(0)
        self.model = nn.Linear(3, 2)
        guard = Guard(every=5, confirm=2, responses=responses, lr_recovery=None)
        self.opt = StableOptimizer(
            torch.optim.AdamW(self.model.parameters(), lr=1e-3),
            model=self.model,
            sensors=(),
            guard=guard,
        )

    def steps(self, count, scale=1.0, loss_scale=1.0):
        for _ in range(count):
            self.opt.zero_grad()
            loss = self.model(torch.randn(4, 3)).pow(2).mean()
            (loss * scale).backward()
            self.opt.observe(loss=loss.detach() * loss_scale)
            self.opt.step()
        return self.opt.verdict


def test_every_cause_that_is_found_is_in_the_table():
    written = set()
    for path in (PACKAGE / "health").glob("*.py"):
        written |= set(re.findall(r'kind=f?"(\w+)"', path.read_text()))
    assert written - {"rule"} <= CAUSES.keys()
    for family in ("nonfinite", "huge"):
        for kind in ("weight", "state", "buffer"):
            assert f"{family}_{kind}" in CAUSES


def test_the_default_is_allowed():
    for kind, cause in CAUSES.items():
        assert cause.default in cause.allowed
        assert ON_RISK.get(kind, cause.default) in cause.allowed


def test_acting_on_risk_is_a_row_of_the_table():
    risk = Finding(kind="risk_danger", message="", scope=Scope.RISK)
    assert Guard().response_to(risk) is Response.WARN
    assert not Guard().answers_risk
    assert Guard(act_on_risk=True).response_to(risk) is Response.BACK_OFF
    given = Guard(act_on_risk=True, responses={"risk_danger": "stop"})
    assert given.response_to(risk) is Response.STOP
    assert Guard(responses={"risk_warning": "back_off"}).answers_risk


class TestSpikes:
    def test_a_warning_takes_the_step_and_teaches_nothing(self):
        run = Run(loss_spike="warn")
        run.steps(60)
        known = run.opt.state_dict()["stableopt"]["spikes"]["loss"]["recent"]
        verdict = run.steps(1, loss_scale=1e4)
        assert verdict.action is Action.TAKE
        assert not verdict.baseline_reset
        assert verdict.findings[0].kind == "loss_spike"
        assert run.opt.state_dict()["stableopt"]["spikes"]["loss"]["recent"] == known
        assert run.opt.summary()["skips"] == 0

    @pytest.mark.parametrize("response", ["warn", "tame", "skip"])
    def test_a_shift_that_stays_is_the_new_normal(self, response):
        run = Run(loss_spike=response)
        run.steps(60)
        for _ in range(60):
            run.steps(1, loss_scale=1e4)
        assert 1 <= len(run.opt.ledger) <= 3, "some lie over four times as far out as the first"
        assert run.opt.ledger[-1].call <= 70
        assert run.opt._loop.restorer.keeper.ring.verified()[0].step > 60

    def test_taming_takes_a_step_of_the_usual_length(self):
        run = Run()
        run.steps(60)
        before = run.model.weight.detach().clone()
        verdict = run.steps(1, scale=1e5)
        assert verdict.action is Action.TAKE
        assert verdict.tames
        assert run.opt.ledger[-1].to_dict()["tames"] is True
        usual = (run.model.weight.detach() - before).norm()
        before = run.model.weight.detach().clone()
        run.steps(1)
        assert usual < 10 * (run.model.weight.detach() - before).norm()

    def test_backing_off(self):
        run = Run(gradient_spike="back_off")
        run.steps(60)
        verdict = run.steps(1, scale=1e5)
        assert verdict.action is Action.TAKE
        assert verdict.backs_off
        assert run.opt.summary()["lr_scale"] == 0.5

    def test_stopping(self):
        run = Run(loss_spike="stop")
        run.steps(60)
        with pytest.raises(DivergenceError, match="this stops the run"):
            run.steps(1, loss_scale=1e4)


class TestBatches:
    def test_going_back_at_once(self):
        run = Run(nonfinite_gradient="roll_back")
        run.steps(20)
        verdict = run.steps(1, scale=math.nan)
        assert verdict.action is Action.ROLL_BACK
        assert verdict.rollback.restores_rng

    def test_stopping(self):
        run = Run(nonfinite_gradient="stop")
        run.steps(20)
        with pytest.raises(DivergenceError, match="this stops the run"):
            run.steps(1, scale=math.inf)


class TestState:
    def test_stopping_restores_what_can_be_trusted(self):
        run = Run(nonfinite_weight="stop")
        run.steps(20)
        with torch.no_grad():
            run.model.weight[0, 0] = math.nan
        with pytest.raises(DivergenceError, match="this stops the run"):
            run.steps(1)
        assert run.model.weight.isfinite().all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"nan": "skip"}, "cause"),
        ({"loss_spyke": "skip"}, "did you mean 'loss_spike'"),
        ({"loss_spike": "roll_back"}, r"must be one of warn, tame, back_off, skip, stop: .* no"),
        ({"nonfinite_loss": "roll_back"}, r"must be one of warn, skip, stop: .* no reason"),
        ({"risk_danger": "tame"}, r"must be one of warn, back_off, roll_back, stop: the fault"),
        ({"nonfinite_weight": "warn"}, r"must be one of roll_back, stop: training cannot go on"),
        ({"nonfinite_gradient": "warn"}, r"must be one of skip, roll_back, stop: such a step"),
        ({"risk_danger": "skip"}, r"must be one of warn, back_off, roll_back, stop: the fault"),
        ({"loss_spike": 3}, "must be one of"),
        ("skip", "responses='skip' must be a dict"),
        (None, "responses=None must be a dict"),
    ],
)
def test_what_cannot_be(given, message):
    with pytest.raises(ConfigError, match=message):
        Guard(responses=given)
