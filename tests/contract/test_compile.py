"""A first look at torch.compile: around the model, of the update, and of a user's own step."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

from stableopt import Action, StableOptimizer
from tests.contract.bits import assert_same
from tests.contract.scenario import copied, seed_everything

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def make(compiled_model=False):
    seed_everything(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    return model, torch.compile(model, backend="eager") if compiled_model else model


def batch(step, bad_at):
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
    return x.fill_(math.nan) if step == bad_at else x


@pytest.mark.parametrize("bad_at", [None, 0, 3])
def test_a_compiled_model_around_it(bad_at):
    def trained(wrap):
        model, forward = make(compiled_model=True)
        opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
        opt = StableOptimizer(opt, model=forward) if wrap else opt
        for step in range(8):
            if step == bad_at and not wrap:
                continue
            opt.zero_grad()
            forward(batch(step, bad_at)).pow(2).mean().backward()
            opt.step()
        return opt, copied(model.state_dict())

    opt, actual = trained(True)
    assert_same(actual, trained(False)[1])
    assert len(opt.ledger) == (bad_at is not None)
    if opt.ledger:
        assert opt.ledger[0].findings[0].where[0] == "0.weight"  # no _orig_mod. before it


@pytest.mark.parametrize("whole_step", [False, True])
def test_a_users_own_compile_of_the_step_still_skips(whole_step):
    model, _ = make()
    opt = StableOptimizer(torch.optim.AdamW(model.parameters(), lr=1e-2), model=model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda n: 0.9**n)

    def train_step(x):
        opt.zero_grad()
        model(x).pow(2).mean().backward()
        opt.step()

    compiled = torch.compile(train_step if whole_step else opt.step, backend="eager")
    for step in range(6):
        before = copied(model.state_dict())
        if whole_step:
            compiled(batch(step, bad_at=2))
        else:
            opt.zero_grad()
            model(batch(step, bad_at=2)).pow(2).mean().backward()
            compiled()
        scheduler.step()
        if step == 2:
            assert opt.verdict.action is Action.SKIP
            assert_same(copied(model.state_dict()), before)
    assert opt.summary()["steps"] == 5


def test_the_update_of_a_wrapped_optimizer_compiles_without_a_break():
    """Issue 06 compiles the inner update: nothing that the wrapper does is in its way."""
    model, _ = make()
    inner = torch.optim.AdamW(model.parameters(), lr=torch.tensor(1e-2))
    opt = StableOptimizer(inner)
    update = inspect.unwrap(type(opt.optimizer).step)
    graphs = 0

    def counting(graph, inputs):
        nonlocal graphs
        graphs += 1
        return graph

    @torch.compile(fullgraph=True, backend=counting)
    def compiled():
        with torch.no_grad():
            update(opt.optimizer)

    for step in range(6):
        opt.zero_grad()
        model(batch(step, None)).pow(2).mean().backward()
        compiled()
    assert graphs == 1
