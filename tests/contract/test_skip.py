"""SKIP: nothing moves, and training goes on as if the batch had never been."""

from __future__ import annotations

import math

import pytest
import torch

from stableopt import Action, DivergenceError, Guard, StableOptimizer
from stableopt.testing import inject_gradient
from tests.contract.bits import assert_same
from tests.contract.pairwise import cover
from tests.contract.scenario import Scenario, Tiny, Trace, build, copied, finish, seed_everything
from tests.contract.specs import VARIANTS, variant_id

FAULTS = {
    "nan_gradient": ("gradient", math.nan),
    "inf_gradient": ("gradient", math.inf),
    "nan_loss": ("loss", math.nan),
    "inf_loss": ("loss", -math.inf),
}


ALL_SKIPPED = Guard(responses={"nonfinite_loss": "skip"})
"""Of a loss alone nothing reaches the weights: skipping has to be asked for."""


def start(spec, variant):
    seed_everything(3)
    model = Tiny(spec.model, "float32")
    inner, _ = build(Scenario(spec=spec, variant=variant), model)
    return model, inner, StableOptimizer(inner, model=model, guard=ALL_SKIPPED)


def one_step(spec, model, opt, step, fault=None):
    """Run one step on a batch that depends on ``step`` alone, with a fault or without."""

    def backward():
        seed_everything(100 + step)
        opt.zero_grad()
        loss = model.loss(step)
        loss.backward()
        loss = loss.detach()
        if fault is not None:
            where, value = fault
            if where == "gradient":
                inject_gradient(opt, value, seed=step)
            else:
                loss = loss * 0 + value
        return loss

    if spec.closure == "required" or step % 2:
        return opt.step(backward)
    opt.observe(loss=backward())
    return opt.step()


def snapshot(model, inner):
    trace = Trace()
    finish(trace, model, inner)
    trace.grads, trace.rng = [], None  # the caller's: a skip leaves them as they are
    trace.moved = [p.data_ptr() for p in model.parameters()]
    return trace


ROWS = cover({"pair": VARIANTS, "fault": list(FAULTS), "at": [0, 1, 4]}, lambda row: True)


@pytest.mark.parametrize(
    ("pair", "fault", "at"),
    [tuple(row.values()) for row in ROWS],
    ids=[f"{variant_id(row['pair'])}-{row['fault']}-{row['at']}" for row in ROWS],
)
def test_the_batch_never_happened(pair, fault, at):
    (spec, variant), fault = pair, FAULTS[fault]
    model, inner, opt = start(spec, variant)
    for step in range(7):
        if step == at:
            before = snapshot(model, inner)
            returned = one_step(spec, model, opt, step, fault)
            assert_same(snapshot(model, inner), before)
            assert opt.verdict.action is Action.SKIP
            if spec.closure == "required" or step % 2:
                assert returned is not None
        else:
            one_step(spec, model, opt, step)
            assert opt.verdict.action is Action.TAKE

    clean, clean_inner, clean_opt = start(spec, variant)
    for step in range(7):
        if step != at:
            one_step(spec, clean, clean_opt, step)
    actual, expected = snapshot(model, inner), snapshot(clean, clean_inner)
    actual.moved = expected.moved = []
    assert_same(actual, expected)
    assert len(opt.ledger) == 1
    assert opt.summary()["steps"] == 6


def batch_norm_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU(), torch.nn.Linear(4, 1)
    )


@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_statistics_never_saw_the_batch(at, momentum):
    def trained(skip_batch):
        model = batch_norm_model()
        model[1].momentum = momentum
        opt = StableOptimizer(torch.optim.Adam(model.parameters()), model=model)
        for step in range(6):
            if step == at and skip_batch:
                continue
            x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
            if step == at:
                x[2, 1] = math.nan
            opt.zero_grad()
            model(x).pow(2).mean().backward()
            opt.step()
        return copied(model.state_dict()), copied(opt.state_dict()["state"])

    assert_same(trained(False), trained(True))


def test_a_finite_batch_with_a_bad_loss_leaves_no_statistics_either():
    model = batch_norm_model()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    opt = StableOptimizer(inner, model=model, guard=ALL_SKIPPED)
    before = copied(model.state_dict())
    loss = model(torch.randn(8, 3)).pow(2).mean()
    loss.backward()
    opt.observe(loss=loss * math.nan)
    opt.step()
    assert_same(copied(model.state_dict()), before)


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
@pytest.mark.parametrize("evaluation", [2, 3])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_lbfgs_skips_when_a_later_evaluation_is_bad(line_search, evaluation, value):
    torch.manual_seed(0)
    model = batch_norm_model()
    inner = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=5, line_search_fn=line_search)
    opt = StableOptimizer(inner, model=model)
    x = torch.randn(8, 3)
    evaluations = 0

    def closure(bad_at=0):
        nonlocal evaluations
        evaluations += 1
        opt.zero_grad()
        loss = model(x).pow(2).mean()
        if evaluations == bad_at:
            loss = loss * value
        loss.backward()
        return loss

    opt.step(closure)
    assert evaluations > 3, "the scenario needs a line search that evaluates more than thrice"
    before = snapshot(model, inner)
    evaluations = 0
    opt.step(lambda: closure(evaluation))
    assert opt.verdict.action is Action.SKIP
    assert evaluations == evaluation
    assert_same(snapshot(model, inner), before)
    opt.step(closure)
    assert opt.verdict.action is Action.TAKE


def test_lbfgs_that_always_fails_in_its_line_search_stops():
    w = torch.nn.Parameter(torch.ones(2))
    opt = StableOptimizer(torch.optim.LBFGS([w], lr=1.0), guard=Guard(max_skips=2))

    def closure():
        opt.zero_grad()
        loss = (w - 3).pow(2).sum()
        if (w != 1).any():
            loss = loss * math.nan
        loss.backward()
        return loss

    opt.step(closure)
    opt.step(closure)
    with pytest.raises(DivergenceError, match=r"max_skips=2"):
        opt.step(closure)
    assert w.tolist() == [1.0, 1.0]


def test_hooks_of_the_inner_step_do_not_fire_on_a_skip():
    w = torch.nn.Parameter(torch.ones(2))
    opt = StableOptimizer(torch.optim.SGD([w], lr=0.1))
    fired = []
    opt.register_step_pre_hook(lambda *_: fired.append("pre"))
    opt.register_step_post_hook(lambda *_: fired.append("post"))
    w.grad = torch.tensor([1.0, math.nan])
    opt.step()
    assert fired == []
    w.grad = torch.ones(2)
    opt.step()
    assert fired == ["pre", "post"]


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_too_many_skips_in_a_row_stop_the_run(limit):
    w = torch.nn.Parameter(torch.ones(2))
    guard = Guard(max_skips=limit, max_rollbacks=0)
    opt = StableOptimizer(torch.optim.Adam([w]), guard=guard)
    w.grad = torch.ones(2)
    opt.step()
    before = w.tolist()
    w.grad = torch.tensor([math.inf, 1.0])
    for _ in range(limit):
        opt.step()
    with pytest.raises(DivergenceError) as stopped:
        opt.step()
    # The newest verified snapshot is the one before the first step.
    assert before != w.tolist() == [1.0, 1.0]
    assert [e.action for e in opt.ledger] == [Action.SKIP] * limit + [Action.STOP]
    assert stopped.value.event is opt.ledger[-1]
    assert stopped.value.ledger == opt.ledger
    assert "0.0" in str(stopped.value)
    assert opt.summary()["integrity"] == "COMPROMISED"
    assert opt.summary()["status"] == "stopped"


def test_a_taken_step_ends_a_row_of_skips():
    w = torch.nn.Parameter(torch.ones(2))
    opt = StableOptimizer(torch.optim.SGD([w], lr=0.1), guard=Guard(max_skips=1))
    for step in range(8):
        w.grad = torch.full((2,), math.nan if step % 2 else 1.0)
        opt.step()
    assert opt.summary()["skips"] == 4
    assert opt.summary()["integrity"] == "OK"


def test_huge_finite_gradients_whose_norm_overflows_are_taken():
    for dtype, huge in ((torch.float32, 3e38), (torch.float16, 6e4), (torch.bfloat16, 3e38)):
        w = torch.nn.Parameter(torch.ones(64, dtype=dtype))
        opt = StableOptimizer(torch.optim.SGD([w], lr=0.0))
        w.grad = torch.full((64,), huge, dtype=dtype)
        opt.step()
        assert opt.verdict.action is Action.TAKE


def test_without_a_guard_the_fault_goes_through():
    w = torch.nn.Parameter(torch.ones(2))
    opt = StableOptimizer(torch.optim.SGD([w], lr=0.1), guard=False)
    w.grad = torch.tensor([math.nan, 1.0])
    opt.step()
    assert math.isnan(w[0].item())
    assert opt.summary()["integrity"] == "UNCHECKED"


@pytest.mark.parametrize("slots", [0, 3])
@pytest.mark.parametrize("how", ["lr", "hook", "half"])
def test_a_run_that_loses_its_weights_in_every_step_ends(how, slots):
    dtype = torch.float16 if how == "half" else torch.float32
    w = torch.nn.Parameter(torch.ones(3, dtype=dtype))
    opt = StableOptimizer(torch.optim.Adam([w]), guard=Guard(slots=slots))
    if how == "lr":
        opt.param_groups[0]["lr"] = math.nan
    if how == "hook":
        opt.register_step_pre_hook(lambda *_: setattr(w, "grad", w.grad * math.nan))

    def train():
        for _ in range(20):
            w.grad = w.detach() * 0  # zero: Adam's eps underflows in half precision
            opt.step()

    with pytest.raises(DivergenceError, match=r"the weights of 0\.0 are not finite"):
        train()
    actions = [e.action for e in opt.ledger]
    assert actions == [Action.ROLL_BACK] * (3 if slots else 0) + [Action.STOP]
    assert w.isfinite().all() if slots else w.isnan().all()
    assert opt.summary()["integrity"] == "COMPROMISED"


def test_the_reason_names_the_layer():
    model = batch_norm_model()
    opt = StableOptimizer(torch.optim.Adam(model.parameters()), model=model)
    model(torch.randn(8, 3)).sum().backward()
    inject_gradient(opt, model=model, name="3.weight")
    opt.step()
    assert "the gradient of 3.weight is not finite" in opt.verdict.reason
    assert opt.verdict.findings[0].where == ("3.weight",)
