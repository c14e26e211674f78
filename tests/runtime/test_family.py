"""State that lies beside ``.state``: in other optimizers, and in attributes."""

from __future__ import annotations

import math
import types
from collections import defaultdict, deque

import numpy as np
import pytest
import torch
from torch import nn

from stableopt import Guard, StableOptimizer
from stableopt.runtime.family import attributes, family, loose_tensors, numbers, state_of, unseen
from tests.contract.bits import assert_same
from tests.contract.scenario import copied


class SlowAndFast(torch.optim.Optimizer):
    """Lookahead: slow weights in ``.state``, the moments in the optimizer that it holds."""

    def __init__(self, params, k=3):
        self.fast = torch.optim.AdamW(params, lr=1e-2)
        super().__init__(self.fast.param_groups, {})
        self.param_groups = self.fast.param_groups
        self.k, self.count = k, 0
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["slow"] = p.detach().clone()

    @torch.no_grad()
    def step(self, closure=None):
        loss = self.fast.step(closure)
        self.count += 1
        if self.count % self.k == 0:
            for p, state in self.state.items():
                state["slow"].lerp_(p, 0.5)
                p.copy_(state["slow"])
        return loss


class InAttributes(torch.optim.Optimizer):
    """Momentum by hand: moments in a list, a ring of norms, a count; nothing in ``.state``."""

    def __init__(self, params, lr=1e-2):
        super().__init__(params, {"lr": lr})
        self.moments = [[torch.zeros_like(p) for p in g["params"]] for g in self.param_groups]
        self.by_parameter = {}
        self.recent = deque(maxlen=4)
        self.steps = 0
        self.scale = 2.0  # an option of the user, not a count

    @torch.no_grad()
    def step(self, closure=None):
        self.steps += 1
        for group, moments in zip(self.param_groups, self.moments, strict=True):
            for p, m in zip(group["params"], moments, strict=True):
                m.mul_(0.9).add_(p.grad, alpha=1 / self.steps)
                self.by_parameter.setdefault(p, torch.zeros_like(p)).add_(p.grad.square())
                p.add_(m / (self.by_parameter[p].sqrt() + 1e-8), alpha=-group["lr"])
        self.recent.append(self.moments[0][0].norm())


class Fused(torch.optim.Optimizer):
    """All moments in one tensor, rebound in every step, as ``torch.func`` code writes it."""

    def __init__(self, params, lr=1e-2):
        super().__init__(params, {"lr": lr})
        count = sum(p.numel() for g in self.param_groups for p in g["params"])
        self.flat = {"m": torch.zeros(count), "history": (torch.zeros(2), 3)}

    @torch.no_grad()
    def step(self, closure=None):
        params = [p for g in self.param_groups for p in g["params"]]
        grads = torch.cat([p.grad.flatten() for p in params])
        m = 0.9 * self.flat["m"] + grads
        self.flat = {"m": m, "history": (self.flat["history"][0] + 1, 3)}
        for p, part in zip(params, m.split([p.numel() for p in params]), strict=True):
            p.add_(part.view_as(p), alpha=-self.param_groups[0]["lr"])


class Deep(torch.optim.Optimizer):
    """One that holds several, in a dict, each with its own part."""

    def __init__(self, params):
        params = list(params)
        super().__init__(params, {})
        self.parts = {
            "matrices": [torch.optim.SGD([p for p in params if p.dim() > 1], 1e-2, momentum=0.9)],
            "others": torch.optim.AdamW([p for p in params if p.dim() < 2], lr=1e-2),
        }

    def step(self, closure=None):
        self.parts["matrices"][0].step()
        self.parts["others"].step()


KINDS = {"nested": SlowAndFast, "attributes": InAttributes, "flat": Fused, "several": Deep}


class Run:
    def __init__(self, kind, **guard):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
        self.inner = KINDS[kind](self.model.parameters())
        guard = Guard(**{"every": 5, "confirm": 22, **guard})
        self.opt = StableOptimizer(self.inner, model=self.model, sensors=(), guard=guard)

    def train(self, steps, strike=None):
        """Train on batches that go back with the weights; ``strike`` does its work once."""
        at = 0
        while at < steps:
            if strike is not None and at == steps - 20:
                strike(self)
                strike = None
            self.opt.zero_grad()
            x = torch.randn(16, 6, generator=torch.Generator().manual_seed(at))
            (self.model(x) - x[:, :4]).square().mean().backward()
            self.opt.step()
            at = self.opt.summary()["steps"]
        return self

    def everything(self):
        trained = {id(p) for p in self.model.parameters()}
        return copied(
            [
                dict(self.model.named_parameters()),
                [member.state_dict() for member in family(self.inner)],
                [attributes(member, trained) for member in family(self.inner)],
            ]
        )


def weight(run):
    run.model[0].weight.data[0, 0] = math.nan


def moment(run):
    """Break what lies beside ``.state``, where no gradient shows it at once."""
    trained = {id(p) for p in run.model.parameters()}
    found = [
        value
        for member in family(run.inner)[1:]
        for state in member.state.values()
        for value in state.values()
        if value.dim()
    ]
    found += [t for t in loose_tensors(run.inner).values() if t.dim() and id(t) not in trained]
    found[0].view(-1)[0] = math.inf


@pytest.mark.parametrize("kind", ["nested", "attributes", "flat", "several"])
@pytest.mark.parametrize("strike", [weight, moment])
def test_a_rollback_brings_everything_back(kind, strike):
    clean = Run(kind).train(60)
    struck = Run(kind).train(60, strike)
    assert struck.opt.summary()["rollbacks"] == 1, [e.reason for e in struck.opt.ledger]
    left, right = clean.everything(), struck.everything()
    if kind == "attributes":
        for each in (left, right):
            each[2][0]["recent"] = list(each[2][0]["recent"])
            each[2][0]["by_parameter"] = list(each[2][0]["by_parameter"].values())
    assert_same(right, left)


def test_numbers_that_the_optimizer_counts_go_back_and_others_stay():
    run = Run("attributes").train(30)
    run.inner.scale = 3.0
    weight(run)
    run.opt.rollback()
    run.train(1)
    assert run.opt.ledger[-1].rollback is not None
    assert run.inner.steps == run.opt.summary()["steps"] < 30
    assert run.inner.scale == 3.0


@pytest.mark.parametrize("kind", ["nested", "attributes", "flat", "several"])
def test_what_is_not_finite_is_named(kind):
    run = Run(kind).train(30)
    moment(run)
    run.train(52)
    reason = run.opt.ledger[0].reason
    names = {
        "nested": "AdamW.exp_avg of 0.weight is not finite",
        "attributes": "the optimizer's moments[0][0]",
        "flat": "the optimizer's flat['m'] is not finite",
        "several": "momentum_buffer of 0.weight is not finite",
    }
    assert names[kind] in reason


class Shares(torch.optim.Optimizer):
    """Lookahead that has the very ``.state`` of the optimizer inside."""

    def __init__(self, inner, k=3):
        super().__init__(inner.param_groups, {})
        self.inner, self.k, self.count = inner, k, 0
        self.param_groups, self.state = inner.param_groups, inner.state
        self.slow = [p.detach().clone() for g in self.param_groups for p in g["params"]]

    @torch.no_grad()
    def step(self, closure=None):
        loss = self.inner.step(closure)
        self.count += 1
        if self.count % self.k == 0:
            params = [p for g in self.param_groups for p in g["params"]]
            for p, slow in zip(params, self.slow, strict=True):
                p.copy_(slow.lerp_(p, 0.5))
        return loss


class InOptions(torch.optim.Optimizer):
    """Momentum in a list in the group, and an array beside it."""

    def __init__(self, params, lr=1e-2):
        super().__init__(params, {"lr": lr})
        self.sizes = np.zeros(len(self.param_groups[0]["params"]))
        for group in self.param_groups:
            group["moments"] = [torch.zeros_like(p) for p in group["params"]]

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for i, (p, m) in enumerate(zip(group["params"], group["moments"], strict=True)):
                m.mul_(0.9).add_(p.grad)
                self.sizes[i] += float(m.norm())
                p.add_(m, alpha=-group["lr"] / (1.0 + float(self.sizes[i])))


KINDS |= {
    "shared state": lambda params: Shares(InAttributes(params)),
    "shared twice": lambda params: Shares(Shares(torch.optim.AdamW(params, lr=1e-2))),
    "options": InOptions,
}


@pytest.mark.parametrize("kind", ["shared state", "shared twice", "options"])
def test_what_shares_its_state_or_keeps_it_in_options_goes_back(kind):
    clean = Run(kind).train(60)
    struck = Run(kind).train(60, weight)
    assert struck.opt.summary()["rollbacks"] == 1
    for before, after in zip(clean.model.parameters(), struck.model.parameters(), strict=True):
        assert torch.equal(before, after)


def test_what_is_not_finite_in_an_optimizer_that_shares_its_state_is_named():
    run = Run("shared state").train(30)
    run.inner.inner.moments[0][0][0, 0] = math.nan
    run.train(52)
    assert "the optimizer's moments[0][0]" in run.opt.ledger[0].reason


@pytest.mark.parametrize(
    "thing", [torch.Generator(), types.SimpleNamespace(inner=torch.optim.SGD([torch.ones(1)]))]
)
def test_of_chance_and_of_hidden_optimizers_it_is_said(thing, caplog):
    model = nn.Linear(3, 2)
    inner = InAttributes(model.parameters())
    inner.thing = thing
    StableOptimizer(inner, model=model)
    assert "keeps state in its attribute thing" in caplog.text


def test_who_belongs_together():
    params = [nn.Parameter(torch.ones(2))]
    slow = SlowAndFast(params)
    assert family(slow) == [slow, slow.fast]
    assert state_of(slow, params[0]).keys() == {"slow"}
    params[0].grad = torch.ones(2)
    slow.step()
    assert {"slow", "AdamW.exp_avg"} < state_of(slow, params[0]).keys()
    adam = torch.optim.AdamW(params)
    assert family(adam) == [adam]
    assert numbers(adam) == {}
    adam.twin = slow  # whatever people hang onto an optimizer of torch
    assert family(adam) == [adam]

    class Same(torch.optim.Optimizer):  # as accelerate's wrapper
        def __init__(self, optimizer):
            self.optimizer = optimizer
            self.__dict__["param_groups"] = optimizer.param_groups
            self.__dict__["state"] = optimizer.state

        def step(self, closure=None): ...

    same = Same(adam)
    assert family(same) == [same]


class Projector:
    def __init__(self, parameter):
        self.basis = torch.eye(parameter.numel())


class Projected(torch.optim.SGD):
    def __init__(self, params):
        params = list(params)
        super().__init__(params, lr=1e-2)
        self.projector = Projector(params[0])
        self.log = print
        self.config = {"rank": 3}

    def step(self, closure=None):
        return super().step(closure)


def test_what_cannot_be_looked_into_is_said_once(caplog):
    model = nn.Linear(3, 2)
    opt = StableOptimizer(Projected(model.parameters()), model=model, guard=Guard(every=2))
    assert "Projected keeps state in its attribute projector (Projector)" in caplog.text
    for _ in range(8):
        model(torch.ones(1, 3)).sum().backward()
        opt.step()
    assert caplog.text.count("projector") == 1


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.LBFGS, SlowAndFast, InAttributes])
def test_of_the_others_nothing_is_said(make, caplog):
    model = nn.Linear(3, 2)
    StableOptimizer(make(model.parameters()), model=model)
    assert "keeps state" not in caplog.text


def test_containers_of_every_kind():
    class Odd(torch.optim.SGD):
        def __init__(self, params):
            params = list(params)
            super().__init__(params, lr=0.1)
            self.empty, self.name, self.flag = [], "odd", True
            self.trained = params
            self.groups = {"a": (torch.ones(1), [torch.ones(2)]), "b": None}
            self.default = defaultdict(list, x=[torch.ones(3)])
            self.mixed = [torch.ones(1), object()]

    odd = Odd([nn.Parameter(torch.ones(2))])
    trained = {id(p) for p in odd.trained}
    assert attributes(odd, trained).keys() == {"flag", "groups", "default"}
    assert loose_tensors(odd).keys() == {"groups['a'][0]", "groups['a'][1][0]", "default['x'][0]"}
    assert list(unseen(odd, trained)) == []
