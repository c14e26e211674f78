"""Parameters that come, leave, move and are replaced in the middle of a run."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingWarmRestarts,
    LambdaLR,
    MultiplicativeLR,
    SequentialLR,
    StepLR,
)

from stableopt import Action, DivergenceError, Guard, StableOptimizer
from stableopt.testing import corrupt_moment, corrupt_weight
from tests.contract.bits import assert_same
from tests.contract.scenario import copied

SCAN = 22


class Run:
    """A body, a head, and layers that come later; all of them are trained alike."""

    def __init__(self, sync="exact", **guard):
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.trained = [0, 1]
        groups = [{"params": list(self.layers[i].parameters())} for i in self.trained]
        guard = {"every": 5, "sync": sync, **guard}
        self.opt = StableOptimizer(
            torch.optim.AdamW(groups, lr=1e-2, fused=sync == "lagged"),
            model=self.layers,
            sensors=(),
            guard=Guard(**guard),
        )

    def steps(self, count=1, bad=None):
        for _ in range(count):
            self.opt.zero_grad()
            x = torch.randn(8, 4)
            for i in self.trained:
                x = self.layers[i](x).tanh()
            x.square().mean().backward()
            if bad is not None:
                self.layers[bad].weight.grad.fill_(math.nan)
            self.opt.step()
        return self.opt.verdict

    def add(self, layer):
        self.opt.add_param_group({"params": list(self.layers[layer].parameters()), "lr": 1e-3})
        self.trained.append(layer)

    def append(self, layer):
        """Add to a group by hand, as densification and adapters do."""
        self.opt.param_groups[0]["params"] += list(self.layers[layer].parameters())
        self.trained.append(layer)

    def drop(self):
        self.opt.param_groups.pop(0)
        self.trained.pop(0)

    def replace(self):
        """Put a wider layer in the place of one, with its moments, as densification does."""
        old = self.layers[0].weight
        state = self.opt.state.pop(old, {})
        new = nn.Parameter(torch.cat([old.detach(), old.detach()[:1]])[:4].clone())
        self.layers[0].weight = new
        self.opt.param_groups[0]["params"][0] = new
        self.opt.state[new] = {
            k: v.clone() if torch.is_tensor(v) and v.dim() else v for k, v in state.items()
        }

    def resize(self):
        """Give a parameter other values of another shape, as a vocabulary that grows does."""
        old = self.layers[0].bias
        old.data = torch.cat([old.data, torch.zeros(0)])
        self.opt.state.pop(old, None)

    def finite(self):
        held = [p for g in self.opt.param_groups for p in g["params"]]
        moments = [v for s in self.opt.state.values() for v in s.values()]
        return all(t.isfinite().all() for t in (*held, *moments))


CHANGES = {
    "add_param_group": lambda run: run.add(2),
    "appended": lambda run: run.append(2),
    "dropped": lambda run: run.drop(),
    "replaced": lambda run: run.replace(),
    "resized": lambda run: run.resize(),
}


@pytest.mark.parametrize("sync", ["exact", "lagged"])
@pytest.mark.parametrize("change", CHANGES)
class TestGoingBack:
    def test_a_weight_is_hit_at_once(self, change, sync):
        run = Run(sync)
        run.steps(40)
        CHANGES[change](run)
        corrupt_weight(run.opt, math.nan, name="1.weight", model=run.layers)
        run.steps(3)
        assert run.opt.summary()["rollbacks"] == 1
        assert run.finite()

    def test_every_batch_is_bad(self, change, sync):
        run = Run(sync)
        run.steps(40)
        CHANGES[change](run)
        with pytest.raises(DivergenceError):
            run.steps(60, bad=run.trained[-1])
        assert run.finite()

    def test_by_hand(self, change, sync):
        run = Run(sync)
        run.steps(40)
        run.opt.rollback(reason="evaluation went down")
        CHANGES[change](run)
        run.steps(3)
        assert run.opt.summary()["rollbacks"] == 1
        assert run.finite()

    @pytest.mark.parametrize("where", ["weight", "moment"])
    def test_what_was_there_before_is_not_accepted(self, change, sync, where):
        """A NaN that no gradient shows, at the very moment at which others come."""
        run = Run(sync)
        run.steps(40)
        target = run.layers[1].weight
        CHANGES[change](run)
        if where == "weight":
            run.layers[1].bias.requires_grad_(False)
            run.layers[1].bias.data[0] = math.nan
        else:
            run.opt.state[target]["exp_avg_sq"][0, 0] = math.inf
        run.steps(SCAN)
        assert run.opt.summary()["rollbacks"] >= 1
        assert run.finite()
        assert run.opt.summary()["integrity"] == "OK"


class TestWhatComesLater:
    def test_it_goes_back_to_what_it_was_when_it_came(self):
        run = Run()
        run.steps(12)
        run.layers[2].requires_grad_(True)
        came = copied(dict(run.layers[2].named_parameters()))
        run.add(2)
        run.steps(2)
        corrupt_weight(run.opt, math.nan, name="0.weight", model=run.layers)
        assert run.steps().rollback.to_step == 10
        assert_same(copied(dict(run.layers[2].named_parameters())), came)
        assert run.layers[2].weight not in run.opt.state
        assert run.opt.param_groups[2]["lr"] == 1e-3
        run.steps(20)
        assert run.opt.verdict.action is Action.TAKE

    def test_what_moves_keeps_its_own(self):
        """The first group leaves: no weight is given what belongs to another."""
        run = Run()
        run.steps(12)
        wanted = None
        for _ in range(40):
            if run.opt.summary()["steps"] == 15:
                wanted = copied(dict(run.layers[1].named_parameters()))
                break
            run.steps()
        run.drop()
        run.steps(2)
        corrupt_weight(run.opt, math.nan, name="1.weight", model=run.layers)
        assert run.steps().rollback.to_step == 15
        assert_same(copied(dict(run.layers[1].named_parameters())), wanted)

    def test_a_mask_is_left_alone_and_named(self, caplog):
        run = Run()
        run.steps(12)
        run.layers[2].bias.data[0] = -math.inf
        run.layers[2].bias.requires_grad_(False)
        run.opt.add_param_group({"params": [run.layers[2].bias]})
        run.steps(2 * SCAN)
        assert run.opt.summary()["rollbacks"] == 0
        assert "with parameters that were added the weights of 2.bias are not finite" in caplog.text

    def test_a_fault_that_comes_with_its_moments_is_none_of_the_snapshots(self):
        run = Run()
        run.steps(12)
        run.replace()
        corrupt_moment(run.opt, "exp_avg", math.nan, model=run.layers, name="0.weight")
        run.steps(3)
        assert run.opt.summary()["rollbacks"] == 1
        assert run.finite()
        run.steps(SCAN)
        assert run.opt.summary()["rollbacks"] == 1

    def test_a_norm_is_held_against_its_own_past(self):
        """Places shift: the norms of other weights stood there."""
        run = Run(every=100)
        run.steps(70)
        with torch.no_grad():
            run.layers[1].weight.mul_(30.0)
        run.opt._loop.decider.detectors._inspector.history.forget()
        run.steps(70)
        assert run.opt.ledger == ()
        run.drop()
        run.steps(2 * SCAN)
        assert run.opt.ledger == ()

    def test_one_that_changes_all_the_time_is_looked_at_all_the_same(self):
        run = Run()
        run.steps(10)
        run.opt.state[run.layers[1].weight]["exp_avg_sq"][0, 0] = math.inf
        for _ in range(2 * SCAN):
            run.replace()
            run.steps()
            if run.opt.summary()["rollbacks"]:
                break
        assert run.opt.summary()["rollbacks"] == 1
        assert run.finite()

    def test_without_snapshots_a_fault_ends_the_run(self):
        run = Run(slots=0)
        run.steps(10)
        run.layers[1].bias.data[0] = math.nan
        run.add(2)
        with pytest.raises(DivergenceError, match="slots=0"):
            run.steps(SCAN, bad=None)


changes = st.lists(
    st.sampled_from([*CHANGES, "train", "train", "nan", "moment", "by hand"]),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(changes=changes, sync=st.sampled_from(["exact", "lagged"]))
def test_whatever_happens_nothing_is_half_restored(changes, sync):
    """It ends with finite weights or with DivergenceError, and never with anything else."""
    run = Run(sync, every=3, confirm=2, budget=20, max_rollbacks=8)
    run.steps(4)
    done = set()
    try:
        for change in changes:
            if change == "train":
                run.steps(4)
            elif change == "nan":
                corrupt_weight(run.opt, math.nan, seed=len(done))
            elif change == "moment":
                if run.opt.state:
                    corrupt_moment(run.opt, "exp_avg", math.nan, seed=len(done))
            elif change == "by hand":
                run.opt.rollback()
            elif change not in done and (change != "dropped" or len(run.trained) > 2):
                if change in ("add_param_group", "appended") and 2 in run.trained:
                    continue
                done.add(change)
                CHANGES[change](run)
            run.steps(1)
        run.steps(SCAN)
    except DivergenceError:
        pass
    assert run.finite()


def test_what_does_not_fit_is_refused_before_anything_is_written():
    run = Run()
    run.steps(12)
    keeper = run.opt._loop.restorer.keeper
    snapshot = keeper._snapshots[keeper.ring.sound()[0].index]
    run.layers[2].requires_grad_(True)
    run.opt.optimizer.add_param_group({"params": list(run.layers[2].parameters())})
    before = copied([dict(run.layers.named_parameters()), run.opt.optimizer.state_dict()])
    with pytest.raises(ValueError, match="other parameters"):
        snapshot._state.restore(run.opt.optimizer)
    now = copied([dict(run.layers.named_parameters()), run.opt.optimizer.state_dict()])
    assert_same(now, before)


@pytest.mark.parametrize(
    "make",
    [
        lambda opt: LambdaLR(opt, lambda step: 0.9**step),
        lambda opt: MultiplicativeLR(opt, lambda step: 0.9),
        lambda opt: StepLR(opt, 3),
        lambda opt: CosineAnnealingWarmRestarts(opt, 7),
        lambda opt: SequentialLR(opt, [StepLR(opt, 2), StepLR(opt, 3)], [9]),
    ],
)
def test_a_tracked_scheduler_keeps_what_it_has_for_a_late_group(make):
    run = Run(every=5)
    schedule = make(run.opt)
    run.opt.track(scheduler=schedule)
    run.steps(12)
    late = nn.Linear(2, 2)
    run.opt.add_param_group({"params": late.parameters(), "lr": 0.5, "initial_lr": 0.5})
    several = (schedule, *getattr(schedule, "_schedulers", ()))
    for each in several:
        for name in ("base_lrs", "lr_lambdas", "_last_lr"):
            if name in vars(each):
                vars(each)[name].append(vars(each)[name][0] if name == "lr_lambdas" else 0.5)
    run.opt.rollback()
    run.steps(1)
    assert run.opt.verdict.rollback is not None
    schedule.step()
    known = [len(each.base_lrs) for each in several if hasattr(each, "base_lrs")]
    assert set(known) == {len(run.opt.param_groups)}
    run.steps(3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("fused", [True, False])
def test_a_rollback_to_before_a_change_of_dtype(dtype, fused):
    model = nn.Linear(3, 2)
    inner = torch.optim.AdamW(model.parameters(), fused=fused)
    opt = StableOptimizer(inner, model=model, guard=Guard(every=5, confirm=1), sensors=())
    for step in range(12):
        if step == 6:
            model.to(dtype)
            for state in opt.state.values():
                state["exp_avg"] = state["exp_avg"].to(dtype)
                state["exp_avg_sq"] = state["exp_avg_sq"].to(dtype)
        if step == 8:
            opt.rollback()
        x = torch.ones(4, 3, dtype=model.weight.dtype)
        model(x).square().mean().backward()
        opt.step()
        opt.zero_grad()
    assert opt.summary()["rollbacks"] == 1
    assert model.weight.dtype is dtype
    assert {t.dtype for s in opt.state.values() for k, t in s.items() if k != "step"} == {dtype}


@pytest.mark.parametrize("change", ["load", "move"])
def test_modules_whose_tensors_are_swapped(change):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    opt = StableOptimizer(torch.optim.AdamW(model.parameters()), model=model, guard=Guard(every=3))
    for _ in range(4):
        model(torch.randn(4, 3)).square().mean().backward()
        opt.step()
        opt.zero_grad()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        if change == "load":
            model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()})
        else:
            model.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def test_weights_that_are_loaded_are_no_jump():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    trained = {k: v + 50.0 * torch.randn_like(v) for k, v in model.state_dict().items()}
    opt = StableOptimizer(torch.optim.AdamW(model.parameters(), lr=1e-4), model=model)
    for step in range(200):
        if step == 120:
            model.load_state_dict(trained)
        model(torch.randn(8, 4)).square().mean().backward()
        opt.step()
        opt.zero_grad()
    assert opt.summary()["rollbacks"] == 0
    with torch.no_grad():
        model[2].weight.mul_(1000.0)
    for _ in range(25):
        model(torch.randn(8, 4)).square().mean().backward()
        opt.step()
        opt.zero_grad()
    assert opt.summary()["rollbacks"] == 1, "what is not loaded is one"
    assert "if on purpose: Guard(weight_jump=None)" in opt.ledger[-1].reason


@pytest.mark.parametrize("restart", [True, False])
def test_moments_that_begin_anew_with_their_count_are_a_restart(restart):
    model = nn.Linear(4, 2)
    opt = StableOptimizer(torch.optim.AdamW(model.parameters()), model=model)
    for step in range(200):
        if step in (100, 150):
            for state in opt.state.values():
                state["exp_avg"].zero_()
                state["exp_avg_sq"].zero_()
                if restart:
                    state["step"].zero_()
        model(torch.randn(8, 4)).square().mean().backward()
        opt.step()
        opt.zero_grad()
    assert bool(opt.summary()["rollbacks"]) != restart


def test_integers_that_are_frozen_are_left_alone():
    """The base of a quantized model, in the group of its adapters."""
    base = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    mask = nn.Parameter(torch.ones(4, dtype=torch.bool), requires_grad=False)
    adapter = nn.Parameter(torch.zeros(4))
    guard = Guard(every=4)
    opt = StableOptimizer(torch.optim.AdamW([base, mask, adapter], foreach=False), guard=guard)
    for step in range(30):
        if step == 25:
            opt.rollback()
        (adapter * base.float().sum(1) - 1).square().sum().backward()
        opt.step()
        opt.zero_grad()
    assert opt.summary()["rollbacks"] == 1
    assert (base == 1).all()


def test_a_restore_that_fails_half_way_has_changed_nothing(monkeypatch):
    """Memory runs out while a moment that was deleted is allocated again."""
    run = Run()
    run.steps(12)
    keeper = run.opt._loop.restorer.keeper
    snapshot = keeper._snapshots[keeper.ring.sound()[0].index]
    for parameter in run.layers[1].parameters():
        run.opt.state[parameter].clear()
    for parameter in run.layers[0].parameters():
        run.opt.state[parameter]["note"] = 1  # what a snapshot does not have goes, but not yet
    before = copied([dict(run.layers.named_parameters()), run.opt.optimizer.state_dict()])

    def full(*args, **kwargs):
        raise MemoryError("no memory is left")

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "clone", full)
        with pytest.raises(MemoryError):
            snapshot._state.restore(run.opt.optimizer)
    now = copied([dict(run.layers.named_parameters()), run.opt.optimizer.state_dict()])
    assert_same(now, before)


def test_a_stop_ends_with_the_newest_weights_that_were_verified():
    """Deeper and deeper rollbacks set newer snapshots aside: they are still the best ones."""
    run = Run(slots=4, every=10, confirm=3)
    run.steps(55)
    newest = max(s["step"] for s in run.opt.summary()["snapshots"]["steps"] if s["verified"])
    with pytest.raises(DivergenceError) as stopped:
        run.steps(60, bad=0)
    visited = [event.rollback.to_step for event in run.opt.ledger if event.rollback]
    assert min(visited) < newest
    assert stopped.value.event.rollback.to_step == newest == run.opt.summary()["steps"]
