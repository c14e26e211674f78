"""Tensors without values, everywhere a run may meet them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from stableopt import ClipGradNorm, Guard, StableOptimizer, presets
from stableopt.runtime.storage import has_data, without_overlap


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_what_has_none():
    assert has_data(torch.zeros(3))
    assert has_data(torch.zeros(0, 4))
    assert has_data(nn.Parameter(torch.zeros(())))
    assert has_data(torch.eye(3).to_sparse())
    assert not has_data(torch.zeros(3, device="meta"))
    assert not has_data(nn.Parameter(torch.zeros(3, device="meta")))
    assert not has_data(nn.LazyLinear(3).weight)
    freed = torch.zeros(3)
    freed.untyped_storage().resize_(0)
    assert not has_data(freed)
    with FakeTensorMode():
        assert not has_data(torch.zeros(3))
        assert not has_data(nn.Linear(2, 2).weight)


@pytest.mark.parametrize("shape", [(4, 8), (1, 8), (2, 3, 4)])
@pytest.mark.parametrize("expanded", [0, 1])
def test_writing_to_an_expanded_tensor(shape, expanded):
    one = list(shape)
    one[expanded] = 1
    live = torch.zeros(one).expand(shape)
    saved = torch.arange(float(math.prod(one))).view(one).expand(shape).clone()
    target, source = without_overlap(live, saved)
    target.copy_(source)
    assert torch.equal(live, saved)


OPTIONS = {
    "default": {},
    "lagged": {"guard": Guard(sync="lagged")},
    "no guard": {"guard": False},
    "robust": presets.robust(),
    "clipped": {"transforms": [ClipGradNorm(1.0)]},
    "compiled": {"compile": {"backend": "eager"}},
}


def train(model, opt, device, steps=3, closure=False):
    for _ in range(steps):

        def evaluate():
            opt.zero_grad()
            loss = model(torch.randn(4, 4, device=device)).square().mean()
            loss.backward()
            return loss

        if closure:
            opt.step(evaluate)
        else:
            loss = evaluate()
            opt.observe(loss=loss, parts={"a": loss.detach()})
            opt.step()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("closure", [True, False])
@pytest.mark.filterwarnings("ignore:sync='lagged'")
class TestARehearsal:
    """Tools train a step of tensors without values, to know how much memory a run will need."""

    def model(self, **options):
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        make = torch.optim.AdamW(model.parameters())
        return model, StableOptimizer(make, model=model, **options)

    def test_under_fake_tensors(self, options, closure):
        with FakeTensorMode():
            model, opt = self.model(**OPTIONS[options])
            train(model, opt, "cpu", closure=closure)
            assert opt.verdict is None
            assert opt.summary()["calls"] == 0
            opt.state_dict()
            opt.close()

    def test_on_the_meta_device(self, options, closure):
        with torch.device("meta"):
            model, opt = self.model(**OPTIONS[options])
        train(model, opt, "meta", closure=closure)
        assert opt.summary()["calls"] == 0
        opt.snapshot() if OPTIONS[options].get("guard") is not False else None
        opt.close()


@pytest.mark.parametrize("options", OPTIONS)
def test_values_that_come_after_the_wrapper(options):
    """The parameters stay themselves, and get their memory once the wrapper is there."""
    torch.manual_seed(0)
    model = nn.Linear(4, 4, device="meta")
    head = nn.Linear(4, 4)
    inner = torch.optim.AdamW([*head.parameters(), *model.parameters()])
    opt = StableOptimizer(inner, model=nn.Sequential(model, head), **OPTIONS[options])
    weights = {name: nn.Parameter(torch.randn(p.shape)) for name, p in model.named_parameters()}
    for name, parameter in weights.items():
        setattr(model, name, parameter)
    inner.param_groups[0]["params"][2:] = list(weights.values())
    train(nn.Sequential(model, head), opt, "cpu", steps=30)
    assert opt.summary()["calls"] == opt.summary()["steps"] == 30
    assert not any(event.findings for event in opt.ledger)


@pytest.mark.parametrize("options", ["default", "lagged", "no guard"])
def test_a_frozen_base_that_comes_and_goes(options):
    """Offloaded: between two forward passes it is on the meta device; its buffers are, too."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval().requires_grad_(False)
    head = nn.Linear(4, 4)
    kept = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    inner = torch.optim.AdamW(head.parameters(), lr=1e-2, fused=True)
    opt = StableOptimizer(inner, model=nn.Sequential(base, head), **OPTIONS[options])
    for call in range(30):
        base.to_empty(device="cpu")
        base.load_state_dict(kept)
        loss = head(base(torch.randn(8, 4))).square().mean()
        opt.zero_grad()
        loss.backward()
        base.to("meta")
        if call == 20 and options != "no guard":
            head.weight.data[0, 0] = math.nan
        opt.observe(loss=loss)
        opt.step()
    assert head.weight.isfinite().all()
    assert opt.summary()["rollbacks"] == (options != "no guard")


def test_a_signal_without_a_value_was_not_observed():
    weight = nn.Parameter(torch.ones(1))
    opt = StableOptimizer(torch.optim.SGD([weight]))
    weight.grad = torch.ones(1)
    opt.observe(loss=torch.zeros((), device="meta"), other={"a": torch.zeros(2, device="meta")})
    opt.step()
    assert opt.summary()["last_loss"] is None
