"""ROLL_BACK: the run is bit for bit the one that never saw the fault."""

from __future__ import annotations

import math

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

from stableopt import Action, Guard, StableOptimizer
from stableopt.testing import corrupt_weight
from tests.contract.bits import assert_same
from tests.contract.scenario import (
    SCHEDULERS,
    Scenario,
    Tiny,
    Trace,
    build,
    copied,
    finish,
    seed_everything,
)
from tests.contract.specs import SPECS, VARIANTS, variant_id

EVERY = 3
FAULT_AT = 10
CALLS = 16
ADAMW = next(spec for spec in SPECS if spec.name == "AdamW")
SGD = next(spec for spec in SPECS if spec.name == "SGD")


class Loop:
    """A training loop whose batches depend on their number, and on randomness of all kinds."""

    def __init__(self, spec, variant, wrap, scheduler="none", scheduler_on="wrapper"):
        seed_everything(5)
        self.spec = spec
        self.model = Tiny(spec.model, "float32")
        self.inner, _ = build(Scenario(spec=spec, variant=variant), self.model)
        self.opt = wrap(self.inner, self.model)
        target = self.opt if scheduler_on == "wrapper" else self.inner
        self.scheduler = SCHEDULERS[scheduler](target, spec.lr)
        self.lrs = []

    def step(self, batch):
        def backward():
            self.opt.zero_grad()
            loss = self.model.loss(batch)
            loss.backward()
            return loss.detach()

        if self.spec.closure == "required":
            self.opt.step(backward)
        else:
            backward()
            self.opt.step()
        if self.scheduler is not None:
            needs_loss = type(self.scheduler).__name__ == "ReduceLROnPlateau"
            self.scheduler.step(*([1.0] if needs_loss else []))
        self.lrs.append([copied(group["lr"]) for group in self.opt.param_groups])

    def ended(self):
        trace = Trace()
        finish(trace, self.model, self.inner)
        trace.grads = []
        return trace


def guarded(inner, model):
    return StableOptimizer(inner, model=model, guard=Guard(every=EVERY, cooldown=2))


def faulty_run(loop, calls=CALLS):
    """Train through a NaN weight; return the rollback, and the call that made it."""
    pointers = [p.data_ptr() for p in loop.model.parameters()]
    made = []
    for call in range(calls):
        if call == FAULT_AT:
            corrupt_weight(loop.opt, math.nan, seed=3)
        loop.step(call)
        if loop.opt.verdict.rollback is not None:
            made.append((loop.opt.verdict.rollback, call))
    ((rollback, call),) = made
    assert [e.action for e in loop.opt.ledger] == [Action.ROLL_BACK]
    assert [p.data_ptr() for p in loop.model.parameters()] == pointers
    return rollback, call


def reference_run(loop, rollback, call, calls=CALLS):
    """Train on the batches that count, as if there had never been others."""
    for batch in [*range(rollback.to_step), *range(call + 1, calls)]:
        loop.step(batch)


def bare(inner, model):
    return inner


@pytest.mark.parametrize("pair", VARIANTS, ids=variant_id)
def test_the_run_is_the_one_that_never_saw_the_fault(pair):
    loop = Loop(*pair, guarded)
    rollback, call = faulty_run(loop)
    assert 0 < rollback.to_step < rollback.from_step, "the scenario needs steps to undo"
    assert rollback.attempt == 1
    clean = Loop(*pair, bare)
    reference_run(clean, rollback, call)
    assert_same(loop.ended(), clean.ended())
    summary = loop.opt.summary()
    assert summary["integrity"] == "OK"
    assert summary["steps"] == CALLS - 1 - (call - rollback.to_step)
    assert summary["steps_lost"] == rollback.from_step - rollback.to_step


@pytest.mark.parametrize("on", ["wrapper", "inner"])
@pytest.mark.parametrize("spec", [ADAMW, SGD], ids=lambda spec: spec.name)
@pytest.mark.parametrize("scheduler", [name for name in SCHEDULERS if name != "none"])
class TestSchedulers:
    def test_a_tracked_one_goes_back(self, scheduler, spec, on):
        variant = "default" if spec is ADAMW else "momentum"
        loop = Loop(spec, variant, guarded, scheduler, on)
        loop.opt.track(scheduler=loop.scheduler)
        rollback, call = faulty_run(loop)
        clean = Loop(spec, variant, bare, scheduler, on)
        reference_run(clean, rollback, call)
        assert_same(loop.ended(), clean.ended())
        assert_same(copied(loop.scheduler.state_dict()), copied(clean.scheduler.state_dict()))

    def test_one_that_is_not_tracked_goes_on_as_if_nothing_was(self, scheduler, spec, on):
        variant = "default" if spec is ADAMW else "momentum"
        loop = Loop(spec, variant, guarded, scheduler, on)
        faulty_run(loop)
        never = Loop(spec, variant, bare, scheduler, on)
        for batch in range(CALLS):
            never.step(batch)
        assert_same(loop.lrs, never.lrs)
        options = [{k: v for k, v in g.items() if k != "params"} for g in loop.inner.param_groups]
        expected = [{k: v for k, v in g.items() if k != "params"} for g in never.inner.param_groups]
        assert_same(copied(options), copied(expected))


def test_the_snapshot_before_the_first_step_has_no_state():
    model = torch.nn.Linear(3, 2)
    opt = StableOptimizer(torch.optim.Adam(model.parameters()), guard=Guard(every=50))
    start = copied(model.state_dict())
    for call in range(3):
        if call == 2:
            corrupt_weight(opt, math.inf)
        opt.zero_grad()
        loss = model(torch.ones(1, 3)).pow(2).sum()
        loss.backward()
        opt.observe(loss=loss)
        opt.step()
    assert opt.verdict.rollback.to_step == 0
    assert_same(copied(model.state_dict()), start)
    assert not opt.state
    assert opt.summary()["steps"] == 0


LR_ONLY = {
    **{name: SCHEDULERS[name] for name in ("none", "LambdaLR", "ExponentialLR", "StepLR")},
    "OneCycleLR": lambda opt, lr: OneCycleLR(opt, lr, total_steps=17, cycle_momentum=False),
    "CosineAnnealingWarmRestarts": SCHEDULERS["CosineAnnealingWarmRestarts"],
}


@pytest.mark.parametrize("tensor_lr", [False, True])
@pytest.mark.parametrize("scheduler", LR_ONLY)
def test_the_lower_rate_holds_under_every_scheduler_and_comes_back(scheduler, tensor_lr):
    """The second rollback of an episode halves lr: in the step, and nowhere else."""

    def start():
        w = torch.nn.Parameter(torch.zeros(4))
        inner = torch.optim.SGD([w], lr=torch.tensor(0.1) if tensor_lr else 0.1)
        return w, inner

    w, inner = start()
    guard = Guard(every=1, confirm=1, cooldown=2, lr_recovery=4)
    opt = StableOptimizer(inner, guard=guard)
    schedule = LR_ONLY[scheduler](opt, 0.1)
    factors, rates = [], []
    for call in range(16):
        if call in (5, 7):
            corrupt_weight(opt, math.nan)
        before = w.detach().clone()
        w.grad = torch.full((4,), -1.0)
        rates.append(float(opt.param_groups[0]["lr"]))
        opt.step()
        if opt.verdict.action is Action.TAKE:
            factors.append(float((w.detach() - before)[0]) / rates[-1])
        if schedule is not None:
            schedule.step()
    assert [event.rollback.attempt for event in opt.ledger] == [1, 2]
    coming_back = [0.5 ** (1 - done / 4) for done in range(1, 4)]
    expected = [1.0] * 6 + [0.5] * 5 + [*coming_back, 1.0]
    assert factors == pytest.approx(expected[: len(factors)], rel=1e-4)
    assert factors[-1] > 0.8

    _, plain = start()
    other = LR_ONLY[scheduler](plain, 0.1)
    for rate in rates:
        assert float(plain.param_groups[0]["lr"]) == rate
        plain.step()
        if other is not None:
            other.step()
