"""Promise 1 with compile=True: what torch compiles alone, bit for bit, whatever the loop does."""

from __future__ import annotations

import inspect
from types import MethodType

import pytest
import torch

from stableopt import Guard, StableOptimizer
from tests.contract.bits import assert_same
from tests.contract.scenario import Scenario, run
from tests.contract.specs import SPECS, VARIANTS, variant_id

EAGER = {"backend": "eager"}
NOT_TRACED = {"Adafactor", "LBFGS", "SparseAdam"}

TRACED = [
    (spec, variant)
    for spec, variant in VARIANTS
    if spec.make.__module__.startswith("torch.")
    and spec.name not in NOT_TRACED
    and variant not in ("forloop", "foreach", "fused", "fused_momentum", "maximize", "decay")
]
LOOPS = {
    "accumulated, a late group": {"accumulate": 2, "add_group": "late", "named": True},
    "closure, gradients that are not there": {"closure": True, "grad_none": True},
    "a schedule on the inner one": {"scheduler": "LambdaLR", "scheduler_on": "inner"},
}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def torch_alone(inner, model):
    """Give ``inner`` the step that torch compiles: its decorator off, learning rates in tensors."""
    plain = inspect.unwrap(type(inner).step)

    @torch.compile(fullgraph=True, dynamic=False, **EAGER)
    def update():
        with torch.no_grad():
            plain(inner)

    def step(optimizer, closure=None):
        loss = None if closure is None else closure()
        given = [(group["lr"], group.get("foreach")) for group in inner.param_groups]
        for group, (lr, foreach) in zip(inner.param_groups, given, strict=True):
            group["lr"] = torch.tensor(lr, dtype=torch.float64)
            if foreach:
                group["foreach"] = None
        update()
        for group, (lr, foreach) in zip(inner.param_groups, given, strict=True):
            group["lr"] = lr
            if foreach:
                group["foreach"] = foreach
        return loss

    inner.step = MethodType(step, inner)
    inner._opt_called = True
    return inner


def wrapped(sync):
    def wrap(inner, model):
        guard = Guard(every=3, sync=sync)
        return StableOptimizer(inner, model=model, guard=guard, compile=EAGER)

    return wrap


@pytest.mark.parametrize("pair", TRACED, ids=variant_id)
def test_it_is_what_torch_compiles(pair):
    spec, variant = pair
    sync = "lagged" if spec.name in ("Adam", "RAdam", "SGD", "Muon") else "exact"
    scenario = Scenario(spec=spec, variant=variant)
    expected = run(scenario, torch_alone, steps=8)
    actual = run(scenario, wrapped(sync), steps=8, ended=is_compiled)
    assert_same(actual, expected)
    assert not any(actual.moved)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", ["AdamW", "SGD", "NAdam"])
def test_whatever_the_loop_does(name, loop):
    (spec,) = [spec for spec in SPECS if spec.name == name]
    scenario = Scenario(spec=spec, **LOOPS[loop])
    expected = run(scenario, torch_alone, steps=8)
    assert_same(run(scenario, wrapped("exact"), steps=8), expected)


def is_compiled(opt):
    summary = opt.summary()
    assert summary["compiled"] is True
    assert summary["steps"] == 8
    assert not opt.ledger
