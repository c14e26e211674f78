"""The messages of a run that has stopped."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from stableopt import DivergenceError, Guard, StableOptimizer


def test_a_fault_that_is_kept_outside_of_the_model():
    """A hidden state that is carried over batches is NaN, and no rollback knows of it."""
    torch.manual_seed(0)
    cell = nn.RNNCell(4, 8)
    opt = StableOptimizer(torch.optim.AdamW(cell.parameters()), model=cell, guard=Guard(every=5))
    hidden = torch.zeros(2, 8)

    def train():
        nonlocal hidden
        for step in range(200):
            if step == 40:
                hidden[0, 0] = math.nan
            hidden = cell(torch.randn(2, 4), hidden.detach())
            opt.zero_grad()
            hidden.square().mean().backward()
            opt.step()

    with pytest.raises(DivergenceError) as stopped:
        train()
    first, second = [event for event in opt.ledger if event.rollback][:2]
    hint = "it came back after the weights were restored: look at what is kept outside of the model"
    assert hint not in first.reason
    assert hint in second.reason
    assert hint in str(stopped.value)
    assert "opt.track() takes them" in str(stopped.value)


def test_of_a_fault_in_the_weights_it_is_not_said():
    weight = nn.Parameter(torch.ones(4))
    opt = StableOptimizer(torch.optim.SGD([weight], lr=0.1), guard=Guard(every=2, confirm=2))

    def train():
        for step in range(200):
            weight.grad = torch.ones(4)
            if step > 30:
                weight.data[0] = math.nan
            opt.step()

    with pytest.raises(DivergenceError) as stopped:
        train()
    assert "outside of the model" not in str(stopped.value)


@pytest.mark.parametrize(
    ("dtype", "eps", "warns"),
    [
        (torch.float16, 1e-8, True),
        (torch.float16, 1e-4, False),
        (torch.bfloat16, 1e-8, False),
        (torch.float32, 1e-8, False),
        (torch.float32, 0.0, False),
    ],
)
def test_an_eps_that_is_zero_in_the_dtype_of_the_weights(dtype, eps, warns, caplog):
    model = nn.Linear(3, 2).to(dtype)
    StableOptimizer(torch.optim.Adam(model.parameters(), eps=eps), model=model)
    assert ("eps=1e-08 of Adam is 0 in torch.float16" in caplog.text) == warns
    assert ("Keep the weights in float32" in caplog.text) == warns


@pytest.mark.parametrize("late", ["half", "group"])
def test_it_is_said_of_what_becomes_half_later_and_where_the_run_stops(late, caplog):
    model = nn.Linear(3, 2)
    opt = StableOptimizer(torch.optim.Adam(model.parameters()), model=model, guard=Guard(slots=0))
    model(torch.ones(1, 3)).sum().backward()
    opt.step()
    assert "eps" not in caplog.text
    if late == "half":
        model.half()
    else:
        opt.add_param_group({"params": [nn.Parameter(torch.ones(2).half())]})
    for parameter in (p for group in opt.param_groups for p in group["params"]):
        parameter.grad = torch.full_like(parameter, math.nan)
    for _ in range(6):
        opt.step()
    with pytest.raises(DivergenceError, match=r"eps=1e-08 of Adam is 0 in torch\.float16"):
        opt.step()
    assert "eps=1e-08 of Adam is 0 in torch.float16" in caplog.text


def test_it_is_said_once_for_all_groups(caplog):
    layers = [nn.Linear(2, 2).half() for _ in range(3)]
    groups = [{"params": layer.parameters()} for layer in layers]
    StableOptimizer(torch.optim.AdamW(groups))
    assert caplog.text.count("is 0 in torch.float16") == 1
