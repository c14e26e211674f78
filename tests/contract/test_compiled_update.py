"""compile=True: the update is one graph, and everything that is decided about it stays as it is."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import warnings

import pytest
import torch
from torch import nn, optim
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.compiles.cells import Graphs
from stableopt import Action, ConfigError, Guard, StableOptimizer, UpdateCap
from stableopt.testing import corrupt_weight
from tests.contract.bits import assert_same
from tests.contract.scenario import copied

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

LR = 1e-2
OPTIMIZERS = {
    "AdamW": optim.AdamW,
    "Adam": optim.Adam,
    "SGD": optim.SGD,
    "SGD, momentum": lambda p, lr: optim.SGD(p, lr=lr, momentum=0.9),
    "Adagrad": optim.Adagrad,
    "RMSprop": optim.RMSprop,
    "NAdam": optim.NAdam,
    "Muon": optim.Muon,
    "Rprop": optim.Rprop,
    "Adadelta": optim.Adadelta,
    "Adamax": optim.Adamax,
    "ASGD": optim.ASGD,
    "RAdam": optim.RAdam,
    "AdamW, foreach": lambda p, lr: optim.AdamW(p, lr=lr, foreach=not isinstance(lr, torch.Tensor)),
    "AdamW, amsgrad": lambda p, lr: optim.AdamW(p, lr=lr, amsgrad=True),
}
SCHEDULES = {
    "plain": lambda opt: None,
    "LambdaLR": lambda opt: optim.lr_scheduler.LambdaLR(opt, lambda n: 1 / (1 + n)),
    "CosineAnnealingWarmRestarts": lambda opt: optim.lr_scheduler.CosineAnnealingWarmRestarts(
        opt, 7
    ),
}
TWO_GRAPHS = {"SGD, momentum"}
"""Bare torch has as many: the momentum does not exist before the first step."""


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Run:
    def __init__(self, make=optim.AdamW, compiles=True, lr=LR, wrapped=True, **options):
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 2, bias=False)
        )
        self.inner = make(self.model.parameters(), lr=lr)
        self.opt = self.inner
        if wrapped:
            self.opt = StableOptimizer(
                self.inner, model=self.model, sensors=(), compile=compiles, **options
            )

    def gradients(self, step, value=None):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        self.opt.zero_grad()
        self.model(x if value is None else x * value).sub(1).pow(2).mean().backward()

    def steps(self, count, first=0, schedule=None):
        for step in range(first, first + count):
            self.gradients(step)
            self.opt.step()
            if schedule is not None:
                schedule.step()
        return self

    def everything(self):
        return copied({"model": self.model.state_dict(), "state": self.inner.state_dict()["state"]})


def bare_update(inner, lr):
    """Return torch's own compiled update: the decorator taken off, the rate in a tensor."""
    step = inspect.unwrap(type(inner).step)
    rate = torch.tensor(lr, dtype=torch.float64)
    for group in inner.param_groups:
        group["lr"] = rate

    @torch.compile(fullgraph=True, dynamic=False)
    def update():
        with torch.no_grad():
            step(inner)

    return update


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_graph_and_no_recompilation(name, schedule):
    """And the same run skips a NaN: a silent fallback would count no graph, or skip nothing."""
    graphs = Graphs()
    run = Run(OPTIMIZERS[name], compiles={"backend": graphs})
    scheduler = SCHEDULES[schedule](run.opt)
    run.steps(40, schedule=scheduler)
    expected = 2 if name in TWO_GRAPHS else 1
    assert graphs.count == expected
    before = run.everything()
    run.gradients(40, math.nan)
    run.opt.step()
    assert run.opt.verdict.action is Action.SKIP
    assert_same(run.everything(), before)
    run.steps(60, first=41, schedule=scheduler)
    assert graphs.count == expected
    assert run.opt.summary()["compiled"] is True
    assert type(run.inner.param_groups[0]["lr"]) is float
    assert run.opt.summary()["steps"] == 100


@pytest.mark.parametrize("name", ["AdamW", "SGD, momentum", "Muon"])
def test_it_is_what_torch_compiles(name):
    """Bit for bit."""
    run = Run(OPTIMIZERS[name]).steps(12)
    bare = Run(OPTIMIZERS[name], wrapped=False)
    update = bare_update(bare.inner, LR)
    for step in range(12):
        bare.gradients(step)
        update()
    assert_same(run.everything(), bare.everything())


def test_a_bad_first_step_leaves_nothing():
    run, clean = Run(compiles={"backend": "eager"}), Run(compiles={"backend": "eager"})
    run.gradients(0, math.nan)
    run.opt.step()
    assert not run.inner.state
    assert_same(run.steps(5).everything(), clean.steps(5).everything())


@pytest.mark.parametrize("first", [2, 30])
def test_a_rollback_costs_no_graph_and_moves_no_tensor(first):
    graphs = Graphs()
    run = Run(compiles={"backend": graphs}, guard=Guard(every=5, confirm=2, lr_backoff=0.5))
    run.steps(first)
    state = run.inner.state[run.model[0].weight]
    where = [run.model[0].weight.data_ptr(), state["exp_avg"].data_ptr()]
    corrupt_weight(run.opt, math.nan)
    run.steps(1, first=first)
    assert run.opt.verdict.action is Action.ROLL_BACK
    run.steps(20, first=first + 1)
    corrupt_weight(run.opt, math.nan)  # again: with a lower learning rate
    run.steps(20, first=first + 21)
    assert run.opt.summary()["rollbacks"] == 2
    assert run.opt.summary()["lr_scale"] < 1
    if first > 5:  # before the first snapshot there was no state to go back to
        state = run.inner.state[run.model[0].weight]
        assert [run.model[0].weight.data_ptr(), state["exp_avg"].data_ptr()] == where
        assert graphs.count == 1


def test_a_tensor_learning_rate_stays_the_users():
    graphs, rate = Graphs(), torch.tensor(LR)
    run = Run(lambda p, lr: optim.AdamW(p, lr=lr), {"backend": graphs}, lr=rate)
    schedule = optim.lr_scheduler.ExponentialLR(run.opt, 0.9)
    run.steps(20, schedule=schedule)
    assert run.inner.param_groups[0]["lr"] is rate
    assert graphs.count == 1


def test_twenty_optimizers_in_one_process():
    graphs = Graphs()
    for _ in range(20):
        run = Run(compiles={"backend": graphs}).steps(2)
        assert run.opt.summary()["compiled"] is True
    assert graphs.count == 20


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p, lr: optim.AdamW(p, lr=lr, fused=True), "its fused kernels are compiled"),
        (lambda p, lr: optim.Adafactor(p, lr=lr), "data-dependent"),
    ],
    ids=["fused", "Adafactor"],
)
def test_what_cannot_be_traced_says_so_once_and_skips(make, reason, caplog):
    run, bare = Run(make).steps(5), Run(make, wrapped=False).steps(5)
    assert_same(run.everything(), bare.everything())
    told = [record.message for record in caplog.records if "compile=" in record.message]
    assert len(told) == 1
    assert reason in told[0]
    assert reason in run.opt.summary()["compiled"]
    before = run.everything()
    run.gradients(5, math.nan)
    run.opt.step()
    assert run.opt.verdict.action is Action.SKIP
    assert_same(run.everything(), before)


def test_options_that_change_at_every_step_are_not_traced_for_ever(caplog):
    graphs = Graphs()
    run = Run(compiles={"backend": graphs})
    schedule = optim.lr_scheduler.OneCycleLR(run.opt, 0.1, total_steps=60)  # moves betas, too
    run.steps(30, schedule=schedule)
    assert graphs.count <= 4
    assert "options other than the learning rate change" in run.opt.summary()["compiled"]
    quiet = Run(compiles={"backend": graphs})
    schedule = optim.lr_scheduler.OneCycleLR(quiet.opt, 0.1, total_steps=60, cycle_momentum=False)
    before = graphs.count
    quiet.steps(30, schedule=schedule)
    assert graphs.count == before + 1


def test_a_step_that_was_replaced_on_the_instance_is_called(caplog):
    run = Run()
    calls = []
    original = run.inner.step
    run.inner.step = lambda closure=None: (calls.append(1), original(closure))[1]
    run.steps(3)
    assert len(calls) == 3
    assert "replaced on the instance" in run.opt.summary()["compiled"]


def test_hooks_are_called_as_ever():
    calls = []
    run = Run(compiles={"backend": "eager"})
    run.inner.register_step_pre_hook(lambda *_: calls.append("pre"))
    run.inner.register_step_post_hook(lambda *_: calls.append("post"))
    handle = register_optimizer_step_post_hook(lambda *_: calls.append("global"))
    try:
        run.steps(2)
    finally:
        handle.remove()
    assert calls == ["pre", "post", "global"] * 2


def test_a_scheduler_on_the_inner_optimizer_is_content():
    run = Run(compiles={"backend": "eager"})
    schedule = optim.lr_scheduler.ExponentialLR(run.inner, 0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.steps(3, schedule=schedule)
    assert run.opt.summary()["compiled"] is True


@pytest.mark.parametrize("how", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_have_graphs_of_their_own(how):
    run = Run(compiles={"backend": "eager"}).steps(3)
    twin = Run.__new__(Run)
    twin.model, twin.opt = how((run.model, run.opt))
    twin.inner = twin.opt.optimizer
    run.steps(4, first=3)
    twin.steps(4, first=3)
    assert twin.inner is not run.inner
    assert_same(twin.everything(), run.everything())


def test_transforms_and_closures_around_it():
    run = Run(compiles={"backend": "eager"}, transforms=[UpdateCap(1e-4)])
    before = copied(run.model.state_dict())

    def closure():
        run.gradients(0)
        return torch.zeros(())

    run.opt.step(closure)
    moved = run.model[0].weight.detach() - before["0.weight"]
    assert 0 < float(moved.norm()) < 1e-3


def test_a_graph_that_cannot_be_built_is_no_end(caplog):
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    run = Run(compiles={"backend": broken}).steps(4)
    assert_same(run.everything(), Run(wrapped=False).steps(4).everything())
    assert "no compiler here" in run.opt.summary()["compiled"]


def fails(error, graphs=0):
    """Return a backend that raises after so many graphs."""
    made = []

    def backend(graph, inputs):
        made.append(graph)
        if len(made) > graphs:
            raise error
        return graph

    return backend


FAILURES = {
    "a compiler": (RuntimeError("not there"), "not there"),
    "an index of its": (IndexError("not there"), "not there"),
    "without a word": (AssertionError(), "AssertionError"),
    "a lowering": (NotImplementedError("not there"), "not there"),
    "skipped": (torch._dynamo.exc.SkipFrame("not there"), "no compiled frames"),
    "a limit": (torch._dynamo.exc.FailOnRecompileLimitHit("not there"), "not there"),
}


@pytest.mark.parametrize("graphs", [0, 1])
@pytest.mark.parametrize("name", FAILURES)
def test_whatever_a_compiler_raises_the_update_is_taken_once(name, graphs, caplog):
    error, reason = FAILURES[name]
    run = Run(compiles={"backend": fails(error, graphs)})
    bare = Run(wrapped=False)
    for step in range(6):
        for each in (run, bare):
            each.gradients(step)
            if step == 3:
                each.model[2].weight.grad = None  # another graph
            each.opt.step()
    torch.testing.assert_close(run.everything(), bare.everything())
    told = [record.message for record in caplog.records if "compile=" in record.message]
    assert len(told) == 1
    assert reason in told[0]
    assert reason in run.opt.summary()["compiled"]


def test_what_is_not_to_be_compiled_for_now_is_taken_as_it_is():
    run, bare = Run(compiles={"backend": "eager"}).steps(2), Run(wrapped=False).steps(6)
    with torch.compiler.set_stance("force_eager"):
        run.steps(2, first=2)
    run.steps(2, first=4)
    torch.testing.assert_close(run.everything(), bare.everything())
    assert run.opt.summary()["compiled"] is True


def test_what_a_graph_raises_while_it_runs_is_raised():
    """The update may be half done: taking it again would make it worse."""
    calls = []

    def backend(graph, inputs):
        def run(*args):
            calls.append(1)
            if len(calls) > 2:
                raise RuntimeError("out of memory")
            return graph(*args)

        return run

    run = Run(compiles={"backend": backend}).steps(2)
    before = run.everything()
    run.gradients(2)
    with pytest.raises(RuntimeError, match="out of memory"):
        run.opt.step()
    assert_same(run.everything(), before)
    assert run.opt.summary()["compiled"] is True


class Parts(nn.Module):
    """Takes another set of its layers in every step."""

    def __init__(self, chosen):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(5))
        self.chosen = chosen

    def forward(self, x, step):
        return sum(layer(x) for i, layer in enumerate(self.layers) if self.chosen(step, i))


def dropped(step, layer):
    return torch.rand(5, generator=torch.Generator().manual_seed(step))[layer] > 0.5 or not layer


CHANGES = {
    "experts": lambda step, layer: step + 1 >> layer & 1,
    "layers dropped at random": dropped,
    "two tasks, thawed one by one": lambda step, layer: layer == step % 2 or 1 < layer < step // 3,
}


@pytest.mark.parametrize("sync", ["exact", "lagged"])
@pytest.mark.parametrize("name", CHANGES)
def test_more_sets_of_gradients_than_there_are_graphs(name, sync, caplog):
    """Torch's limit of them is no end, and said once; a batch that is not finite is left out."""
    weights = []
    for wrapped in (False, True):
        torch.manual_seed(0)
        model = Parts(CHANGES[name])
        opt = optim.AdamW(model.parameters(), lr=LR)
        if wrapped:
            guard = Guard(sync=sync)
            opt = StableOptimizer(opt, guard=guard, sensors=(), compile={"backend": "eager"})
        for step in range(24):
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            opt.zero_grad()
            model(x, step).pow(2).mean().mul(math.nan if step == 3 else 1).backward()
            if wrapped or step != 3:
                opt.step()
        weights.append(copied(model.state_dict()))
    torch.testing.assert_close(*weights)
    reason = "Dynamo recompile limit exceeded"
    assert [reason in record.message for record in caplog.records].count(True) == 1
    assert reason in opt.summary()["compiled"]
    assert (opt.summary()["steps"], opt.summary()["skips"]) == (23, 1)


@pytest.mark.parametrize("value", [None, 1, "inductor", {"fullgraph": False}])
def test_what_it_may_be(value):
    with pytest.raises(ConfigError, match="compile"):
        Run(compiles=value)


def test_what_evaluates_a_closure_inside_is_refused():
    with pytest.raises(ConfigError, match="compile=True must be False for LBFGS"):
        Run(optim.LBFGS)


def test_from_a_configuration():
    model = nn.Linear(2, 2)
    opt = StableOptimizer.from_config(optim.SGD(model.parameters()), {"compile": True})
    assert opt.summary()["compiled"] is True
    opt = StableOptimizer(optim.SGD(model.parameters()))
    assert opt.summary()["compiled"] is False
