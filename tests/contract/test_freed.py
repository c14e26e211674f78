"""No cycle among our parts: what an optimizer holds is freed when it is deleted, not later."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn

from stableopt import Guard, SignalRule, StabilityGate, StableOptimizer, presets
from stableopt.sensors import KappaTilde, Sensors


class Nowhere:
    every = 1

    def write(self, event): ...

    def close(self): ...


OPTIONS = {
    "default": dict,
    "no guard": lambda: {"guard": False},
    "lagged": lambda: {"guard": Guard(sync="lagged")},
    "compiled": lambda: {"compile": {"backend": "eager"}},
    "compiled, lagged": lambda: {"compile": {"backend": "eager"}, "guard": Guard(sync="lagged")},
    "robust": presets.robust,
    "gradience": presets.gradience,
    "assr": presets.assr,
    "rules": lambda: {"guard": Guard(rules=[SignalRule("a > 1")])},
    "telemetry": lambda: {"telemetry": [Nowhere()]},
    "kappa": lambda: {"sensors": Sensors(use=(KappaTilde(),), risk="kappa_tilde")},
}


def train(opt, model, steps):
    for _ in range(steps):
        opt.zero_grad()
        loss = model(torch.randn(4, 16)).square().mean()
        loss.backward()
        opt.observe(loss=loss.detach(), a=0.0)
        opt.step()


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("tracks", [True, False])
@pytest.mark.filterwarnings("ignore:sync='lagged'")
def test_it_is_freed_at_once(name, tracks):
    model = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16))
    fused = name == "lagged"
    opt = StableOptimizer(
        torch.optim.AdamW(model.parameters(), fused=fused), model=model, **OPTIONS[name]()
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda n: 1.0) if tracks else None
    if tracks and name != "no guard":
        opt.track(scheduler=schedule)
    train(opt, model, 12)
    if name == "telemetry":
        opt._loop.recorder.telemetry.flush()
    held = [weakref.ref(opt._loop), weakref.ref(opt.optimizer)]
    held.append(weakref.ref(opt.state[model[0].weight]["exp_avg"]))
    if (restorer := opt._loop.restorer) is not None:
        held.append(weakref.ref(restorer.keeper._snapshots[0]))
    gc.collect()
    gc.disable()
    try:
        del opt, schedule, restorer
        assert [ref() for ref in held] == [None] * len(held)
        assert not model[1]._forward_pre_hooks
    finally:
        gc.enable()
    torch._dynamo.reset()


class Holder:
    """Whatever of the user holds an optimizer, as a schedule of one's own does."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def state_dict(self):
        return {}

    def load_state_dict(self, state): ...


@pytest.mark.parametrize("make", [StabilityGate, Holder, lambda opt: Holder(opt.optimizer)])
def test_what_is_tracked_and_holds_the_optimizer_is_not_held_by_it(make):
    model = nn.Linear(16, 16)
    opt = StableOptimizer(torch.optim.AdamW(model.parameters()), model=model)
    held = make(opt)
    opt.track(held=held)
    train(opt, model, 3)
    assert opt.summary()["tracked"] == ["held"]
    ref = weakref.ref(opt._loop)
    gc.disable()
    try:
        del opt, held
        assert ref() is None
    finally:
        gc.enable()


def test_what_the_user_ties_into_a_knot_is_left_to_the_collector():
    """A model that holds its optimizer, tracked: nothing of ours keeps it alive for good."""
    model = nn.Linear(4, 4)
    model.opt = StableOptimizer(torch.optim.AdamW(model.parameters()), model=model)
    model.opt.track(ema=torch.optim.swa_utils.AveragedModel(nn.Linear(4, 4)))
    model.opt.track(model=nn.ModuleList([model]))
    ref = weakref.ref(model.opt)
    del model
    gc.collect()
    assert ref() is None


def test_a_run_in_a_knot_is_closed_by_the_collector(tmp_path):
    model = nn.Linear(4, 4)
    opt = StableOptimizer(torch.optim.SGD(model.parameters()), telemetry=tmp_path / "run")
    model.opt = opt
    opt.track(model=nn.ModuleList([model]))
    model(torch.ones(1, 4)).sum().backward()
    opt.step()
    del model, opt
    gc.collect()
    (summary,) = (tmp_path / "run").rglob("summary.json")
    assert '"status": "closed"' in summary.read_text()


def test_a_scheduler_that_is_gone_does_not_disturb_the_others():
    model = nn.Linear(4, 4)
    opt = StableOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), guard=Guard(every=2))
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(opt, 0.9) for _ in range(2)]
    opt.track(scheduler=schedulers)
    for _ in range(6):
        model(torch.ones(1, 4)).sum().backward()
        opt.step()
        schedulers[-1].step()
    schedulers.pop(0)
    model.weight.data[0, 0] = float("nan")
    model(torch.ones(1, 4)).sum().backward()
    opt.step()
    assert opt.verdict.rollback.left_behind == ()
    assert schedulers[0].last_epoch == opt.summary()["steps"] - 1


def test_at_exit_nothing_is_said_of_one_that_outlives_the_modules(tmp_path):
    code = f"""if True:
        import torch
        from stableopt import StableOptimizer
        model = torch.nn.Linear(4, 4)
        torch.kept = StableOptimizer(
            torch.optim.SGD(model.parameters()), model=model, telemetry={str(tmp_path / "run")!r}
        )
        model(torch.ones(1, 4)).sum().backward()
        torch.kept.step()
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    (summary,) = (tmp_path / "run").rglob("summary.json")
    assert '"status": "closed"' in summary.read_text()
