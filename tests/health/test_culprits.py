"""A spike of the gradient norm names the layers that it comes from."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from stableopt import Action, StableOptimizer
from stableopt.health.culprits import Culprits
from stableopt.health.gradients import measure_gradients


def norms(*values):
    parameters = []
    for value in values:
        parameter = nn.Parameter(torch.zeros(1))
        parameter.grad = torch.tensor([float(value)])
        parameters.append(parameter)
    return measure_gradients([{"params": parameters}])[0]


def usual(*values):
    culprits = Culprits()
    for _ in range(20):
        culprits.learn(norms(*values))
    return culprits


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
    culprits = usual(1.0, 1.0)
    culprits.name((), norms(1, 1e9), {})
    assert culprits.blame(norms(1, 100))[0][1] == pytest.approx(100)


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
    assert opt.verdict.action is Action.SKIP
    (finding,) = opt.ledger[0].findings
    name = "0.bias" if named else "0.1"
    assert (finding.kind, finding.where) == ("gradient_spike", (name,))
    assert f", most of it in {name} (x" in opt.ledger[0].reason
