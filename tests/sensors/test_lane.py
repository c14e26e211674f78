"""Beside training: results that come late are waited for, at the same step in every run."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from stableopt import StableOptimizer
from stableopt.runtime.lane import Lane, Transfer
from stableopt.sensors import Sampler, Sensors
from tests.sensors.runs import Net, assert_same, build, train, values

EVERY_STEP = Sensors(sampler=Sampler(ratio=1, every=1), budget=None)


class Event:
    """In place of a CUDA event; done once it is waited for, or fired."""

    def __init__(self):
        self.fired = False
        self.waited = 0

    def query(self):
        return self.fired

    def synchronize(self):
        self.waited += 1
        self.fired = True

    def elapsed_time(self, other):
        return 2.0


class LateLane(Lane):
    """Runs the work at once, and reports it as unfinished until it is waited for."""

    def __init__(self):
        super().__init__()
        self.events = []

    def run(self, device, work):
        event = Event()
        self.events.append(event)
        return Transfer(super().run(device, work).wait(), event, event)


def late(opt):
    lane = opt._loop.sensing._runner.lane = LateLane()
    return lane


def test_a_lane_that_fails_is_a_sensor_that_fails(monkeypatch, caplog):
    def out_of_memory(self, device, work):
        raise torch.OutOfMemoryError("no pinned memory")

    monkeypatch.setattr(Lane, "run", out_of_memory)
    model, opt = build(sensors=EVERY_STEP)
    train(model, opt, 3)
    assert opt.risk is None
    assert not any(r.defined for found in opt.readings.values() for r in found.values())
    assert len([r for r in caplog.records if "no pinned memory" in r.message]) == 2


def test_late_results_are_waited_for_counted_and_the_same():
    model, opt = build(sensors=EVERY_STEP)
    expected = train(model, opt, 12)
    model, opt = build(sensors=EVERY_STEP)
    lane = late(opt)
    for left, right in zip(train(model, opt, 12), expected, strict=True):
        assert_same(left, right)
    summary = opt.summary()["sensors"]
    assert summary["waits"] == 12
    assert len(lane.events) == 13
    assert summary["share"] > 0


def test_results_in_time_are_not_counted():
    model, opt = build(sensors=EVERY_STEP)
    lane = late(opt)
    for step in range(5):
        train(model, opt, 1, first=step)
        lane.events[-1].fired = True
    assert opt.summary()["sensors"]["waits"] == 1  # the first is started when it is needed


@pytest.mark.parametrize(
    "touch",
    [
        lambda opt: opt.state_dict(),
        lambda opt: opt.load_state_dict(opt.optimizer.state_dict()),
        lambda opt: opt.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2, 2))]}),
        lambda opt: opt.step(),
    ],
    ids=["state_dict", "load_state_dict", "add_param_group", "step"],
)
def test_whoever_touches_the_weights_waits_first(touch):
    model, opt = build(sensors=EVERY_STEP)
    lane = late(opt)
    train(model, opt, 2)
    assert not lane.events[-1].fired
    pending = lane.events[-1]
    touch(opt)
    assert pending.fired


def test_schedule_free_waits_before_it_moves_the_weights():
    schedulefree = pytest.importorskip("schedulefree")
    model = Net()
    inner = schedulefree.AdamWScheduleFree(model.parameters(), lr=1e-3)
    opt = StableOptimizer(inner, model=model, sensors=EVERY_STEP)
    lane = late(opt)
    opt.train()
    train(model, opt, 2)
    pending = lane.events[-1]
    assert not pending.fired
    opt.eval()
    assert pending.fired


def test_copies_start_what_is_under_way_anew():
    model, opt = build(sensors=EVERY_STEP)
    train(model, opt, 3)
    for clone in (copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))):
        twin, other = clone((model, opt))
        assert other._loop.sensing._launched is None
        train(twin, other, 1, first=3)
        assert {step for _, step in values(other).values()} == {3}


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@cuda
class TestCuda:
    def build(self):
        model = Net().cuda()
        inner = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        return model, StableOptimizer(inner, model=model, sensors=EVERY_STEP)

    def test_the_readings_are_those_of_the_cpu(self):
        model, opt = self.build()
        twin = Net()
        other = StableOptimizer(torch.optim.SGD(twin.parameters(), lr=0.0), sensors=EVERY_STEP)
        for _ in range(3):
            for p, q in zip(model.parameters(), twin.parameters(), strict=True):
                p.grad = torch.randn_like(p)
                q.data.copy_(p.data)
                q.grad = torch.zeros_like(q)
            opt.step()
            other.step()
        for left, right in zip(values(opt).values(), values(other).values(), strict=True):
            assert left[0] == pytest.approx(right[0], rel=1e-3, nan_ok=True)

    def test_starting_them_does_not_wait_for_the_device(self):
        model, opt = self.build()
        for _ in range(3):
            for p in model.parameters():
                p.grad = torch.randn_like(p)
            opt.step()
        sensing = opt._loop.sensing
        sensing.join(3)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            sensing.launch(4)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert sensing.join(4).readings

    def test_what_is_measured_is_what_was_there(self):
        model, opt = self.build()
        big = torch.randn(4096, 4096, device="cuda")
        for _ in range(5):
            for p in model.parameters():
                p.grad = torch.randn_like(p)
            opt.step()
            weight = model.first.weight.detach().double().cpu()
            for _ in range(20):
                big @ big
            opt.step()
            reading = opt.readings["first.weight"]["spectral_norm"].value
            exact = torch.linalg.matrix_norm(weight, 2).item()
            assert reading == pytest.approx(exact, rel=2e-2)
