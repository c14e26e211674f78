"""Promise 6: checkpoints of bare and wrapped optimizers load into each other, bit-exactly."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from stableopt import Action, ConfigError, StableOptimizer
from tests.contract.bits import assert_same
from tests.contract.scenario import (
    Scenario,
    Tiny,
    Trace,
    _train_step,
    bare,
    build,
    copied,
    finish,
    seed_everything,
    wrapped,
)
from tests.contract.specs import VARIANTS, variant_id
from tests.contract.third_party import Quantized

WAYS = {"bare": bare, "wrapped": wrapped}

# A bare copy of these cannot step: their own attributes are lost in Optimizer.__getstate__.
COPYABLE = [(s, v) for s, v in VARIANTS if s.name not in ("LBFGS", "Lion")]

# torch.distributed.checkpoint can prime and flatten the bare ones of these alone.
DISTRIBUTABLE = [
    (s, v)
    for s, v in VARIANTS
    if s.name not in ("LBFGS", "SparseAdam", "LowBitMomentum", "ScheduleFree")
]


def start(spec, variant, wrap, seed=3):
    seed_everything(seed)
    model = Tiny(spec.model, "float32")
    inner, _ = build(Scenario(spec=spec, variant=variant), model)
    return model, inner, wrap(inner, model)


def train(spec, variant, model, opt, steps, seed):
    seed_everything(seed)
    scenario = Scenario(spec=spec, variant=variant)
    return [_train_step(scenario, model, opt, step) for step in range(steps)]


def ended(model, inner):
    trace = Trace()
    finish(trace, model, inner)
    return trace


def through_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    with torch.serialization.safe_globals([Quantized, Quantized.__tensor_unflatten__]):
        return torch.load(file, weights_only=True)


@pytest.mark.parametrize("pair", VARIANTS, ids=variant_id)
@pytest.mark.parametrize(
    ("saved", "loaded"), [("wrapped", "wrapped"), ("wrapped", "bare"), ("bare", "wrapped")]
)
def test_checkpoints_load_into_each_other(pair, saved, loaded):
    spec, variant = pair
    # The state of this one is a tensor subclass, which torch cannot load weights-only.
    roundtrip = copied if spec.name == "LowBitMomentum" else through_file

    def resumed(first, second):
        model, _, opt = start(spec, variant, WAYS[first])
        train(spec, variant, model, opt, 5, seed=4)
        checkpoint = roundtrip({"model": model.state_dict(), "opt": opt.state_dict()})
        model, inner, opt = start(spec, variant, WAYS[second], seed=99)
        model.load_state_dict(checkpoint["model"])
        opt.load_state_dict(checkpoint["opt"])
        losses = train(spec, variant, model, opt, 5, seed=5)
        return losses, ended(model, inner)

    assert_same(resumed(saved, loaded), resumed("bare", "bare"))


@pytest.mark.parametrize("pair", COPYABLE, ids=variant_id)
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_trains_on_alone(pair, how):
    spec, variant = pair

    def copies(wrap):
        model, _, opt = start(spec, variant, wrap)
        train(spec, variant, model, opt, 4, seed=4)
        model.kept = opt  # one object graph, so that the copied optimizer moves the copied model
        before = copied(model.state_dict())
        twin = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
        del model.kept
        opt_twin = twin.__dict__.pop("kept")
        train(spec, variant, twin, opt_twin, 4, seed=5)
        assert_same(copied(model.state_dict()), before)
        return ended(twin, getattr(opt_twin, "optimizer", opt_twin))

    assert_same(copies(wrapped), copies(bare))


def test_a_deepcopied_wrapper_with_a_scheduler_leaves_the_original_alone():
    model = torch.nn.Linear(2, 2)
    opt = StableOptimizer(torch.optim.SGD(model.parameters(), lr=1.0))
    torch.optim.lr_scheduler.StepLR(opt, 1)
    twin = copy.deepcopy(opt)
    before = copied(model.state_dict())
    for p in twin.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    twin.step()
    assert_same(copied(model.state_dict()), before)


def test_clocks_survive_a_checkpoint():
    model = torch.nn.Linear(2, 2)
    opt = StableOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    for bad in (False, True, False):
        opt.zero_grad()
        model(torch.full((1, 2), float("nan") if bad else 1.0)).sum().backward()
        opt.step()
    again = StableOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    again.load_state_dict(through_file(opt.state_dict()))
    assert (again.summary()["calls"], again.summary()["steps"]) == (3, 2)


@pytest.mark.parametrize(
    "broken",
    [3, "x", [1], {"clocks": {"calls": "many"}}, {"clocks": {"steps": -1}}, None],
)
def test_broken_clocks_are_refused_before_anything_moves(broken):
    w = torch.nn.Parameter(torch.ones(2))
    opt = StableOptimizer(torch.optim.SGD([w], lr=0.1))
    state = {**opt.state_dict(), "stableopt": broken}
    state["param_groups"][0]["lr"] = 7.0
    where = r"\['clocks'\]" if isinstance(broken, dict) else ""
    with pytest.raises(ConfigError, match=rf"state_dict\['stableopt'\]{where}="):
        opt.load_state_dict(state)
    assert opt.param_groups[0]["lr"] == 0.1


def test_counts_that_cannot_be_are_refused():
    opt = StableOptimizer(torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1))
    state = copied(opt.state_dict())
    state["stableopt"]["policy"]["recovery_from"] = -5.0
    with pytest.raises(ConfigError, match=r"state_dict\['stableopt'\]\['policy'\]="):
        opt.load_state_dict(state)


def test_of_an_older_version_weights_and_state_are_loaded(caplog):
    opt = StableOptimizer(torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1))
    counts = {"attempts": 2, "tokens": 0, "lr_scale": 0.25, "furthest": 100_000}
    old = {"calls": 100_000, "steps": 100_000, "calm": 0, "policy": counts, "baselines": {}}
    opt.load_state_dict({**opt.state_dict(), "stableopt": old})
    (record,) = caplog.records
    assert "written by another version" in record.message
    summary = opt.summary()
    assert (summary["steps"], summary["lr_scale"], summary["rollbacks_left"]) == (0, 1.0, 6)


@pytest.mark.parametrize("pair", DISTRIBUTABLE, ids=variant_id)
def test_distributed_checkpoint_primes_without_a_trace(pair):
    spec, variant = pair

    def states(wrap):
        model, _, opt = start(spec, variant, wrap)
        primed = copied(get_optimizer_state_dict(model, opt))
        if isinstance(opt, StableOptimizer):
            assert opt.verdict is None
            assert opt.summary()["calls"] == 0
        train(spec, variant, model, opt, 4, seed=4)
        state = copied(get_optimizer_state_dict(model, opt))
        other, inner, fresh = start(spec, variant, wrap, seed=8)
        set_optimizer_state_dict(other, fresh, state)
        losses = train(spec, variant, other, fresh, 4, seed=5)
        return primed, state, losses, ended(other, inner)

    assert_same(states(wrapped), states(bare))


@pytest.mark.parametrize("fused", [False, True])
def test_grad_scaler_sees_the_same_run_and_keeps_its_overflow_skips(fused):
    def trained(wrap):
        seed_everything(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1))
        inner = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
        opt = wrap(inner, model)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4)
        scales = []
        for step in range(16):
            opt.zero_grad()
            loss = model(torch.randn(5, 4)).pow(2).mean()
            if step == 6:
                loss = loss * float("inf")
            scaler.scale(loss).backward()
            if step % 3 == 0:
                scaler.unscale_(opt)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(opt)
            scaler.update()
            scales.append(scaler.get_scale())
        return opt, (scales, ended(model, inner))

    opt, actual = trained(wrapped)
    _, expected = trained(bare)
    assert_same(actual, expected)
    assert opt.ledger == ()
    assert opt.verdict.action is Action.TAKE


def test_swa_and_ema_utilities():
    def averaged(wrap):
        seed_everything(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 1)
        )
        inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        opt = wrap(inner, model)
        swa = AveragedModel(model)
        ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        scheduler = torch.optim.swa_utils.SWALR(opt, 0.05, anneal_epochs=5)
        data = [torch.randn(8, 4) for _ in range(12)]
        for x in data:
            opt.zero_grad()
            model(x).pow(2).mean().backward()
            opt.step()
            swa.update_parameters(model)
            ema.update_parameters(model)
            scheduler.step()
        update_bn(data, swa)
        return copied(swa.state_dict()), copied(ema.state_dict()), ended(model, inner)

    assert_same(averaged(wrapped), averaged(bare))
