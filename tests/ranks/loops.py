"""What ranks do in the tests of edges; each function runs on every rank."""

from __future__ import annotations

import copy
import logging
import math
import os
import pickle
import time

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import stableopt
from stableopt import (
    ClipGradNorm,
    ConfigError,
    DivergenceError,
    Guard,
    RanksError,
    SignalRule,
    StableOptimizer,
    above,
    presets,
)
from stableopt.sensors import Sensors
from stableopt.snapshots import memory
from stableopt.transforms import Found, Needs, Phase
from tests.ranks.nets import Net, batch, build, digest, local


def prepared(mode="ddp", **options):
    """Return a model and a wrapped optimizer."""
    model, inner = build(mode)
    return model, StableOptimizer(inner, model=model, **{"sensors": (), **options})


def train(model, opt, steps, rank, first=0):
    """Train on batches of this rank."""
    for number in range(first, first + steps):
        x, y = batch(number, rank)
        opt.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        if isinstance(opt, StableOptimizer):
            opt.observe(loss=loss)
        opt.step()


def raised(function, *expected):
    """Return the name of the error that a function raises, its text, and after how long."""
    began = time.monotonic()
    try:
        function()
    except expected as error:
        return type(error).__name__, str(error), time.monotonic() - began
    return None


def stops_calling(rank):
    """Rank 1 leaves the loop early."""
    model, opt = prepared()
    train(model, opt, 3, rank)
    if rank == 1:
        time.sleep(8)
        return None
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return raised(opt.step, RanksError)


def dies(rank):
    """Rank 1 ends without a word."""
    model, opt = prepared()
    train(model, opt, 3, rank)
    if rank == 1:
        os._exit(1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return raised(opt.step, RanksError)


def options_differ(rank):
    """Rank 1 was given another guard."""
    model, opt = prepared(guard=Guard(max_skips=5 + rank))
    return raised(lambda: train(model, opt, 1, rank), ConfigError)


def clocks_differ(rank):
    """Rank 1 has loaded the checkpoint of another step."""
    model, opt = prepared()
    train(model, opt, 2, rank)
    early = opt.state_dict()
    train(model, opt, 2, rank, 2)
    late = opt.state_dict()
    opt.load_state_dict(late if rank == 0 else early)
    return raised(lambda: train(model, opt, 1, rank, 4), RanksError)


def too_many_skips(rank):
    """The batches of rank 1 hold a NaN from some step on, and the run stops on both."""
    guard = Guard(max_skips=2, max_rollbacks=0, every=5)
    model, opt = prepared(guard=guard)
    train(model, opt, 5, rank)

    def go_on():
        for number in range(5, 20):
            x, y = batch(number, rank)
            x[0, 0] = math.nan if rank == 1 else 0.0
            opt.zero_grad()
            F.mse_loss(model(x), y).backward()
            opt.step()

    found = raised(go_on, DivergenceError)
    events = [(e.call, e.action.value) for e in opt.ledger]
    return (found[0] if found else None), events, [e.reason for e in opt.ledger]


def one_rank_asks(rank):
    """Rank 1 alone asks for a snapshot, and later for a rollback."""
    model, opt = prepared(guard=Guard(every=1000))
    train(model, opt, 4, rank)
    if rank == 1:
        opt.snapshot()
    train(model, opt, 3, rank, 4)
    if rank == 1:
        opt.rollback("it looks odd")
    train(model, opt, 1, rank, 7)
    return opt.verdict.action.value, opt.verdict.reason, opt.summary()["steps"]


def one_rank_looks(rank):
    """Rank 0 alone saves and asks, in the middle of training."""
    model, opt = prepared(sensors=None)
    train(model, opt, 3, rank)
    if rank == 0:
        saved = opt.state_dict()
        assert opt.summary()["ranks"]["size"] == 2
        assert saved["stableopt"]
        assert opt.ledger == ()
    train(model, opt, 3, rank, 3)
    if rank == 0:
        opt.close()
    train(model, opt, 3, rank, 6)
    return opt.summary()["steps"]


class Stubborn:
    """An object that cannot be saved on one rank."""

    def __init__(self, rank):
        self.rank = rank

    def state_dict(self):
        """Fail on rank 1, but not at first."""
        if self.rank == 1 and self.fails:
            raise RuntimeError("no state today")
        return {}

    fails = False

    def load_state_dict(self, state):
        """Do nothing."""


def a_snapshot_fails(rank):
    """What rank 1 tracks cannot be saved for a while: no rank has that snapshot."""
    logging.disable(logging.CRITICAL)
    model, opt = prepared(guard=Guard(every=5, confirm=1))
    odd = Stubborn(rank)
    opt.track(odd=odd)
    train(model, opt, 7, rank)
    odd.fails = True
    train(model, opt, 4, rank, 7)
    odd.fails = False
    train(model, opt, 6, rank, 11)
    return [s["step"] for s in opt.summary()["snapshots"]["steps"]]


def a_snapshot_is_damaged(rank):
    """A bit of the newest snapshot of rank 1 flips: no rank goes back to it."""
    logging.disable(logging.CRITICAL)
    model, opt = prepared(guard=Guard(every=5, confirm=1))
    train(model, opt, 18, rank)
    keeper = opt._loop.restorer.keeper
    if rank == 1:
        newest = max(keeper.ring.slots, key=lambda slot: slot.step)
        keeper._snapshots[newest.index]._state._params[0].view(-1)[0] += 1
        with torch.no_grad():
            next(model.parameters()).fill_(math.nan)
    train(model, opt, 1, rank, 18)
    weights = [p.detach().sum().item() for p in model.parameters()]
    return opt.verdict.action.value, opt.verdict.rollback.to_step, weights


def alone(rank):
    """Each rank trains a network of its own, and decides for itself."""
    torch.manual_seed(rank)
    model = Net(norm=True)
    inner = torch.optim.AdamW(model.parameters(), lr=1e-2)
    opt = StableOptimizer(inner, model=model, group=False)
    for number in range(30 + 10 * rank):
        x, y = batch(number, rank)
        if rank == 1 and number == 20:
            x[0, 0] = math.nan
        opt.zero_grad()
        F.mse_loss(model(x), y).backward()
        opt.step()
    summary = opt.summary()
    return summary["calls"], summary["skips"], "ranks" in summary


def halves(rank):
    """Two ranks train one network, two another one."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    mine = groups[rank // 2]
    torch.manual_seed(rank // 2)
    model = DistributedDataParallel(Net(norm=False), process_group=mine)
    inner = torch.optim.AdamW(model.parameters(), lr=1e-2)
    opt = StableOptimizer(inner, model=model, group=mine, guard=Guard(every=10))
    for number in range(30 + 15 * (rank // 2)):
        x, y = batch(number, rank)
        if rank == 3 and number == 20:
            x[0, 0] = math.nan
        opt.zero_grad()
        F.mse_loss(model(x), y).backward()
        opt.step()
    return opt.summary()["skips"], opt.summary()["ranks"]["rank"], digest(model, inner)


def healthy(rank, steps):
    """A run with everything switched on: what it has done, and what it costs in calls."""
    model, inner = build("ddp")
    options = presets.robust()
    opt = StableOptimizer(inner, model=model, **options)
    train(model, opt, steps, rank)
    summary = opt.summary()
    readings = {n: {m: r.value for m, r in of.items()} for n, of in opt.readings.items()}
    return {
        "digest": [p.detach().sum().item() for p in model.parameters()],
        "interventions": [str(e) for e in opt.ledger if e.intervened],
        "ranks": summary["ranks"],
        "copies": opt._loop.decider.replicas.copies,
        "readings": readings,
        "acts": [t["steps"] for t in summary["transforms"]],
        "risk": summary["sensors"]["risk"],
    }


class Spy:
    """Stands before the agreement of a wrapper, and keeps what was agreed."""

    def __init__(self, opt):
        self.inner, self.seen = opt._loop.decider.agree, []
        opt._loop.decider.agree = self

    def __call__(self, observation, flags):
        """Keep loss and norm."""
        known = self.inner(observation, flags)
        self.seen.append((known.observation.loss, known.observation.gradients.total_value))
        return known

    def __getattr__(self, name):
        """Pass everything else on."""
        return getattr(self.inner, name)


def observed(rank, mode):
    """Return loss and norm of every step as they were agreed, and as they are."""
    model, opt = prepared(mode)
    spy, expected = Spy(opt), []
    for number in range(6):
        x, y = batch(number, rank, mode)
        opt.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        squares = [whole(p.grad).double().square().sum() for p in model.parameters()]
        expected.append((float(mean) / dist.get_world_size(), float(sum(squares).sqrt())))
        opt.observe(loss=loss)
        opt.step()
    return spy.seen, expected


def whole(tensor):
    """Return all parts of a tensor."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def clipped(rank, mode):
    """Return the weights after some clipped steps of ours, and of torch's."""
    found = []
    for ours in (True, False):
        model, opt = build(mode)
        if ours:
            opt = StableOptimizer(opt, model=model, sensors=(), transforms=[ClipGradNorm(0.05)])
        for number in range(5):
            x, y = batch(number, rank)
            opt.zero_grad()
            F.mse_loss(model(x), y).backward()
            if not ours:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            opt.step()
        found.append([whole(p.detach()).clone() for p in model.parameters()])
    return found


def rolled_back_behind_an_evaluation(rank):
    """Roll back while the root holds gathered weights; return what a forward pass gives."""
    torch.manual_seed(0)
    model = fully_shard(Net(norm=False), mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    inner = torch.optim.AdamW(model.parameters(), lr=1e-2)
    opt = StableOptimizer(inner, model=model, sensors=(), guard=Guard(every=5))
    train(model, opt, 4, rank)
    opt.snapshot()
    train(model, opt, 1, rank, 4)
    x, _ = batch(99, 0)
    with torch.no_grad():
        before = model(x).tolist()
    train(model, opt, 3, rank, 5)
    opt.rollback()
    x2, y2 = batch(8, rank)
    opt.zero_grad()
    F.mse_loss(model(x2), y2).backward()
    with torch.no_grad():
        model(x)
        opt.step()
        after = model(x).tolist()
    assert opt.verdict.action.value == "roll_back"
    return before, after


def shared_visits(rank):
    """Return which weights this rank has measured, and the readings of all."""
    model, opt = prepared(sensors=None)
    runner, mine = opt._loop.sensing._runner, []
    start = runner.start
    runner.start = lambda tasks: mine.extend(t.visit.name for t in tasks) or start(tasks)
    train(model, opt, 60, rank)
    readings = {n: {m: r.value for m, r in of.items()} for n, of in opt.readings.items()}
    return set(mine), readings


def transformed(rank, mode, name, steps=12):
    """Return the weights after training with one transform, and what it has done."""
    sensors = Sensors(budget=1.0) if name == "SensedCap" else ()
    model, opt = prepared(mode, transforms=[TRANSFORMS[name]()], sensors=sensors)
    for number in range(steps):
        x, y = batch(number, 0)  # the same on all ranks, as in one process
        opt.zero_grad()
        F.mse_loss(model(x), y).backward()
        opt.observe(max_logit=1e3)
        opt.step()
    weights = [whole(p.detach()).clone() for p in model.parameters()]
    return weights, opt.summary()["transforms"][0]["changes"]


TRANSFORMS = {
    "MaxNorm": lambda: stableopt.MaxNorm(1.0),
    "SpectralNormalization": lambda: stableopt.SpectralNormalization(0.5),
    "SpectralCap": lambda: stableopt.SpectralCap(0.5, when=stableopt.above("max_logit", 1.0)),
    "SensedCap": lambda: stableopt.SpectralCap(0.5),
    "UpdateCap": lambda: stableopt.UpdateCap(0.01),
    "AdaptiveWeightDecay": lambda: stableopt.AdaptiveWeightDecay(
        when=stableopt.above("max_logit", 1.0)
    ),
    "ClipGradNorm": lambda: ClipGradNorm(0.05),
}


def all_transformed(rank, mode):
    """Return what every transform has come to."""
    return {name: transformed(rank, mode, name) for name in TRANSFORMS}


def robust(rank, mode, steps):
    """Train with the preset, on the same batches on all ranks; return weights and readings."""
    sensors = Sensors(budget=1.0)  # never postponed: visits would depend on the clock
    model, opt = prepared(mode, **{**presets.robust(), "sensors": sensors})
    for number in range(steps):
        x, y = batch(number, 0)
        opt.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        opt.observe(loss=loss)
        opt.step()
    weights = [whole(p.detach()).clone() for p in model.parameters()]
    readings = {n: {m: r.value for m, r in of.items()} for n, of in opt.readings.items()}
    return weights, readings, [str(event) for event in opt.ledger if event.intervened]


def largest_signals(rank):
    """Every rank observes other logits: transforms see the largest of each head."""
    model, inner = build("ddp")
    seen = []

    class Looks:
        phase, metric, routine, params = Phase.WEIGHT, "looks", False, None
        needs = Needs(signals=("logits",))

        def find(self, site):
            return Found(site.targets)

        def act(self, view, found, memory):
            seen.append(view.signals["logits"])
            return ()

    opt = StableOptimizer(inner, model=model, sensors=(), transforms=[Looks()])
    for value in (torch.tensor([1.0, 5.0 * rank]), {"a": 1.0 + rank}, float(rank)):
        x, y = batch(0, rank)
        opt.zero_grad()
        F.mse_loss(model(x), y).backward()
        opt.observe(logits=value)
        opt.step()
    return seen[0].tolist(), {k: float(v) for k, v in seen[1].items()}, float(seen[2])


def ruled(rank):
    """A rule is about the mean over the ranks that have observed the signal."""
    rule = SignalRule(above("score", 2.0), response="warn")
    model, opt = prepared(guard=Guard(rules=[rule]))
    for value in (0.0, 1.5, 3.0):
        x, y = batch(0, rank)
        opt.zero_grad()
        F.mse_loss(model(x), y).backward()
        opt.observe(score=value * 2 * rank)
        opt.step()
    return [(e.call, e.reason) for e in opt.ledger]


def refused(rank):
    """Return how optimizers and modes are refused that ranks cannot judge together."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns when it is imported

    found = {}
    model, _ = build("ddp")
    bare = torch.optim.LBFGS(model.parameters())
    found["lbfgs"] = raised(lambda: StableOptimizer(bare), ConfigError)
    adamw = torch.optim.AdamW(model.parameters(), fused=True)
    lagged = {"guard": Guard(sync="lagged")}
    found["lagged"] = raised(lambda: StableOptimizer(adamw, **lagged), ConfigError)
    zero = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW)
    found["zero"] = raised(lambda: StableOptimizer(zero), ConfigError)
    opt = StableOptimizer(adamw, model=model, sensors=())
    with model.join():
        found["join"] = raised(lambda: train(model, opt, 1, rank), ConfigError)
    sharded, inner = build("fsdp2")
    clips = {"transforms": [ClipGradNorm(1.0, params="first.*")]}
    found["clip"] = raised(lambda: StableOptimizer(inner, model=sharded, **clips), ConfigError)
    caps = {"transforms": [stableopt.MaxNorm(1.0)], "guard": False}
    found["alone"] = raised(lambda: StableOptimizer(inner, model=sharded, **caps), ConfigError)
    found["group"] = raised(lambda: StableOptimizer(inner, group=7), ConfigError)
    return {name: text for name, (_, text, _) in found.items()}


def primed(rank):
    """Rank 0 alone asks for the state of an optimizer that has not stepped yet."""
    model, opt = prepared()
    if rank == 0:
        state = get_optimizer_state_dict(model, opt.optimizer)
        assert state["state"]
        opt.optimizer.state.clear()
    train(model, opt, 2, rank)
    return opt.summary()["calls"]


def two_wrappers(rank):
    """Two optimizers of one process, called in turn."""
    both = [prepared() for _ in range(2)]
    for number in range(12):
        for model, opt in both:
            train(model, opt, 1, rank, number)
    return [opt.summary()["ranks"]["sums"] for _, opt in both]


def copied_and_pickled(rank):
    """A copy and a pickle of a wrapper join a group of their own."""
    model, opt = prepared()
    train(model, opt, 3, rank)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(opt)))
    for parameter in (p for group in twin.param_groups for p in group["params"]):
        parameter.grad = torch.zeros_like(parameter)
    twin.observe(loss=1.0)
    twin.step()
    train(model, opt, 2, rank, 3)
    return twin.summary()["ranks"]["size"], opt.summary()["steps"]


def planned(rank):
    """Both ranks of a host plan with the same free memory."""
    memory.free_bytes = lambda device: 3 * 10**5
    model, opt = prepared(guard=Guard(slots=8))
    train(model, opt, 3, rank)
    kept = opt.summary()["snapshots"]
    return kept["slots"], kept["bytes_at_most"]


def scaled(rank, mode):
    """Train with a gradient scaler, with a NaN in a batch and one in a weight of rank 1."""
    model, inner = build(mode)
    opt = StableOptimizer(inner, model=model, sensors=(), guard=Guard(every=5))
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    opt.track(scaler=scaler)
    actions = []
    for number in range(16):
        x, y = batch(number, rank)
        if number == 8 and rank == 1:
            x[0, 0] = math.nan
        opt.zero_grad()
        scaler.scale(F.mse_loss(model(x), y)).backward()
        if number == 11 and rank == 1:
            with torch.no_grad():
                local(list(model.parameters())[2]).view(-1)[0] = math.nan
        before = opt.summary()["calls"]
        scaler.step(opt)
        scaler.update()
        called = opt.summary()["calls"] > before
        actions.append(opt.verdict.action.value if called else "-")
    weights = [whole(p.detach()).isfinite().all().item() for p in model.parameters()]
    return actions, scaler.get_scale(), weights


def local_sgd(rank, every, begins):
    """Average the weights now and then, from some step on, and gradients before that."""
    torch.manual_seed(0)
    model = Net(norm=False)
    opt = StableOptimizer(torch.optim.AdamW(model.parameters(), lr=1e-2), model=model)
    for step in range(130):
        x, y = batch(step, rank)
        opt.zero_grad()
        F.mse_loss(model(x), y).backward()
        for parameter in model.parameters() if step < begins else ():
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
        opt.step()
        for parameter in model.parameters() if step % every == every - 1 else ():
            dist.all_reduce(parameter.data)
            parameter.data /= dist.get_world_size()
    return [(e.call, e.action.value, e.reason) for e in opt.ledger], opt.summary()["steps"]
