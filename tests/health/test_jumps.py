"""A weight that is many times as large as some steps ago is found; one that trains is not."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from stableopt import Action, Guard, StableOptimizer
from stableopt.health.tensors.jumps import LEARNED, USUAL, NormHistory


def history(norms, factor=8.0):
    found = NormHistory(factor)
    for norm in norms:
        found.learn("w", norm)
    return found


class TestHistory:
    def test_a_hundredfold_is_a_jump(self):
        assert history([1.0, 1.1, 1.2]).has_jumped("w", 120.0, 1.0)

    @pytest.mark.parametrize(
        ("norms", "norm", "unit"),
        [
            ([1.0, 1.1], 120.0, 1.0),  # too little is known
            ([], 120.0, 1.0),
            ([1.0, 1.1, 1.2], 9.0, 1.0),  # less than eight times
            ([1.0, 20.0, 21.0], 170.0, 1.0),  # it has grown that fast before
            ([1e-3, 1e-3, 1e-3], 3.9, 1.0),  # it becomes a weight
            ([0.0, 0.0, 0.0], 100.0, 1.0),  # it was nothing
        ],
    )
    def test_what_is_none(self, norms, norm, unit):
        assert not history(norms).has_jumped("w", norm, unit)

    def test_how_much_is_a_choice(self):
        assert history([1.0] * 3, factor=2.0).has_jumped("w", 5.0, 1.0)
        assert not history([1.0] * 3, factor=None).has_jumped("w", 1e9, 1.0)

    def test_what_is_not_finite_is_not_learned_and_everything_can_be_forgotten(self):
        found = history([1.0, math.nan, 1.0, math.inf, 1.0])
        assert found.has_jumped("w", 100.0, 1.0)
        found.forget()
        assert not found.has_jumped("w", 100.0, 1.0)

    @given(
        norms=st.lists(st.floats(1e-3, 1e3), min_size=LEARNED + 1, max_size=30),
        unit=st.floats(1e-3, 1e3),
    )
    def test_nothing_that_grows_no_faster_than_before_is_one(self, norms, unit):
        found = history(norms)
        largest = max([b - a for a, b in pairwise(norms)] + [0.0])
        less = 1 - 1e-9
        assert not found.has_jumped("w", (norms[-1] + 8 * largest) * less, unit)
        assert not found.has_jumped("w", 8 * norms[-1] * less, unit)
        assert not found.has_jumped("w", USUAL * unit, unit)


class Run:
    def __init__(self, make=torch.optim.AdamW, lr=1e-3, **options):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))
        guard = Guard(**{"every": 40, "loss_spike": None, "gradient_spike": None, **options})
        self.opt = StableOptimizer(
            make(self.model.parameters(), lr=lr), model=self.model, sensors=(), guard=guard
        )

    def steps(self, count):
        for _ in range(count):
            self.opt.zero_grad()
            x = torch.randn(32, 16)
            self.model(x).sub(x[:, :4]).pow(2).mean().backward()
            self.opt.step()
        return self.opt


class TestTraining:
    @pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD])
    @pytest.mark.parametrize("name", ["0.weight", "2.weight", "2.bias"])
    def test_a_weight_times_a_hundred_goes_back_within_a_scan(self, make, name):
        run = Run(make)
        run.steps(90)
        weight = run.model.get_parameter(name)
        if name == "2.bias":
            weight.data.fill_(0.5)
            run.steps(80)
        norm = float(weight.detach().norm())
        with torch.no_grad():
            weight.mul_(100)
        at = run.opt.summary()["calls"]
        while run.opt.verdict.action is not Action.ROLL_BACK:
            run.steps(1)
            assert run.opt.summary()["calls"] <= at + 20
        (finding,) = run.opt.verdict.findings
        assert (finding.kind, finding.where) == ("jumped_weight", (name,))
        assert f"the weights of {name} are many times as large as some steps ago" in (
            run.opt.verdict.reason
        )
        assert float(weight.detach().norm()) < 2 * norm + 1
        run.steps(60)
        assert run.opt.summary()["rollbacks"] == 1

    def test_it_is_found_at_once_if_the_loss_shows_it(self):
        run = Run(loss_spike=6.0, gradient_spike=6.0)
        run.steps(90)
        with torch.no_grad():
            run.model[0].weight.mul_(1000)
            run.model[2].weight.mul_(1000)
        run.steps(1)
        assert run.opt.verdict.action is Action.ROLL_BACK

    def test_it_is_never_in_a_snapshot(self):
        run = Run(every=10)
        run.steps(89)
        with torch.no_grad():
            run.model[0].weight.mul_(100)
        run.steps(25)
        assert run.opt.summary()["rollbacks"] == 1
        assert float(run.model[0].weight.detach().norm()) < 30

    def test_not_looking(self):
        run = Run(weight_jump=None)
        run.steps(90)
        with torch.no_grad():
            run.model[0].weight.mul_(100)
        run.steps(40)
        assert not run.opt.ledger

    @pytest.mark.parametrize("lr", [1e-4, 1e-2, 1.0])
    @pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.Adagrad])
    def test_training_is_no_jump(self, make, lr):
        run = Run(make, lr)
        with torch.no_grad():
            run.model[2].weight.zero_()
        run.steps(150)
        assert not [event for event in run.opt.ledger if event.action is Action.ROLL_BACK]

    def test_a_layer_that_is_frozen_at_first(self):
        run = Run()
        with torch.no_grad():
            run.model[2].weight.mul_(1e-6)
        run.model[2].weight.requires_grad_(False)
        run.steps(90)
        run.model[2].weight.requires_grad_(True)
        run.steps(90)
        assert not run.opt.ledger

    def test_a_checkpoint_teaches_no_growth(self):
        run = Run()
        run.steps(90)
        saved = run.opt.state_dict()
        for factor in (100, 0.01):
            with torch.no_grad():
                run.model[0].weight.mul_(factor)
            run.opt.load_state_dict(saved)
        run.steps(90)
        with torch.no_grad():
            run.model[0].weight.mul_(100)
        run.steps(21)
        assert run.opt.summary()["rollbacks"] == 1

    def test_a_checkpoint_of_other_weights(self, caplog):
        run = Run()
        run.steps(90)
        saved = run.opt.state_dict()
        with torch.no_grad():
            run.model[0].weight.mul_(100)
        run.opt.load_state_dict(saved)
        run.steps(40)
        assert not run.opt.ledger
        assert not caplog.records
