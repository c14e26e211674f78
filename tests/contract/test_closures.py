"""Closures that an optimizer evaluates where it likes, whatever its signature says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from stableopt import Action, Guard, StableOptimizer


class Sharpness(torch.optim.Optimizer):
    """Sharpness-aware minimization: the closure is evaluated at a point that is worse."""

    data = False

    def __init__(self, params, rho=0.05, every=1, **options):
        super().__init__(params, {"rho": rho, **options})
        self.base = torch.optim.SGD(self.param_groups, **options)
        self.param_groups = self.base.param_groups
        self.every, self.calls = every, 0

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is not None, "it needs the closure"
        self.calls += 1
        if self.calls % self.every:
            with torch.enable_grad():
                loss = closure()
            self.base.step()
            return loss
        params = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        moves = [p.grad * self.param_groups[0]["rho"] for p in params]
        self._move(params, moves, 1)
        with torch.enable_grad():
            loss = closure()
        self._move(params, moves, -1)
        self.base.step()
        return loss

    def _move(self, params, moves, sign):
        for p, e in zip(params, moves, strict=True):
            (p.data if self.data else p).add_(e, alpha=sign)


class OnData(Sharpness):
    """The same through ``.data``, which leaves no trace in a version."""

    data = True


class Extragradient(torch.optim.Optimizer):
    """Takes the gradient at the end of a step, and takes that step; resets gradients by itself."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        params = [p for g in self.param_groups for p in g["params"]]
        before = [p.clone() for p in params]
        for p in params:
            p.add_(p.grad, alpha=-self.param_groups[0]["lr"])
        self.zero_grad()
        with torch.enable_grad():
            loss = closure()
        for p, old in zip(params, before, strict=True):
            p.copy_(old - self.param_groups[0]["lr"] * p.grad)
        return loss


class Usual(torch.optim.Optimizer):
    """Evaluates it once, at the start, as torch's do; counts."""

    evaluated = 0

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(p.grad, alpha=-group["lr"])
        return loss


class KeywordOnly(Usual):
    """The same, with a closure that is given by its name."""

    def step(self, *, closure=None):
        return super().step(closure)


MAKERS = {
    "keyword": KeywordOnly,
    "SAM": lambda ps: Sharpness(ps, lr=0.1, momentum=0.9),
    "SAM on .data": lambda ps: OnData(ps, lr=0.1, momentum=0.9),
    "SAM in every third step": lambda ps: Sharpness(ps, every=3, lr=0.1, momentum=0.9),
    "extragradient": Extragradient,
    "usual": Usual,
    "torch": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
}

WAYS = {
    "exact": {},
    "no guard": {"guard": False},
    "lagged": {"guard": Guard(sync="lagged")},
    "compiled": {"compile": {"backend": "eager"}},
}


def run(make, wrap, steps=40, bad=None, points=("first",), **options):
    """Train; in step ``bad`` some evaluations of the closure are NaN."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    opt = make(model.parameters())
    first = wrap or make in (KeywordOnly, Usual, MAKERS["torch"])
    if wrap:
        opt = StableOptimizer(opt, model=model, sensors=(), **options)
    evaluated = []
    for step in range(steps):
        x = torch.randn(16, 4)
        at = []

        def closure(x=x, at=at, step=step):
            at.append(1)
            evaluated.append(step)
            opt.zero_grad()
            loss = (model(x) - x.sum(1, keepdim=True)).pow(2).mean()
            if step == bad and ("first" if len(at) == 1 else "again") in points:
                loss = loss * math.nan
            loss.backward()
            return loss

        if not first:
            closure()  # as its documentation says
        if step != bad or wrap:
            opt.step(closure=closure)
    return torch.cat([p.detach().flatten() for p in model.parameters()]), evaluated, opt


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.filterwarnings("ignore:sync='lagged'")
def test_it_is_what_the_optimizer_does(name, way):
    bare, _, _ = run(MAKERS[name], False)
    mine, _, opt = run(MAKERS[name], True, **WAYS[way])
    compiled = way == "compiled" and name == "torch"  # it rounds in another way
    assert torch.allclose(bare, mine, atol=1e-5) if compiled else torch.equal(bare, mine)
    assert opt.ledger == ()


@pytest.mark.parametrize(("name", "times"), [("usual", 1), ("torch", 1), ("SAM", 2)])
def test_no_evaluation_is_made_twice(name, times):
    _, evaluated, _ = run(MAKERS[name], True, steps=10)
    assert len(evaluated) == 10 * times


@pytest.mark.parametrize("name", ["SAM", "SAM on .data", "extragradient", "usual"])
@pytest.mark.parametrize("bad", [0, 1, 20])
def test_a_bad_batch_never_happened(name, bad):
    def without(steps):
        torch.manual_seed(0)
        return run(MAKERS[name], False, bad=bad, steps=steps)[0]

    mine, _, opt = run(MAKERS[name], True, bad=bad)
    assert [event.action for event in opt.ledger] == [Action.SKIP]
    assert mine.isfinite().all()
    if name == "usual":
        assert torch.equal(mine, without(40))


@pytest.mark.parametrize("name", ["SAM", "SAM on .data", "extragradient"])
@pytest.mark.parametrize("bad", [0, 1, 20])
def test_a_bad_evaluation_at_another_point_is_undone(name, bad):
    """The weights lie elsewhere then: they are put back to where the step began."""
    before, _, _ = run(MAKERS[name], True, steps=bad)
    mine, _, opt = run(MAKERS[name], True, steps=bad + 1, bad=bad, points=("again",))
    assert [event.action for event in opt.ledger] == [Action.SKIP]
    assert torch.equal(before, mine)


def test_where_nobody_could_know_the_run_goes_back():
    """An optimizer that begins to evaluate again in mid-run: there is no copy of that moment."""
    make = MAKERS["SAM in every third step"]
    _, _, opt = run(make, True, steps=12, bad=2, points=("again",))
    assert opt.summary()["rollbacks"] == 1
    assert all(p.isfinite().all() for g in opt.param_groups for p in g["params"])


def test_compiling_says_what_it_does_not(caplog):
    _, _, opt = run(MAKERS["SAM"], True, steps=3, **WAYS["compiled"])
    assert "its step is given a closure" in opt.summary()["compiled"]
    assert caplog.text.count("is not compiled") == 1
