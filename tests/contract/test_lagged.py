"""sync="lagged": a step is taken at once, left out by the device if need be, and judged later."""

from __future__ import annotations

import copy
import math
import pickle
from functools import partial

import pytest
import torch
from torch import nn, optim
from torch.utils._python_dispatch import TorchDispatchMode

from stableopt import (
    Action,
    ConfigError,
    DivergenceError,
    Guard,
    MaxNorm,
    SignalRule,
    StableOptimizer,
)
from stableopt.runtime import sent
from stableopt.testing import corrupt_weight
from tests.contract.bits import assert_same
from tests.contract.scenario import copied
from tests.contract.specs import SPECS
from tests.contract.test_compiled_update import OPTIMIZERS, TWO_GRAPHS, fails
from tests.sensors.test_lane import LateLane

WAYS = {
    "AdamW, fused": (lambda p: optim.AdamW(p, lr=1e-2, fused=True), False),
    "Adam, fused": (lambda p: optim.Adam(p, lr=1e-2, fused=True), False),
    "SGD, fused": (lambda p: optim.SGD(p, lr=1e-2, fused=True), False),
    "SGD with momentum, fused": (
        lambda p: optim.SGD(p, lr=1e-2, momentum=0.9, fused=True),
        False,
    ),
    "Adagrad, fused": (lambda p: optim.Adagrad(p, lr=1e-2, fused=True), False),
    "AdamW, compiled": (lambda p: optim.AdamW(p, lr=1e-2), {"backend": "eager"}),
    "SGD with momentum, compiled": (
        lambda p: optim.SGD(p, lr=1e-2, momentum=0.9),
        {"backend": "eager"},
    ),
    "NAdam, compiled": (lambda p: optim.NAdam(p, lr=1e-2), {"backend": "eager"}),
}
"""Those whose update the device can leave out."""

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Run:
    def __init__(self, make=WAYS["AdamW, fused"][0], compiles=False, *, sync="lagged", **options):
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Tanh(), nn.Linear(32, 16)
        )
        self.inner = make(self.model.parameters())
        guard = {"every": 10, "confirm": 5, "sync": sync, **options.pop("guard", {})}
        self.opt = StableOptimizer(
            self.inner, model=self.model, guard=Guard(**guard), compile=compiles, **options
        )

    def loss(self, step, factor=1.0):
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(step)) * factor
        return self.model(x).sub(x.sin()).pow(2).mean()

    def steps(self, count, first=0, bad=(), observe=True, schedule=None):
        for step in range(first, first + count):
            loss = self.loss(step, math.nan if step in bad else 1.0)
            self.opt.zero_grad()  # between forward and backward, where many loops have it
            loss.backward()
            if observe:
                self.opt.observe(loss=loss)
            self.opt.step()
            if schedule is not None:
                schedule.step()
        return self

    def everything(self):
        return copied([dict(self.model.state_dict()), self.inner.state_dict()["state"]])


@pytest.mark.parametrize("observe", [True, False], ids=["observed", "unobserved"])
@pytest.mark.parametrize("way", WAYS)
def test_a_bad_batch_never_happened(way, observe):
    """The first one, which creates the state; the last one; two in a row."""
    run = Run(*WAYS[way]).steps(20, bad=(0, 7, 8, 19), observe=observe)
    clean = Run(*WAYS[way], sync="exact").steps(20, bad=(0, 7, 8, 19), observe=observe)
    assert [event.call for event in run.opt.ledger] == [1, 8, 9, 20]
    assert {event.action for event in run.opt.ledger} == {Action.SKIP}
    assert_same(run.everything(), clean.everything())
    assert run.opt.summary()["steps"] == clean.opt.summary()["steps"] == 16


@pytest.mark.parametrize("way", [*WAYS, "AdamW, foreach"])
def test_a_lost_weight_goes_back_one_call_later(way):
    make, compiles = WAYS.get(way, (lambda p: optim.AdamW(p, lr=1e-2, foreach=True), False))
    run = Run(make, compiles).steps(33)
    where = [parameter.data_ptr() for parameter in run.model.parameters()]
    corrupt_weight(run.opt, math.nan, model=run.model)
    run.steps(20, first=33)
    back, gone = run.opt.ledger
    assert back.call == 34
    assert back.action is Action.ROLL_BACK
    assert back.rollback.to_step == 30
    assert (gone.call, gone.action) == (35, Action.SKIP)
    assert "weights that a rollback has replaced" in gone.reason
    assert all(torch.isfinite(value).all() for value in run.model.state_dict().values())
    assert [parameter.data_ptr() for parameter in run.model.parameters()] == where
    assert run.opt.summary()["calls"] == 53


def test_it_goes_on_as_if_the_batch_after_the_snapshot_had_been_left_out():
    run = Run().steps(33)
    corrupt_weight(run.opt, math.nan, model=run.model)
    run.steps(10, first=33)
    clean = Run().steps(30).steps(8, first=35)
    assert_same(run.everything(), clean.everything())


def test_a_bad_loss_leaves_a_compiled_step_out():
    """If that is asked for, though the gradients are finite."""
    guard = {"responses": {"nonfinite_loss": "skip"}}
    run = Run(*WAYS["AdamW, compiled"], guard=guard).steps(5)
    before = run.everything()
    loss = run.loss(5)
    run.opt.zero_grad()
    loss.backward()
    run.opt.observe(loss=math.inf)
    run.opt.step()
    assert run.opt.verdict.action is Action.SKIP
    assert_same(run.everything(), before)


def test_what_kernels_cannot_leave_out_goes_back():
    run = Run(lambda p: optim.AdamW(p, lr=1e-2, foreach=True)).steps(40, bad=(25,))
    assert [event.action for event in run.opt.ledger] == [Action.ROLL_BACK, Action.SKIP]
    assert all(torch.isfinite(value).all() for value in run.model.state_dict().values())


def test_whoever_asks_waits():
    run = Run().steps(20)
    assert run.opt.summary()["steps"] == 20
    run.steps(5, first=20)
    assert run.opt.state_dict()["param_groups"]
    assert run.opt._loop.recorder.ledger.steps == 25
    run.steps(1, first=25, bad=(25,))
    assert run.opt.verdict.action is Action.SKIP
    run.steps(1, first=26, bad=(26,))
    assert len(run.opt.ledger) == 2
    run.steps(1, first=27)
    assert run.opt._loop.recorder.ledger.calls == 27  # nobody has asked
    assert run.opt.summary()["calls"] == 28


@pytest.mark.parametrize("how", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_know_of_every_step(how):
    run = Run().steps(12)
    twin = Run.__new__(Run)
    twin.model, twin.opt = how((run.model, run.opt))
    twin.inner = twin.opt.optimizer
    assert twin.opt.summary()["steps"] == 12
    run.steps(2, first=12)
    assert twin.opt.summary()["steps"] == 12
    twin.steps(3, first=12, bad=(13,))
    (event,) = twin.opt.ledger
    assert event.action is Action.SKIP


def test_a_checkpoint_is_up_to_date():
    run, other = Run().steps(9, bad=(8,)), Run()
    other.opt.load_state_dict(copied(run.opt.state_dict()))
    other.model.load_state_dict(copied(dict(run.model.state_dict())))
    assert (other.opt.summary()["steps"], other.opt.summary()["calls"]) == (8, 9)
    assert_same(other.steps(4, first=9).everything(), run.steps(4, first=9).everything())


def test_a_closure_is_evaluated_before_anything_is_waited_for():
    run, clean = Run(), Run(sync="exact").steps(30, bad=(11,))
    for step in range(30):

        def closure(step=step):
            run.opt.zero_grad()
            loss = run.loss(step, math.nan if step == 11 else 1.0)
            loss.backward()
            return loss

        assert bool(run.opt.step(closure).isnan()) is (step == 11)
    assert_same(run.everything(), clean.everything())


class RecordingLane(LateLane):
    """Remembers what has been sent to the host, where it may be read."""

    def __init__(self):
        super().__init__()
        self.arrived = []

    def run(self, device, work):
        transfer = super().run(device, lambda: [value.clone() for value in work()])
        self.arrived = [value.untyped_storage().data_ptr() for value in transfer._values]
        return transfer


class Waits(TorchDispatchMode):
    """Counts what makes a host wait for an accelerator."""

    def __init__(self, arrived):
        super().__init__()
        self.arrived = arrived
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        waiting = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"}
        if name in waiting and args[0].untyped_storage().data_ptr() not in self.arrived:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("sync", ["exact", "lagged"])
def test_nothing_is_waited_for_but_by_a_snapshot(sync, monkeypatch):
    """As if the CPU were an accelerator: what is there is sent, and read when it has arrived."""
    monkeypatch.setattr(sent, "is_remote", lambda tensor: True)
    run = Run(sync=sync, guard={"every": 40, "confirm": 21}, sensors=())
    if sync == "lagged":
        lane = run.opt._loop.in_flight._lane = RecordingLane()
    waiting = []
    for step in range(100):
        loss = run.loss(step)
        run.opt.zero_grad()
        loss.backward()
        run.opt.observe(loss=loss, share=loss.detach() / 2, norms={"a": loss.detach()})
        with Waits(lane.arrived if sync == "lagged" else ()) as waits:
            run.opt.step()
        if waits.found:
            waiting.append(step)
    if sync == "exact":
        assert len(waiting) == 100
        return
    # The first step is judged before it is taken; the second takes the memory of all snapshots.
    assert set(waiting) <= {0, 1, 40, 80}
    assert [event.waited for event in lane.events[:-1]] == [1] * 98
    assert lane.events[-1].waited == 0
    assert run.opt.summary()["steps"] == 100
    assert lane.events[-1].waited == 1
    assert not run.opt.ledger


def test_late_numbers_give_the_same_run(monkeypatch):
    monkeypatch.setattr(sent, "is_remote", lambda tensor: True)
    run = Run().steps(1)
    run.opt._loop.in_flight._lane = LateLane()
    corrupted = [run.steps(30, first=1, bad=(9,)), Run(sync="exact").steps(31, bad=(9,))]
    assert_same(corrupted[0].everything(), corrupted[1].everything())
    assert [event.call for event in run.opt.ledger] == [10]
    assert run.opt.ledger[0].loss is not None


def test_a_spike_is_told_too_late_and_learned_from_by_nobody():
    run = Run().steps(60)
    run.opt.summary()  # has the last of them judged
    before = run.opt._loop.decider.detectors.spikes.state_dict()
    loss = run.loss(60) * 1e6
    run.opt.zero_grad()
    loss.backward()
    run.opt.observe(loss=loss)
    run.opt.step()
    (event,) = run.opt.ledger
    assert event.action is Action.TAKE
    assert "too late to tame it, the step has been taken" in event.reason
    assert not event.tames
    assert {finding.kind for finding in event.findings} == {"loss_spike", "gradient_spike"}
    after = run.opt._loop.decider.detectors.spikes.state_dict()
    assert_same(_values(after), _values(before))
    assert run.opt.summary()["steps"] == 61


def test_a_spike_that_is_to_be_skipped_is_told_too_late():
    run = Run(guard={"responses": {"gradient_spike": "skip"}, "loss_spike": None}).steps(60)
    run.opt.zero_grad()
    (run.loss(60) * 1e6).backward()
    run.opt.step()
    (event,) = run.opt.ledger
    assert event.action is Action.TAKE
    assert "too late to skip it, the step has been taken" in event.reason


def _values(state):
    """Return what a detector has learned, of all that it remembers."""
    return {name: state[name]["recent"] for name in ("loss", "gradient")}


def test_rules_hear_what_was_observed_of_their_step():
    rule = SignalRule("accuracy < 0.2", response="back_off")
    run = Run(guard={"rules": [rule]})
    for step in range(20):
        loss = run.loss(step)
        run.opt.zero_grad()
        loss.backward()
        run.opt.observe(loss=loss, accuracy=torch.tensor(0.1 if step == 12 else 0.9))
        run.opt.step()
    (event,) = run.opt.ledger
    assert event.backs_off
    assert event.call == 13


def test_the_telemetry_says_what_every_step_was_taken_with(events):
    run = Run(telemetry=events)
    schedule = optim.lr_scheduler.LambdaLR(run.opt, lambda n: 1 / (1 + n))
    run.steps(12, bad=(5,), schedule=schedule)
    run.opt.close()
    assert [event.call for event in events.seen] == list(range(1, 13))
    assert [event.lr[0] for event in events.seen] == pytest.approx(
        [1e-2 / (1 + n) for n in range(12)], rel=1e-12
    )
    assert [event.action is Action.SKIP for event in events.seen] == [n == 5 for n in range(12)]
    assert math.isnan(events.seen[5].loss)
    assert all(event.grad_norm > 0 for event in events.seen if event.action is Action.TAKE)


def test_the_limits_end_the_run():
    run = Run(guard={"max_skips": 2, "max_rollbacks": 1}).steps(20)
    with pytest.raises(DivergenceError, match="not finite"):
        run.steps(40, first=20, bad=range(20, 60))
    assert run.opt.summary()["integrity"] == "COMPROMISED"
    assert all(torch.isfinite(value).all() for value in run.model.state_dict().values())


def test_a_rollback_by_hand():
    run = Run().steps(25)
    run.opt.rollback("to see it work")
    run.steps(5, first=25)
    back, gone = run.opt.ledger
    assert (back.call, gone.call) == (25, 26)  # the step that was pending goes back with it
    assert "to see it work" in back.reason


@pytest.mark.parametrize(
    "spec", [spec for spec in SPECS if spec.closure == "optional"], ids=lambda spec: spec.name
)
def test_what_recurs_in_any_optimizer_ends_or_goes_on_with_finite_weights(spec):
    torch.manual_seed(0)
    shape = {"sparse": lambda: nn.Embedding(9, 4, sparse=True)}
    model = shape.get(spec.model, lambda: nn.Linear(4, 4, bias=spec.model == "dense"))()
    inner = spec.make(model.parameters(), lr=spec.lr)
    opt = StableOptimizer(inner, model=model, guard=Guard(sync="lagged", every=5, confirm=3))
    for step in range(30):
        opt.zero_grad()
        x = torch.tensor([step % 9, 3]) if spec.model == "sparse" else torch.randn(5, 4)
        loss = model(x).pow(2).mean() * (math.nan if step in (0, 13) else 1.0)
        loss.backward()
        opt.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert opt.summary()["calls"] == 30
    first, second, *gone = opt.ledger
    assert (first.call, first.action, second.call) == (1, Action.SKIP, 14)
    assert [event.call for event in gone] == [15] * (second.action is Action.ROLL_BACK)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (optim.LBFGS, {}, "sync='lagged' must not be asked for with LBFGS"),
        (optim.AdamW, {"transforms": [MaxNorm(1.0)]}, "must not be asked for with transforms"),
        (optim.AdamW, {"guard": {"sync": "never"}}, "sync='never' must be 'exact' or 'lagged'"),
    ],
    ids=["LBFGS", "transforms", "value"],
)
def test_what_cannot_lag_is_refused(make, options, message):
    with pytest.raises(ConfigError, match=message):
        Run(make, **options)


def test_what_could_neither_be_left_out_nor_undone_is_refused():
    with pytest.raises(ConfigError, match="slots=0 and AdamW, whose step is taken before"):
        Run(lambda p: optim.AdamW(p, lr=1e-2), guard={"slots": 0})
    Run(guard={"slots": 0}).steps(5, bad=(3,))


def test_what_costs_rollbacks_is_said(caplog):
    Run()
    Run(*WAYS["AdamW, compiled"])
    assert not caplog.records
    Run(lambda p: optim.AdamW(p, lr=1e-2))
    (record,) = caplog.records
    assert (
        "AdamW takes a batch that is not finite, and the run is rolled back for it"
        in record.message
    )


def test_a_bad_loss_of_finite_gradients_is_told():
    """The kernels of foreach do not leave it out, and nothing of it is in the weights."""
    run = Run(lambda p: optim.AdamW(p, lr=1e-2, foreach=True)).steps(12)
    loss = run.loss(12)
    run.opt.zero_grad()
    loss.backward()
    run.opt.observe(loss=math.nan)
    run.opt.step()
    (event,) = run.opt.ledger
    assert event.action is Action.TAKE
    assert event.reason == "the loss is nan, while all gradients are finite"


def test_steps_that_are_compiled_from_outside_keep_their_order():
    run = Run(lambda p: optim.AdamW(p, lr=torch.tensor(1e-2), foreach=False), guard={"slots": 3})
    compiled = torch.compile(run.opt.step, backend="eager")
    for step in range(24):
        loss = run.loss(step, math.nan if step in (9, 16) else 1.0)
        run.opt.zero_grad()
        loss.backward()
        if 5 <= step < 12:
            compiled()
        else:
            run.opt.step()
    assert run.opt.summary()["calls"] == 24
    assert [event.call for event in run.opt.ledger] == [10, 17, 18]
    assert run.opt.ledger[0].action is Action.SKIP
    assert all(torch.isfinite(value).all() for value in run.model.state_dict().values())


def test_transforms_that_come_later_are_refused():
    run = Run().steps(3)
    weight = nn.Parameter(torch.ones(3, 3))
    with pytest.raises(ConfigError, match="must not be asked for with transforms"):
        run.opt.add_param_group({"params": [weight], "transforms": [MaxNorm(1.0)]})
    assert len(run.inner.param_groups) == 1
    run.steps(3, first=3)
    assert run.opt.summary()["steps"] == 6


TRACED = [name for name in OPTIMIZERS if name not in ("ASGD", "Muon")]
"""Muon takes matrices alone, and the model here has more."""


@pytest.mark.parametrize(
    ("name", "slots", "what"),
    [
        *((name, 0, "loss") for name in TRACED),
        ("AdamW", 3, "loss"),
        ("AdamW", 3, "gradients"),
        ("SGD, momentum", 3, "gradients"),
    ],
)
def test_a_bad_step_that_could_not_be_compiled_is_left_out(name, slots, what):
    """In the call in which that turns out nobody has judged it; later ones are undone or judged."""
    graphs = 2 if name in TWO_GRAPHS else 1
    compiles = {"backend": fails(RuntimeError("not there"), graphs)}
    guard = {"slots": slots, "responses": {"nonfinite_loss": "skip"}}
    run = Run(partial(OPTIMIZERS[name], lr=1e-2), compiles, guard=guard).steps(4)
    before = run.everything()
    loss = run.loss(4, math.nan if what == "gradients" else 1.0)
    run.opt.zero_grad()
    loss.backward()
    run.opt.observe(loss=math.nan)
    next(run.model.parameters()).grad = None  # another graph
    run.opt.step()
    assert run.opt.verdict.action is Action.SKIP
    assert_same(run.everything(), before)
    assert "not there" in run.opt.summary()["compiled"]
    run.steps(4, first=5)
    assert (run.opt.summary()["calls"], run.opt.summary()["steps"]) == (9, 8)
    run.steps(2, first=9, bad=(9,))
    first, late, *_ = run.opt.ledger
    assert (first.call, late.call) == (5, 10)
    assert late.action is (Action.ROLL_BACK if slots else Action.SKIP)
    assert all(torch.isfinite(value).all() for value in run.model.state_dict().values())
