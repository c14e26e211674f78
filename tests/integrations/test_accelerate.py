"""Accelerate drives the wrapper exactly as it drives the optimizer in it: no code of ours."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.data import DataLoader

from stableopt import ConfigError, Guard, StableOptimizer
from stableopt.testing import corrupt_weight
from tests.contract.bits import assert_same
from tests.contract.scenario import copied, seed_everything
from tests.integrations.worlds import Net, Regression, finite

# What accelerate warns of concerns itself; what we warn of has tests of its own.
pytestmark = pytest.mark.filterwarnings("ignore")
works_with = pytest.mark.compatibility

UNSEEN = 1e9
"""A z-score that nothing reaches: the samples are few, and some are unlike the others."""


@pytest.fixture(autouse=True)
def fresh_state():
    """Accelerate keeps the precision of the first ``Accelerator`` for the whole process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class World:
    """A training loop as the documentation of accelerate has it."""

    def __init__(self, wraps, *, accumulate=2, precision="no", scale=None, events=None, bad=None):
        import accelerate

        seed_everything(0)
        self.accelerator = accelerate.Accelerator(
            cpu=True, gradient_accumulation_steps=accumulate, mixed_precision=precision
        )
        if scale is not None:  # fp16 wants a GPU; the scaler, and what accelerate does, does not
            self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        self.model = Net()
        self.inner = self.opt = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        if wraps:
            guard = Guard(every=2, confirm=1, loss_spike=UNSEEN, gradient_spike=UNSEEN)
            self.opt = StableOptimizer(self.inner, model=self.model, guard=guard, telemetry=events)
        self.wraps = wraps
        self.losses = []
        schedule = torch.optim.lr_scheduler.ExponentialLR(self.opt, 0.9)
        self.net, self.prepared, self.loader, self.schedule = self.accelerator.prepare(
            self.model, self.opt, DataLoader(Regression(bad), batch_size=2), schedule
        )
        if wraps and scale is not None:
            self.opt.track(scaler=self.accelerator.scaler)

    def epoch(self, clip=0.5, fault=None):
        for number, batch in enumerate(self.loader):
            if number == fault:
                corrupt_weight(self.opt, math.nan, model=self.model, name="first.weight")
            with self.accelerator.accumulate(self.net):
                loss = self.net(**batch)["loss"]
                self.losses.append(loss.item())
                self.accelerator.backward(loss)
                if self.wraps:
                    self.opt.observe(loss=loss)
                if self.accelerator.sync_gradients and clip:
                    self.accelerator.clip_grad_norm_(self.net.parameters(), clip)
                self.prepared.step()
                self.schedule.step()
                self.prepared.zero_grad()
        return self

    def left(self):
        return copied(self.model.state_dict()), copied(self.inner.state_dict())


FEATURES = {
    "prepare": {"accumulate": 1},
    "accumulation": {"accumulate": 2},
    "uneven accumulation": {"accumulate": 3},
    "bf16": {"precision": "bf16"},
    "fp16": {"scale": 2.0**10},
}


@pytest.mark.parametrize(
    "feature", [pytest.param(f, marks=works_with("Accelerate", f)) for f in FEATURES]
)
def test_it_trains_bit_for_bit_like_the_bare_optimizer(feature):
    clip = None if feature == "fp16" else 0.5  # accelerate unscales before it clips on a GPU only
    bare = World(False, **FEATURES[feature]).epoch(clip)
    wrapped = World(True, **FEATURES[feature]).epoch(clip)
    assert_same(wrapped.left(), bare.left())
    assert wrapped.inner.param_groups[0]["lr"] < 1e-2
    assert wrapped.opt.ledger == ()
    assert wrapped.opt.summary()["steps"] > 0


@works_with("Accelerate", "true loss")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_micro_batch_is_observed(events, accumulate):
    world = World(True, accumulate=accumulate, events=events).epoch()
    world.opt.close()
    steps = [world.losses[i : i + accumulate] for i in range(0, 8, accumulate)]
    means = [sum(losses) / accumulate for losses in steps]
    assert [event.loss for event in events.seen] == pytest.approx(means)


@works_with("Accelerate", "skip")
@pytest.mark.parametrize("scale", [None, 2.0**10])
def test_a_bad_sample_is_skipped(scale):
    world = World(True, bad=5, scale=scale).epoch(clip=None)
    # With a scaler the overflow is the scaler's to skip: it never calls the optimizer.
    skips = 1 if scale is None else 0
    assert world.opt.summary()["skips"] == skips
    assert world.opt.summary()["steps"] == 3
    assert finite(world.model)


@works_with("Accelerate", "rollback")
@pytest.mark.parametrize("scale", [None, 2.0**10])
def test_a_nan_weight_is_undone(scale):
    world = World(True, accumulate=1, scale=scale).epoch(clip=None, fault=5)
    summary = world.opt.summary()
    assert (summary["rollbacks"], summary["integrity"]) == (1, "OK")
    assert finite(world.model)
    if scale is not None:
        assert world.accelerator.scaler.get_scale() == scale


@works_with("Accelerate", "resume")
def test_it_resumes_bit_for_bit(tmp_path):
    whole = World(True).epoch()
    whole.accelerator.save_state(tmp_path)
    whole.epoch()
    resumed = World(True)
    resumed.accelerator.load_state(tmp_path)
    assert resumed.opt.summary()["steps"] == 4
    resumed.epoch()
    assert_same(resumed.left(), whole.left())
    assert resumed.opt.summary()["calls"] == 8


def test_bare_and_wrapped_states_load_into_each_other(tmp_path):
    results = []
    for name, first, then in (("a", False, True), ("b", True, False)):
        World(first).epoch().accelerator.save_state(tmp_path / name)
        world = World(then)
        world.accelerator.load_state(tmp_path / name)
        results.append(world.epoch().left())
    assert_same(*results)


def test_what_is_prepared_already_is_not_wrapped():
    from accelerate import Accelerator

    model = Net()
    prepared = Accelerator(cpu=True).prepare(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ConfigError, match=r"AcceleratedOptimizer object .*: wrap the one"):
        StableOptimizer(prepared, model=model)
    StableOptimizer(prepared.optimizer, model=model)
