"""A loss that is not finite, while all gradients are: reported, but no reason to skip a batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stableopt import Action, DivergenceError, Guard, StableOptimizer


def ignored_labels(model, draw, empty):
    """A mean over no labels is 0 / 0, and its gradient is zero."""
    x = torch.randn(16, 4, generator=draw)
    y = (x[:, 0] > 0).long()
    if empty:
        y = torch.full_like(y, -100)
    return F.cross_entropy(model(x), y)


def empty_selection(model, draw, empty):
    """The mean over what was selected, where nothing was."""
    x = torch.randn(16, 4, generator=draw)
    chosen = x[:, 1] > (9.0 if empty else 0.0)
    loss = F.mse_loss(model(x)[:, 0], x[:, 0])
    return loss + model(x)[chosen].detach().mean()


def infinite_penalty(model, draw, empty):
    """A logarithm of zero in a part of the loss that nothing is trained by."""
    x = torch.randn(16, 4, generator=draw)
    loss = F.mse_loss(model(x)[:, 0], x[:, 0])
    return loss - torch.tensor(0.0 if empty else 1.0).log()


@pytest.mark.parametrize("loss_of", [ignored_labels, empty_selection, infinite_penalty])
@pytest.mark.parametrize("sync", ["exact", "lagged"])
@pytest.mark.parametrize("share", [0.2, 0.9])
def test_training_goes_on_bit_for_bit(loss_of, sync, share):
    def run(wrap):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        opt = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
        if wrap:
            opt = StableOptimizer(opt, model=model, guard=Guard(sync=sync, every=20))
        draw = torch.Generator().manual_seed(0)
        for step in range(150):
            loss = loss_of(model, draw, step % 10 < 10 * share)
            opt.zero_grad()
            loss.backward()
            if wrap:
                opt.observe(loss=loss.detach())
            opt.step()
        return model, opt

    bare, _ = run(False)
    mine, opt = run(True)
    for before, after in zip(bare.state_dict().values(), mine.state_dict().values(), strict=True):
        assert torch.equal(before, after)
    told = [event for event in opt.ledger if event.findings[0].kind == "nonfinite_loss"]
    assert {event.action for event in opt.ledger} == {Action.TAKE}
    assert not any(event.intervened for event in told)
    assert "while all gradients are finite" in told[0].reason
    assert len(told) <= 2, "once in a hundred calls"
    assert opt.summary()["integrity"] == "OK"
    assert any(s["verified"] and s["step"] for s in opt.summary()["snapshots"]["steps"])


def step(opt, model, loss, gradient=1.0):
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    opt.observe(loss=loss)
    opt.step()
    return opt.verdict


@pytest.mark.parametrize("sync", ["exact", "lagged"])
def test_skipping_can_be_asked_for(sync):
    model = nn.Linear(2, 1)
    guard = Guard(responses={"nonfinite_loss": "skip"}, max_skips=3, sync=sync)
    opt = StableOptimizer(torch.optim.AdamW(model.parameters(), fused=True), guard=guard)
    step(opt, model, 1.0)
    before = model.weight.detach().clone()
    assert step(opt, model, math.nan).action is Action.SKIP
    assert torch.equal(before, model.weight.detach())
    for _ in range(2):
        step(opt, model, math.inf)
    verdict = step(opt, model, math.nan)
    # Fused kernels have left it out before anybody could decide to take it.
    expected = Action.TAKE if sync == "exact" else Action.SKIP
    assert verdict.action is expected, "nothing is wrong with the weights: nothing goes back"
    assert opt.summary()["rollbacks"] == 0


def test_so_can_stopping():
    model = nn.Linear(2, 1)
    guard = Guard(responses={"nonfinite_loss": "stop"})
    opt = StableOptimizer(torch.optim.AdamW(model.parameters()), guard=guard)
    with pytest.raises(DivergenceError, match="the loss is nan, while all gradients are finite"):
        step(opt, model, math.nan)


def test_a_batch_that_reaches_buffers_is_left_out():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
    opt = StableOptimizer(torch.optim.AdamW(model.parameters()), model=model)
    for bad in (False, False, True, False):
        x = torch.randn(8, 2)
        if bad:
            x[0, 0] = math.nan
        loss = model(x).mean()
        opt.zero_grad()
        model(torch.randn(8, 2)).mean().backward()  # gradients of another pass: they are finite
        opt.observe(loss=loss.detach())
        opt.step()
        assert (opt.verdict.action is Action.SKIP) == bad
        assert model[0].running_mean.isfinite().all()
    assert "the batch has made buffers not finite" in opt.ledger[0].reason


def test_nothing_is_called_healthy_by_it():
    """Promise 3: it verifies no snapshot, ends no episode and makes nothing stable."""
    model = nn.Linear(2, 1)
    guard = Guard(every=1, confirm=1, slots=4, cooldown=2)
    opt = StableOptimizer(torch.optim.AdamW(model.parameters()), guard=guard, sensors=())
    for _ in range(6):
        step(opt, model, 1.0)
    newest = max(s["step"] for s in opt.summary()["snapshots"]["steps"] if s["verified"])
    assert opt.is_stable
    for _ in range(6):
        step(opt, model, math.nan)
    known = opt.summary()["snapshots"]["steps"]
    assert max(s["step"] for s in known if s["verified"]) == newest
    assert not opt.is_stable


@pytest.mark.parametrize(("guard", "fewest"), [(None, 32), (False, 1)])
def test_a_run_that_knows_no_other_losses_is_compromised(guard, fewest):
    model = nn.Linear(2, 1)
    opt = StableOptimizer(torch.optim.SGD(model.parameters()), guard=guard, telemetry=[Nowhere()])
    for _ in range(fewest - 1):
        step(opt, model, math.nan)
    assert opt.summary()["integrity"] == ("UNCHECKED" if guard is False else "OK")
    step(opt, model, math.nan)
    assert opt.summary()["integrity"] == "COMPROMISED"
    step(opt, model, 1.0)
    assert opt.summary()["integrity"] == ("UNCHECKED" if guard is False else "OK")


class Nowhere:
    def write(self, event): ...

    def close(self): ...


def test_inside_of_a_graph():
    def run(response):
        model = nn.Linear(2, 1)
        torch.nn.init.ones_(model.weight)
        responses = {} if response is None else {"nonfinite_loss": response}
        opt = StableOptimizer(
            torch.optim.SGD(model.parameters(), lr=1.0), guard=Guard(responses=responses)
        )
        compiled = torch.compile(opt.step, backend="eager", fullgraph=True)
        for loss in (1.0, 1.0, math.nan, 1.0):
            opt.zero_grad()
            model.weight.grad, model.bias.grad = torch.ones(1, 2), torch.ones(1)
            opt.observe(loss=loss)
            compiled()
        opt.zero_grad()
        return model.weight[0, 0].item(), opt.summary()["skips"]

    assert run(None) == (-3.0, 0)
    assert run("skip") == (-2.0, 1)
    torch._dynamo.reset()
