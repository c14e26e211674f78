"""The ways to step, on every device there is: they skip, go back, measure, and agree."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from stableopt import Action, Guard, StableOptimizer
from stableopt.testing import corrupt_weight
from tests.contract.bits import assert_same
from tests.contract.scenario import copied

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
LAGGED = ("fused, lagged", "compile=True, lagged")
DEVICES = ["cpu", pytest.param("cuda", marks=CUDA)]
WAYS = ("fused", "foreach", "compile=True", "torch.compile(step)", *LAGGED)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Run:
    """A loop on one device, in one of the ways to step."""

    def __init__(self, device, way, **guard):
        torch.manual_seed(0)
        self.device = device
        self.model = nn.Sequential(
            nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Tanh(), nn.Linear(32, 16)
        ).to(device)
        options = {"lr": torch.tensor(1e-2)} if way.startswith("torch") else {"lr": 1e-2}
        kernel, *lagged = way.split(", ")
        options |= {kernel: True} if kernel in ("fused", "foreach") else {}
        sync = "lagged" if lagged else "exact"
        if way.startswith("torch") and device != "cpu":
            options["capturable"] = True  # step counters on the device, as the flag is
        inner = torch.optim.AdamW(self.model.parameters(), **options)
        backend = {"backend": "inductor" if device == "cuda" else "eager"}
        self.opt = StableOptimizer(
            inner,
            model=self.model,
            guard=Guard(**{"every": 10, "confirm": 5, "sync": sync, **guard}),
            compile=backend if kernel == "compile=True" else False,
        )
        self.step = self.opt.step
        if way.startswith("torch"):
            self.step = torch.compile(self.opt.step, fullgraph=True, **backend)

    def steps(self, count, first=0, bad=()):
        for step in range(first, first + count):
            x = torch.randn(8, 16, generator=torch.Generator().manual_seed(step))
            x = (x * math.nan if step in bad else x).to(self.device)
            self.opt.zero_grad()
            loss = self.model(x).sub(x.sin()).pow(2).mean()
            loss.backward()
            self.opt.observe(loss=loss)
            self.step()
        return self.opt

    def everything(self):
        return copied([dict(self.model.state_dict()), self.opt.optimizer.state_dict()["state"]])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("device", DEVICES)
def test_a_bad_batch_never_happened(device, way):
    run, clean = Run(device, way), Run(device, way)
    run.steps(20, bad=(0, 7))
    for step in range(20):
        if step not in (0, 7):
            clean.steps(1, first=step)
    assert [event.action for event in run.opt.ledger] == [Action.SKIP] * 2
    assert run.opt.summary()["steps"] == clean.opt.summary()["steps"] == 18
    assert_same(run.everything(), clean.everything())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("device", DEVICES)
def test_a_lost_weight_goes_back(device, way):
    run = Run(device, way)
    run.steps(33)
    where = [parameter.data_ptr() for parameter in run.model.parameters()]
    corrupt_weight(run.opt, math.nan, model=run.model)
    run.steps(20, first=33)
    assert run.opt.summary()["rollbacks"] == 1
    assert all(torch.isfinite(p).all() for p in run.model.parameters())
    assert [parameter.data_ptr() for parameter in run.model.parameters()] == where


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("device", DEVICES)
def test_sensors_read_beside_it(device, way):
    run = Run(device, way)
    run.steps(120)
    assert {"0.weight", "3.weight"} <= set(run.opt.readings)
    assert run.opt.summary()["integrity"] == "OK"
    assert not run.opt.ledger


@CUDA
@pytest.mark.parametrize("way", LAGGED)
def test_the_host_never_waits(way):
    """But for the first two steps and for the scan before a snapshot; no sensor is late either."""
    run = Run("cuda", way, every=50)
    run.steps(48)
    loss = run.model(torch.randn(8, 16, device="cuda")).pow(2).mean()
    run.opt.zero_grad()
    loss.backward()
    run.opt.observe(loss=loss)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert run.opt.summary()["steps"] == 49


@CUDA
def test_a_recorded_graph_steps_skips_and_goes_back():
    """compile=dict(mode="reduce-overhead"): the update is one CUDA graph."""
    torch.manual_seed(0)
    model = nn.Linear(64, 64).cuda()
    opt = StableOptimizer(
        torch.optim.AdamW(model.parameters(), lr=1e-3),
        model=model,
        guard=Guard(every=10, confirm=5),
        compile={"mode": "reduce-overhead"},
    )
    for step in range(40):
        if step == 25:
            corrupt_weight(opt, math.nan, model=model)
        opt.zero_grad()
        x = torch.randn(8, 64, device="cuda") * (math.nan if step == 12 else 1.0)
        model(x).pow(2).mean().backward()
        opt.step()
    summary = opt.summary()
    assert summary["compiled"] is True
    assert (summary["skips"], summary["rollbacks"]) == (1, 1)
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("device", DEVICES)
def test_the_ways_agree(device):
    """Within the rounding of a compiler; the two eager ones within that of a kernel."""
    results = []
    for way in WAYS:
        run = Run(device, way)
        run.steps(20)
        results.append([p.detach().clone() for p in run.model.parameters()])
    for other in results[1:]:
        for expected, actual in zip(results[0], other, strict=True):
            # A bias in front of a BatchNorm has a gradient of rounding errors alone.
            if expected.dim() > 1:
                torch.testing.assert_close(actual, expected, rtol=2e-3, atol=2e-4)
