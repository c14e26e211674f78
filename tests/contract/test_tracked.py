"""What the optimizer does not own goes back with it; what is left out is what goes wrong."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from stableopt import Action, ConfigError, DivergenceError, Guard, StableOptimizer
from stableopt.testing import corrupt_weight
from tests.contract.bits import assert_same
from tests.contract.scenario import copied, rng_state, seed_everything

FAULT_AT, CALLS = 10, 18
TRACKED = ("scheduler", "scaler", "ema", "generators")


class Net(torch.nn.Module):
    """Dropout, BatchNorm, and a buffer that no checkpoint holds."""

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Dropout(0.2)
        )
        self.head = torch.nn.Linear(8, 1)
        self.register_buffer("running", torch.ones(()), persistent=False)

    def forward(self, x):
        out = self.head(self.body(x))
        if self.training:
            with torch.no_grad():
                self.running.lerp_(out.abs().mean(), 0.1)
        return out / self.running


class World:
    """Everything that people keep around an optimizer."""

    def __init__(self, schedule, *, guard=True, model=True):
        seed_everything(11)
        self.model = Net()
        inner = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.inner = self.opt = inner
        if guard:
            options = Guard(every=3)
            self.opt = StableOptimizer(inner, model=self.model if model else None, guard=options)
        self.scheduler = {
            "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1e-2, total_steps=40),
            "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda n: 0.9**n),
        }[schedule](self.opt)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=3)
        self.ema = AveragedModel(
            self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True
        )
        self.noise = torch.Generator().manual_seed(3)
        self.numbers = np.random.default_rng(4)
        self.dice = random.Random(5)

    def tracked(self, without=None):
        items = {
            "scheduler": self.scheduler,
            "scaler": self.scaler,
            "ema": self.ema,
            "generators": [self.noise, self.numbers, self.dice],
        }
        return {name: item for name, item in items.items() if name != without}

    def step(self, batch):
        data = torch.Generator().manual_seed(100 + batch)
        self.opt.zero_grad()
        for _ in range(2):
            x = torch.randn(6, 4, generator=data) + 0.1 * torch.randn(6, 4, generator=self.noise)
            jitter = self.numbers.random() + self.dice.random() + random.random()
            loss = (self.model(x) - x.sum(1, keepdim=True)).pow(2).mean() * (1 + 0.01 * jitter)
            self.scaler.scale(loss / 2 + 0.01 * float(np.random.rand())).backward()
        self.scaler.step(self.opt)
        self.scaler.update()
        self.scheduler.step()
        self.ema.update_parameters(self.model)

    def ended(self):
        return {
            "model": copied(dict(self.model.named_parameters())),
            "buffers": copied(dict(self.model.named_buffers())),
            "state": copied(self.inner.state_dict()),
            "scheduler": copied(self.scheduler.state_dict()),
            "scaler": copied(self.scaler.state_dict()),
            "ema": copied(self.ema.state_dict()),
            "generators": [
                self.noise.get_state(),
                self.numbers.bit_generator.state["state"]["state"],
                self.dice.getstate(),
            ],
            "rng": rng_state(),
        }


def faulty(world):
    """Train through a fault of the weights; return where it went back to, and when."""
    for call in range(CALLS):
        if call == FAULT_AT:
            corrupt_weight(world.opt, math.nan, seed=1)
        steps = world.opt.summary()["calls"]
        world.step(call)
        rollback = world.opt.verdict.rollback if world.opt.summary()["calls"] > steps else None
        if rollback is not None:
            made = rollback, call
    assert [event.action for event in world.opt.ledger] == [Action.ROLL_BACK]
    return made


def clean(schedule, rollback, call):
    world = World(schedule, guard=False)
    for batch in [*range(rollback.to_step), *range(call + 1, CALLS)]:
        world.step(batch)
    return world.ended()


@pytest.mark.parametrize("schedule", ["OneCycleLR", "LambdaLR"])
def test_everything_goes_back_together(schedule):
    world = World(schedule)
    world.opt.track(**world.tracked())
    rollback, call = faulty(world)
    assert 0 < rollback.to_step < rollback.from_step
    # A scaler that finds an overflow does not call the optimizer: it takes one call more.
    assert call <= FAULT_AT + 1
    assert_same(world.ended(), clean(schedule, rollback, call))
    assert world.opt.summary()["tracked"] == list(TRACKED)


@pytest.mark.parametrize("left_out", [*TRACKED, "model"])
def test_each_piece_matters(left_out):
    world = World("OneCycleLR", model=left_out != "model")
    world.opt.track(**world.tracked(without=left_out))
    if left_out == "model":
        # The buffers stay NaN, the average takes them over, and that is seen.
        with pytest.raises(DivergenceError, match=r"the tracked tensors ema\.module"):
            faulty(world)
        return
    rollback, call = faulty(world)
    with pytest.raises(AssertionError):
        assert_same(world.ended(), clean("OneCycleLR", rollback, call))


def test_what_is_not_tracked_is_told_once(caplog):
    world = World("LambdaLR")
    for call in range(8):
        world.step(call)
    told = [record.message for record in caplog.records]
    assert len(told) == 1
    assert "scheduler and a scaler that is not tracked" in told[0]
    assert "opt.track(scheduler=scheduler, scaler=scaler)" in told[0]


def test_what_is_declined_is_not_asked_for(caplog):
    world = World("LambdaLR")
    world.opt.track(scheduler=None)
    for call in range(8):
        world.step(call)
    (told,) = [record.message for record in caplog.records]
    assert "there seems to be a scaler that is not tracked" in told


def test_the_second_rollback_passes_the_batches_by():
    """Data and noise are replayed once; what fails twice is not tried a third time."""
    w = torch.nn.Parameter(torch.zeros(2))
    opt = StableOptimizer(torch.optim.SGD([w], lr=0.1), guard=Guard(every=1, confirm=1))
    loader = Loader()
    opt.track(dataloader=loader)
    seen = []
    for _ in range(12):
        batch = loader.next()
        seen.append(batch)
        if batch == 5:  # a batch that kills whoever takes it
            corrupt_weight(opt, math.nan)
        w.grad = torch.ones(2)
        opt.step()
    assert [event.rollback.attempt for event in opt.ledger] == [1, 2]
    assert seen.count(5) == 2, "replayed once, then passed by"
    assert seen[-1] > 6


class Loader:
    """A stateful loader."""

    def __init__(self):
        self.position = -1

    def next(self):
        self.position += 1
        return self.position

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class TestWhatCanBeTracked:
    @pytest.fixture
    def opt(self):
        return StableOptimizer(torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1))

    @pytest.mark.parametrize("item", [3, "x", object(), [Loader(), 3], {"a": 1}])
    def test_no_state(self, opt, item):
        with pytest.raises(ConfigError, match=r"thing=.* has no state to track"):
            opt.track(fine=Loader(), thing=item)
        assert opt.summary()["tracked"] == []

    def test_an_optimizer(self, opt):
        with pytest.raises(ConfigError, match="is an optimizer"):
            opt.track(optimizer=opt)

    def test_none_ends_it(self, opt):
        opt.track(loader=Loader(), other=Loader())
        opt.track(loader=None, never=None)
        assert opt.summary()["tracked"] == ["other"]

    def test_without_a_guard(self):
        inner = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
        with pytest.raises(ConfigError, match="guard=False"):
            StableOptimizer(inner, guard=False).track(loader=Loader())
