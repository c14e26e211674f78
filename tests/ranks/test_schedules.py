"""Whatever happens on whichever rank: the same verdicts, calls, snapshots and weights on all."""

from __future__ import annotations

import logging
import math
import threading
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from stableopt import DivergenceError, Guard, StableOptimizer
from stableopt.optimizer import stable
from tests.ranks.threads import ThreadRanks, run

STEPS = 40

KNOWN = 12
"""Steps after which replicas have been compared twice: before that, none is known to be one."""

HAPPENS = (
    "nan loss",
    "nan gradient",
    "spike",
    "nan weight",
    "inf moment",
    "flip",
    "snapshot",
    "rollback",
    "damaged slot",
    "no snapshot",
    "looks",
)

EVENTS = st.lists(
    st.tuples(st.integers(3, STEPS - 1), st.sampled_from(HAPPENS), st.integers(0, 7)),
    max_size=8,
)


class Odd:
    """Something that is tracked, and cannot always be saved."""

    fails = False

    def state_dict(self):
        """Return nothing, or fail."""
        if self.fails:
            raise RuntimeError("not now")
        return {}

    def load_state_dict(self, state):
        """Do nothing."""


def trained(rank, meeting, events):
    """Train one replica; return what has become of it."""
    ranks = ThreadRanks(meeting, rank)
    with LOCK:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        inner = torch.optim.Adam(model.parameters(), lr=0.01)
        guard = Guard(every=5, confirm=2, max_skips=3, responses={"nonfinite_loss": "skip"})
        with mock.patch.object(stable, "Ranks", return_value=ranks):
            opt = StableOptimizer(inner, model=model, guard=guard)
    odd = Odd()
    opt.track(odd=odd)
    batches = torch.Generator().manual_seed(rank)
    actions = []
    for step in range(STEPS):
        mine = [what for at, what, who in events if (at, who % meeting.size) == (step, rank)]
        if step < KNOWN:
            mine = [what for what in mine if what != "flip"]
        x = torch.randn(4, 3, generator=batches)
        opt.zero_grad()
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        odd.fails = "no snapshot" in mine
        happen(mine, model, opt, loss)
        average(model, meeting, rank)
        opt.observe(loss=math.nan if "nan loss" in mine else float(loss.detach()))
        try:
            opt.step()
        except DivergenceError:
            actions.append("stop")
            break
        actions.append((opt.verdict.action.value, opt.verdict.reason))
    weights = [p.detach().clone() for p in model.parameters()]
    moments = [s["exp_avg_sq"].clone() for s in inner.state.values()]
    slots = [(s.step, s.state.value, s.manual) for s in opt._loop.restorer.keeper.ring.slots]
    return actions, slots, weights + moments


LOCK = threading.Lock()
"""Building uses the global random numbers of the process."""


@torch.no_grad()
def happen(mine, model, opt, loss):
    """Have something happen on this rank."""
    weight = model[0].weight
    state = opt.optimizer.state.get(weight, {})
    keeper = opt._loop.restorer.keeper
    if "nan gradient" in mine:
        weight.grad[0, 0] = math.nan
    if "spike" in mine:
        for parameter in model.parameters():
            parameter.grad.mul_(1e4)
    if "nan weight" in mine:
        weight[0, 0] = math.nan
    if "inf moment" in mine and state:
        state["exp_avg_sq"][0, 0] = math.inf
    if "flip" in mine:
        weight[0, 0] += 1e-6
    if "snapshot" in mine:
        opt.snapshot()
    if "rollback" in mine:
        opt.rollback("asked")
    if "damaged slot" in mine:
        held = [slot for slot in keeper.ring.slots if slot.held]
        if held:
            newest = max(held, key=lambda slot: slot.step)
            keeper._snapshots[newest.index]._state._params[0].view(-1)[0] += 1
    if "looks" in mine:
        assert opt.state_dict()["stableopt"]
        assert opt.summary()["calls"] >= 0


@torch.no_grad()
def average(model, meeting, rank):
    """Average the gradients of all replicas, as DDP does."""
    mine = [p.grad.clone() for p in model.parameters()]
    everybody = meeting.exchange(rank, mine, "gradients")
    for parameter, *parts in zip(model.parameters(), *everybody, strict=True):
        parameter.grad.copy_(torch.stack(parts).mean(0))


def check(size, events):
    """Run a schedule, and compare the ranks."""
    found, meeting = run(size, lambda rank, meeting: trained(rank, meeting, events))
    actions, slots, tensors = found[0]
    for theirs, others, values in found[1:]:
        assert theirs == actions
        assert others == slots
        for a, b in zip(tensors, values, strict=True):
            # A run that had to stop may have had no snapshot left to end with.
            assert torch.equal(a, b) or actions[-1] == "stop"
    assert all(calls == meeting.calls[0] for calls in meeting.calls)
    if not events:
        assert {action for action, _ in actions} == {"take"}
    assert actions[-1] == "stop" or all(tensor.isfinite().all() for tensor in tensors)


@pytest.fixture(autouse=True, scope="module")
def _quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def schedules(count):
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )


def test_nothing_happens():
    check(3, [])


@schedules(25)
@given(st.integers(2, 4), EVENTS)
def test_any_schedule(size, events):
    check(size, events)


@pytest.mark.slow
@schedules(600)
@given(st.integers(2, 8), EVENTS)
def test_many_schedules(size, events):
    check(size, events)
