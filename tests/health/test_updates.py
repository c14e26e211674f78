"""Weights that do not move, and updates that are longer than their weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stableopt import Action, DivergenceError, Guard, StableOptimizer
from stableopt.health.steps.updates import MOST, QUIET


class Run:
    def __init__(self, lr=1e-3, make=torch.optim.AdamW, dtype=torch.float32, width=8, **guard):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, 2)).to(dtype)
        self.dtype = dtype
        options = {"loss_spike": None, "gradient_spike": None, "weight_jump": None, **guard}
        self.opt = StableOptimizer(
            make(self.model.parameters(), lr=lr),
            model=self.model,
            sensors=(),
            guard=Guard(**options),
        )

    @property
    def group(self):
        return self.opt.param_groups[0]

    def steps(self, count):
        for _ in range(count):
            self.opt.zero_grad()
            self.model(torch.randn(16, 8, dtype=self.dtype)).pow(2).mean().backward()
            self.opt.step()
        return [(f.kind, f.where) for event in self.opt.ledger for f in event.findings]


STALLED = [("stalled_weight", ("0.weight",))]


class TestStalled:
    def test_a_learning_rate_that_is_stuck(self):
        run = Run()
        assert run.steps(50) == []
        run.group["lr"] = 1e-20
        assert run.steps(16) == STALLED
        assert {event.action for event in run.opt.ledger} == {Action.TAKE}
        assert not any(event.intervened for event in run.opt.ledger)
        assert "its learning rate (1e-20) is too small" in run.opt.ledger[0].reason
        run.steps(50)
        assert len(run.opt.ledger) == 1  # told once
        run.group["lr"] = 1e-3
        run.steps(QUIET - 50)
        run.group["lr"] = 1e-20
        run.steps(16)
        assert len(run.opt.ledger) == 2  # and again, much later

    def test_bfloat16_that_rounds_every_update_away(self):
        run = Run(lr=1e-6, make=torch.optim.SGD, dtype=torch.bfloat16)
        assert run.steps(16) == STALLED

    def test_an_embedding_of_which_little_is_used_is_not_still(self):
        """Most of its rows have no gradient: of those that have one all move."""
        table = nn.Embedding(MOST // 4, 16)
        opt = StableOptimizer(torch.optim.Adam(table.parameters()), sensors=())
        for step in range(60):
            opt.zero_grad()
            table(torch.arange(40) + step % 3).sub(1).pow(2).mean().backward()
            opt.step()
        assert not opt.ledger

    def test_what_is_mostly_rounded_away_is_still(self):
        run = Run(lr=1e-5, dtype=torch.bfloat16, width=64)
        assert {kind for kind, _ in run.steps(60)} == {"stalled_weight"}
        quiet = Run(lr=1e-5, width=64)
        assert quiet.steps(60) == []

    @pytest.mark.parametrize(
        "still", [{"lr": 0.0}, {"frozen": True}, {"zero": True}], ids=["lr", "frozen", "zero"]
    )
    def test_what_is_meant_to_stand_still(self, still):
        run = Run(lr=still.get("lr", 1e-3), make=torch.optim.SGD)
        if "frozen" in still:
            run.model[0].requires_grad_(False)
        for _ in range(30):
            run.opt.zero_grad()
            run.model(torch.randn(16, 8)).pow(2).mean().mul("zero" not in still).backward()
            run.opt.step()
        assert not run.opt.ledger

    def test_stopping_instead(self):
        run = Run(lr=1e-20, responses={"stalled_weight": "stop"})
        with pytest.raises(DivergenceError, match="have not changed by a bit"):
            run.steps(16)


class TestLarge:
    def test_an_update_longer_than_its_weight_is_told_at_once(self):
        run = Run()
        assert run.steps(50) == []
        run.group["lr"] = 10.0
        run.steps(2)
        (event,) = run.opt.ledger
        assert event.findings[0].kind == "large_update"
        assert not event.intervened
        assert "times as long as the weight itself" in event.reason

    def test_going_back_instead(self):
        run = Run(every=20, responses={"large_update": "roll_back"})
        run.steps(50)
        run.group["lr"] = 10.0
        run.steps(2)
        assert run.opt.verdict.action is Action.ROLL_BACK
        assert float(run.model[0].weight.detach().abs().max()) < 2

    @pytest.mark.parametrize("lr", [1e-5, 1e-2, 0.1])
    def test_training_is_none(self, lr):
        run = Run(lr)
        with torch.no_grad():
            run.model[2].weight.zero_()
        schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(run.opt, 25)
        for _ in range(100):
            run.steps(1)
            schedule.step()
        assert not run.opt.ledger

    def test_of_a_large_weight_all_parts_are_looked_at_in_turn(self):
        run = Run(width=3 * MOST // 8)
        run.steps(8)
        seen = set()
        for _ in range(8):
            run.steps(1)
            seen.add(
                (
                    run.opt._loop.decider.detectors.updates._look.place.place,
                    run.opt._loop.decider.detectors.updates._look.first,
                )
            )
        assert {first for place, first in seen if place == 0} == {0, MOST, 2 * MOST}
