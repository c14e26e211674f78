"""step() compiled from outside: one graph that skips, and everything else at the next call."""

from __future__ import annotations

import copy
import math
import threading

import pytest
import torch
from torch import nn, optim

from stableopt import (
    Action,
    DivergenceError,
    Guard,
    SignalRule,
    StableOptimizer,
    UpdateCap,
)
from stableopt.testing import corrupt_weight
from stableopt.update.traced import _WRITTEN, TracedStep
from tests.contract.bits import assert_same
from tests.contract.scenario import copied
from tests.contract.test_compiled_update import OPTIMIZERS, TWO_GRAPHS, Graphs, bare_update

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

LR = 1e-2


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Run:
    """A loop whose step is compiled, whole if ``fullgraph``."""

    def __init__(self, make=optim.AdamW, backend="eager", fullgraph=True, lr=None, **options):
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 2, bias=False)
        )
        self.inner = make(self.model.parameters(), lr=torch.tensor(LR) if lr is None else lr)
        self.opt = StableOptimizer(self.inner, model=self.model, **{"sensors": (), **options})
        self.compiled = torch.compile(self.opt.step, fullgraph=fullgraph, backend=backend)

    def gradients(self, step, value=None):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        x = x if value is None else x * value
        loss = self.model(x).sub(1).pow(2).mean()
        self.opt.zero_grad()  # between forward and backward, where many loops have it
        loss.backward()
        return loss

    def steps(self, count, first=0, schedule=None, bad=(), observe=False):
        for step in range(first, first + count):
            loss = self.gradients(step, math.nan if step in bad else None)
            if observe:
                self.opt.observe(loss=loss)
            self.compiled()
            if schedule is not None:
                schedule.step()
        return self

    def everything(self):
        return copied({"model": self.model.state_dict(), "state": self.inner.state_dict()["state"]})


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "ASGD"])
def test_no_break_no_recompilation_and_it_skips(name, scheduled):
    """The first step of all, too: what it creates is as if it had never been."""
    graphs = Graphs()
    run = Run(OPTIMIZERS[name], graphs)
    schedule = optim.lr_scheduler.ExponentialLR(run.opt, 0.99) if scheduled else None
    run.steps(60, bad=(0, 1, 7, 30), schedule=schedule)
    assert graphs.count == (2 if name in TWO_GRAPHS else 1)
    summary = run.opt.summary()
    assert (summary["calls"], summary["steps"], summary["skips"]) == (60, 56, 4)
    assert [event.call for event in run.opt.ledger] == [1, 2, 8, 31]
    assert {event.action for event in run.opt.ledger} == {Action.SKIP}
    assert "of a compiled step is not finite" in run.opt.ledger[0].reason


@pytest.mark.parametrize("bad", [(), (0, 5)])
@pytest.mark.parametrize("name", ["AdamW", "SGD, momentum", "Adagrad", "NAdam"])
def test_it_is_what_torch_compiles(name, bad):
    """Bit for bit, as if the bad batches had never been."""
    run = Run(OPTIMIZERS[name], "inductor").steps(10, bad=bad)
    twin = Run(OPTIMIZERS[name])
    update = bare_update(twin.inner, LR)
    for group in twin.inner.param_groups:
        group["lr"] = torch.tensor(LR)
    for step in range(10):
        if step not in bad:
            twin.gradients(step)
            update()
    assert_same(run.everything(), twin.everything())


def test_a_loss_that_is_not_finite_counts_once_it_is_told():
    run = Run(guard=Guard(responses={"nonfinite_loss": "skip"}))
    run.steps(3, observe=True)
    before = run.everything()
    loss = run.gradients(3)
    run.opt.observe(loss=loss * math.inf)
    run.compiled()
    assert run.opt.verdict.action is Action.SKIP
    assert_same(run.everything(), before)
    run.steps(2, first=4, observe=True)
    assert run.opt.verdict.action is Action.TAKE


def test_weights_that_are_lost_go_back_at_the_next_call():
    graphs = Graphs()
    run = Run(backend=graphs, guard=Guard(every=5, confirm=3))
    run.steps(22)
    corrupt_weight(run.opt, math.nan)
    at = [p.data_ptr() for p in run.model.parameters()]
    run.steps(2, first=22)
    back, left_out = run.opt.ledger  # asking settles it
    assert back.rollback.to_step == 21  # the first snapshot is that of the first call in between
    assert "weights that a rollback has replaced" in left_out.reason
    run.steps(30, first=24)
    summary = run.opt.summary()
    assert (summary["calls"], summary["rollbacks"], summary["skips"]) == (54, 1, 1)
    undone = back.rollback.from_step - back.rollback.to_step
    assert summary["steps"] == 54 - 2 - undone
    assert all(torch.isfinite(p).all() for p in run.model.parameters())
    assert [p.data_ptr() for p in run.model.parameters()] == at
    assert graphs.count == 1


def test_a_weight_that_nothing_shows_is_found_by_the_scan():
    run = Run(guard=Guard(every=10))
    run.model.register_parameter("spare", nn.Parameter(torch.ones(4)))
    run.opt.add_param_group({"params": [run.model.spare]})
    run.steps(25)
    run.model.spare.data[2] = math.inf
    run.steps(25, first=25)
    assert run.opt.summary()["rollbacks"] == 1
    assert torch.isfinite(run.model.spare).all()


def test_what_recurs_lowers_the_learning_rate_inside_the_graph_and_then_ends():
    graphs = Graphs()
    run = Run(backend=graphs, guard=Guard(every=4, confirm=2, max_rollbacks=2, lr_recovery=None))
    run.steps(20)
    for attempt in range(2):
        corrupt_weight(run.opt, math.nan)
        run.steps(4, first=20 + 4 * attempt)
    assert run.opt.summary()["lr_scale"] == 0.5
    weight = run.model[0].weight
    before = weight.detach().clone()
    state = copy.deepcopy(run.inner.state[weight])
    run.gradients(40)
    run.compiled()
    step = float(state["step"]) + 1
    m = 0.9 * state["exp_avg"] + 0.1 * weight.grad
    v = 0.999 * state["exp_avg_sq"] + 0.001 * weight.grad**2
    expected = LR * 0.5 * m / (1 - 0.9**step) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
    decayed = before * (1 - LR * 0.5 * 0.01)
    torch.testing.assert_close(decayed - weight.detach(), expected, rtol=1e-3, atol=1e-6)
    assert graphs.count == 1

    def go_on():
        for attempt in range(3):
            corrupt_weight(run.opt, math.nan)
            run.steps(4, first=50 + 4 * attempt)

    with pytest.raises(DivergenceError, match="rollbacks did not help"):
        go_on()


def test_gradients_that_never_become_finite_end_the_run():
    run = Run(guard=Guard(max_skips=3, every=5, confirm=2, max_rollbacks=1))
    run.steps(20)
    with pytest.raises(DivergenceError, match="compiled step is not finite"):
        run.steps(40, first=20, bad=range(20, 60))


@pytest.mark.parametrize("order", ["first", "between", "never"])
def test_what_a_batch_did_to_running_statistics_is_undone_at_once(order):
    """By the graph itself: nobody has to call anything before the next forward pass."""
    run = Run()
    norm = nn.BatchNorm1d(6)
    run.model.insert(1, norm)
    run.opt = StableOptimizer(run.inner, model=run.model, sensors=())
    step_compiled = torch.compile(run.opt.step, fullgraph=True, backend="eager")
    for step in range(12):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        before = copied(dict(norm.named_buffers()))
        if order == "first":
            run.opt.zero_grad()
        loss = run.model(x * math.nan if step in (5, 6) else x).sub(1).pow(2).mean()
        if order == "between":
            run.opt.zero_grad()
        if order == "never":
            run.model.zero_grad()
        loss.backward()
        step_compiled()
        if step in (5, 6):
            assert_same(dict(norm.named_buffers()), before)
    assert int(norm.num_batches_tracked) == 10
    assert run.opt.summary()["skips"] == 2
    assert int(norm.num_batches_tracked) == 10
    assert all(torch.isfinite(value).all() for value in run.model.state_dict().values())


def test_a_step_without_gradients_is_one():
    run = Run()
    run.compiled()
    run.steps(3)
    run.opt.zero_grad()
    run.compiled()
    assert run.opt.summary()["steps"] == 5


def test_weights_that_were_lost_while_nobody_looked_are_no_beginning(caplog):
    run = Run(guard=Guard(every=5))
    for step in range(80):
        if step == 60:
            run.model[0].weight.data[0, 0] = math.nan
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        run.model.zero_grad()
        run.model(x).sub(1).pow(2).mean().backward()
        run.compiled()
    with pytest.raises(DivergenceError, match="those after the last step that was taken"):
        run.opt.summary()
    assert "80 compiled steps were taken since the last call" in caplog.text
    assert "before the first step" not in caplog.text


def test_many_steps_between_two_calls():
    """Nobody calls anything else: they are accounted for when somebody does."""
    run = Run(guard=Guard(every=10))
    run.gradients(0)
    for _ in range(25):
        run.compiled()
    for parameter in run.model.parameters():
        parameter.grad.fill_(math.nan)
    for _ in range(3):
        run.compiled()
    summary = run.opt.summary()
    assert (summary["calls"], summary["steps"], summary["skips"]) == (28, 25, 3)
    assert summary["snapshots"]["taken"] >= 1
    run.steps(5)
    assert run.opt.summary()["steps"] == 30


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch looks at it itself
@pytest.mark.parametrize("observed", [False, True])
def test_the_whole_training_step_is_compiled(observed):
    run = Run(fullgraph=False)

    @torch.compile(backend="eager")
    def train(x):
        run.opt.zero_grad()
        loss = run.model(x).sub(1).pow(2).mean()
        loss.backward()
        if observed:
            run.opt.observe(loss=loss)
        run.opt.step()

    for step in range(8):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        train(x * math.nan if step == 4 else x)
    summary = run.opt.summary()
    assert (summary["calls"], summary["steps"], summary["skips"]) == (8, 7, 1)
    assert all(torch.isfinite(p).all() for p in run.model.parameters())


def test_rules_sensors_and_snapshots_go_on():
    rule = SignalRule("accuracy < 0.2", response="back_off")
    run = Run(sensors=None, guard=Guard(every=5, rules=[rule]))
    for step in range(30):
        loss = run.gradients(step)
        run.opt.observe(loss=loss, accuracy=0.1 if step == 12 else 0.9)
        run.compiled()
    (event,) = run.opt.ledger
    assert event.backs_off
    assert event.call == 13
    assert run.opt.readings
    assert run.opt.summary()["snapshots"]["taken"] >= 5


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"make": lambda p, lr: optim.AdamW(p, lr=lr, fused=True)}, "its kernels are fused"),
        ({"make": lambda p, lr: optim.Adafactor(p, lr=LR)}, "it is not known which tensors"),
        ({"transforms": [UpdateCap(0.1)]}, "transforms are not traced"),
        ({"guard": False}, "there is no guard"),
    ],
    ids=["fused", "Adafactor", "transforms", "guard"],
)
def test_what_is_not_traced_says_so_once_and_runs_as_python(options, reason, caplog):
    run = Run(fullgraph=False, **options)
    run.steps(4)
    told = [r.message for r in caplog.records if "runs as Python" in r.message]
    assert len(told) == 1
    assert reason in told[0]
    if options.get("guard") is not False:
        before = run.everything()
        run.steps(1, first=4, bad=(4,))
        assert run.opt.verdict.action is Action.SKIP
        assert_same(run.everything(), before)


class Renamed(optim.AdamW):
    """As another version of torch may have it: one list more."""

    def _init_group(self, group, params, grads, exp_avgs, exp_avg_sqs, maxima, steps, more):
        return super()._init_group(group, params, grads, exp_avgs, exp_avg_sqs, maxima, steps)


@pytest.mark.parametrize("kind", _WRITTEN, ids=lambda kind: kind.__name__)
def test_what_torch_lists_is_what_is_known(kind):
    assert not TracedStep(kind([nn.Parameter(torch.ones(2, 2))], lr=LR)).obstacle


def test_another_list_is_refused():
    inner = Renamed([nn.Parameter(torch.ones(2, 2))])
    assert "it is not known which tensors" in TracedStep(inner).obstacle


def test_compiled_and_eager_steps_may_alternate():
    run = Run()
    run.steps(6)
    run.gradients(6)
    run.opt.step()
    run.steps(6, first=7)
    summary = run.opt.summary()
    assert (summary["calls"], summary["steps"]) == (13, 13)
    twin = copy.deepcopy(run.opt)
    assert twin.summary()["steps"] == 13


def test_a_checkpoint_is_up_to_date():
    run, other = Run(), Run()
    run.steps(9, bad=(4,))
    other.opt.load_state_dict(run.opt.state_dict())
    assert other.opt.summary()["steps"] == 8
    assert other.opt.summary()["calls"] == 9


def test_what_a_graph_did_is_in_the_ledger():
    run = Run().steps(3)
    run.gradients(3, math.nan)
    run.compiled()
    assert len(run.opt.ledger) == 1


def test_what_nobody_saw_is_looked_at_as_a_whole():
    """A snapshot may be verified only by steps in which everything was looked at."""
    run = Run(guard=Guard(every=10))
    spares = [nn.Parameter(torch.ones(4)) for _ in range(40)]
    run.opt.add_param_group({"params": spares})
    run.steps(12)
    spares[17].data[2] = math.inf
    for _ in range(3):
        run.compiled()
    assert run.opt.verdict.action is Action.ROLL_BACK
    assert torch.isfinite(spares[17]).all()


def test_a_collector_may_close_it_while_somebody_traces(events):
    from torch._subclasses.fake_tensor import FakeTensorMode

    run = Run(telemetry=events)
    run.gradients(0)
    for _ in range(3):
        run.compiled()
    with FakeTensorMode():
        run.opt.close()
    assert events.summaries[-1]["steps"] == 3


@pytest.mark.parametrize("steps", [3, 9])
def test_a_collector_may_close_it_while_somebodys_graph_runs(events, steps):
    """What it has to settle is no part of that function: a graph more, if only now and then."""
    graphs = Graphs()
    run = Run(telemetry=events, sensors=None)  # they are due after nine steps
    run.gradients(0)
    for _ in range(steps):
        run.compiled()
    last, numbers = [run.opt], torch.ones(3)
    del run

    @torch.compile(backend=graphs)
    def work():
        last.clear()
        return numbers + 1

    work()
    assert events.closed
    assert events.summaries[-1]["steps"] == steps
    assert graphs.count == 1


def test_a_step_while_another_thread_compiles_is_one_as_ever():
    """``torch.compiler.is_compiling()`` holds for all threads, for as long as one compiles."""
    run = Run()
    run.gradients(0)
    run.opt.step()

    def train():
        run.opt.observe(loss=run.gradients(1, math.nan))
        run.opt.step()

    def backend(graph, inputs):
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
        return graph

    torch.compile(lambda x: x + 1, backend=backend)(torch.ones(3))
    (event,) = run.opt.ledger
    assert event.call == 2
    assert "the gradient of 0.weight, 2.weight is not finite" in event.reason
