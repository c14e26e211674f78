"""A spike of the gradient norm names the layers that it comes from."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from stableopt import Action, Guard, StableOptimizer
from stableopt.health.steps.blame import Blame
from stableopt.sensors.gradients import MOST_GROUPS, measure_gradients


def norms(*values):
    parameters = []
    for value in values:
        parameter = nn.Parameter(torch.zeros(1))
        parameter.grad = torch.tensor([float(value)])
        parameters.append(parameter)
    return measure_gradients([{"params": parameters}])[0]


def usual(*values):
    blame = Blame()
    for _ in range(20):
        blame.learn(norms(*values))
    return blame


@pytest.mark.parametrize(
    ("before", "now", "blamed"),
    [
        ((1, 1, 1), (1, 100, 1), [1]),
        ((100, 1, 1), (100, 1, 90), [2]),  # a large layer is not named for being large
        ((100, 1, 1), (101, 1, 90), [2]),
        ((1, 1, 1), (100, 100, 1), [0, 1]),
        ((1, 1, 1), (50, 100, 1), [1, 0]),
        ((1, 1, 1), (20, 100, 1), [1]),
        ((1, 1, 1), (1e30, 1, 1), [0]),  # its square overflows
        ((0, 1, 1), (9, 1, 1), [0]),
        ((9, 9, 9), (1, 1, 1), []),
    ],
)
def test_who_is_to_blame(before, now, blamed):
    assert [index for (_, index), _ in usual(*before).blame(norms(*now))] == blamed


def test_how_many_times_as_much():
    ((_, times),) = usual(1, 2).blame(norms(1, 200))
    assert times == pytest.approx(100)
    ((_, times),) = usual(1, 0).blame(norms(1, 200))
    assert times == math.inf


def test_only_healthy_steps_teach():
    blame = usual(1.0, 1.0)
    blame.blame(norms(1, 1e9))
    assert blame.blame(norms(1, 100))[0][1] == pytest.approx(100)


@pytest.mark.parametrize("named", [True, False])
def test_the_ledger_names_the_layer(named):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    inner = torch.optim.AdamW(model.parameters(), lr=1e-3)
    opt = StableOptimizer(inner, model=model if named else None, sensors=())
    for step in range(60):
        opt.zero_grad()
        model(torch.randn(16, 8)).pow(2).mean().backward()
        if step == 59:
            model[0].bias.grad.mul_(1e5)
        opt.step()
    assert opt.verdict.action is Action.TAKE
    assert opt.verdict.tames
    (finding,) = opt.ledger[0].findings
    name = "0.bias" if named else "0.1"
    assert (finding.kind, finding.where) == ("gradient_spike", (name,))
    assert f", most of it in {name} (x" in opt.ledger[0].reason


class Groups:
    """Two parameter groups: a loud one, and a quiet one that the global norm hides."""

    def __init__(self, count=2, **guard):
        torch.manual_seed(0)
        self.model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(count)))
        groups = [{"params": list(layer.parameters())} for layer in self.model]
        inner = torch.optim.SGD(groups, lr=1e-6)
        self.opt = StableOptimizer(
            inner, model=self.model, sensors=(), guard=Guard(loss_spike=None, **guard)
        )

    def step(self, factor=1.0, loud=1e4):
        for number, layer in enumerate(self.model):
            for parameter in layer.parameters():
                parameter.grad = torch.randn_like(parameter) * (factor if number else loud)
        self.opt.step()
        return self.opt


class TestGroups:
    def test_a_spike_in_one_is_found_and_named(self):
        run = Groups()
        for _ in range(60):
            run.step()
        assert run.step(400.0).verdict.tames
        (finding,) = run.opt.verdict.findings
        assert finding.kind == "gradient_spike"
        assert set(finding.where) <= {"1.weight", "1.bias"}
        assert "the gradient norm of group 1 is" in run.opt.verdict.reason
        assert "the gradients of group 1 are scaled by" in run.opt.verdict.reason
        first, second = (
            torch.cat([p.grad.flatten() for p in layer.parameters()]).norm() for layer in run.model
        )
        assert first > 5e4, "the other group is left alone"
        assert second == pytest.approx(finding.usual, rel=1e-4)
        assert not run.step(2.0).verdict.tames
        assert len(run.opt.ledger) == 1

    def test_it_is_no_spike_that_all_of_them_grow(self):
        run = Groups()
        for i in range(120):
            run.step(1.08**i)
        assert not run.opt.ledger

    def test_one_that_is_silent_for_long_is_judged_by_when_it_spoke(self):
        run = Groups()
        for i in range(200):
            run.step(0.0 if i % 5 else 1.0)
        assert not run.opt.ledger
        assert run.step(1e3).verdict.tames

    def test_a_spike_in_all_is_told_once(self):
        run = Groups()
        for _ in range(60):
            run.step()
        run.step(1e6, loud=1e8)
        (finding,) = run.opt.verdict.findings
        assert "group" not in finding.message

    def test_of_many_groups_neighbours_are_judged_together(self):
        run = Groups(2 * MOST_GROUPS + 1)
        assert len(run.step()._loop.optimizer.param_groups) == 2 * MOST_GROUPS + 1
        for _ in range(60):
            run.step()
        assert run.step(4000.0).verdict.tames
        assert "the gradient norm of group 3 is" in run.opt.verdict.reason
        named = {name.split(".")[0] for f in run.opt.verdict.findings for name in f.where}
        assert len(named) > MOST_GROUPS // 2

    def test_a_task_that_comes_now_and_then_is_trained(self):
        """Its gradients are large and rare: three times they are spikes, then they are data."""
        run = Groups()
        for step in range(400):
            run.step(3000.0 if step > 60 and step % 20 == 0 else 1.0)
        assert [event.call for event in run.opt.ledger if event.tames] == [81, 101, 121]
        assert run.opt.summary()["skips"] == 0

    def test_not_looking(self):
        run = Groups(gradient_spike=None)
        for _ in range(60):
            run.step()
        run.step(400.0)
        assert not run.opt.ledger

    def test_what_was_usual_is_in_a_checkpoint(self):
        run, other = Groups(), Groups()
        for _ in range(60):
            run.step()
        other.opt.load_state_dict(run.opt.state_dict())
        assert other.step(400.0).verdict.tames

    def test_what_stays_is_the_new_normal(self):
        run = Groups()
        for _ in range(60):
            run.step()
        tamed = [run.step(400.0).verdict.tames for _ in range(60)]
        assert tamed == [True] * 3 + [False] * 57
        assert len(run.opt.ledger) == 3
