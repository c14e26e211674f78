"""Ring and policy together, against every schedule of faults that Hypothesis can think of.

The world is simulated: a state is the set of faults in it, a step adds nothing, a fault shows
up in verdicts some steps after it struck, verdicts come late, copies take time, slots are
pinned, processes restart. Two replicas are fed alike and must stay alike.
"""

from __future__ import annotations

import os
from copy import deepcopy
from dataclasses import dataclass

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from stableopt.guard import Guard
from stableopt.guard.policy import STEPS_PER_ROLLBACK, Policy
from stableopt.guard.ring import Ring, SlotState, legal_interval
from stableopt.types import Action, Finding, Scope

DAMAGE = Finding(kind="nonfinite_weight", message="weights are NaN", scope=Scope.STATE)
BAD_BATCH = Finding(kind="nonfinite_loss", message="the loss is NaN")
SPIKE = Finding(kind="loss_spike", message="the loss is high", scope=Scope.SPIKE)
LONGEST_COPY = 4


@dataclass(frozen=True)
class Fault:
    """Something wrong in the state.

    Attributes:
        born: The step at which it struck.
        latency: Steps until verdicts show it.
        loud: Whether looking at the state itself shows it at once.
    """

    born: int
    latency: int
    loud: bool


class Replica:
    """One ring and one policy."""

    def __init__(self, guard: Guard) -> None:
        self.ring = Ring(guard.slots, guard.every, guard.confirm_steps)
        self.policy = Policy(guard)

    def plain(self):
        return [deepcopy(vars_of(slot)) for slot in self.ring.slots], self.policy.state_dict()


def vars_of(slot):
    return {name: getattr(slot, name) for name in slot.__slots__}


class Guarded(RuleBasedStateMachine):
    """Train, break, restore; what must never happen is checked after every rule."""

    @initialize(
        slots=st.integers(2, 5),
        every=st.integers(1, 8),
        confirm=st.integers(1, 12),
        lag=st.integers(0, 3),
        max_rollbacks=st.integers(0, 4),
        max_skips=st.integers(0, 3),
        cooldown=st.integers(0, 8),
        budget=st.integers(0, 5),
        recovery=st.one_of(st.none(), st.integers(0, 6)),
    )
    def start(self, lag, recovery, **options):
        self.guard = Guard(lr_recovery=recovery, **options)
        self.lag = lag
        self.replicas = [Replica(self.guard), Replica(self.guard)]
        self.contents: dict[int, frozenset[Fault]] = {}
        self.faults: frozenset[Fault] = frozenset()
        self.step = 0
        self.unjudged: list[tuple[int, frozenset[Fault]]] = []
        self.writing = None
        self.rollbacks = 0
        self.progress = 0
        self.episode: list[float] = []
        self.furthest = 0
        self.healthy_beyond = 0
        self.stopped = False
        self.pinned_lately = 0
        self.spikes = 0
        self.begin_anew()

    @property
    def ring(self):
        return self.replicas[0].ring

    @property
    def policy(self):
        return self.replicas[0].policy

    def both(self, call):
        first, second = (call(replica) for replica in self.replicas)
        assert first == second
        return first

    def begin_anew(self):
        """Take what is there for good: the first snapshot of a run."""
        self.both(lambda r: r.ring.clear())
        self.writing = None
        self.unjudged = []
        ticket = self.both(lambda r: r.ring.begin(self.step))
        self.contents[ticket.index] = self.faults
        assert self.both(lambda r: r.ring.finish(ticket, sound=True))
        self.both(lambda r: r.ring.accept(ticket))
        self.last_verified = self.step

    # what happens

    @rule(count=st.integers(1, 30))
    def train(self, count):
        for _ in range(count):
            if not self.stopped:
                self.one_step()

    @rule(latency=st.integers(0, 12), loud=st.booleans(), inside=st.booleans())
    def strike(self, latency, loud, inside):
        """Break the state, between two steps or inside the next one."""
        latency = min(latency, self.guard.confirm_steps)
        self.faults |= {Fault(self.step + inside, 0 if loud else latency, loud)}

    @rule(times=st.integers(1, 6), between=st.integers(1, 4))
    def strike_again_and_again(self, times, between):
        """Break it anew before the episode is over."""
        for _ in range(times):
            self.strike(latency=0, loud=True, inside=False)
            self.train(between + self.lag)

    @precondition(lambda self: not self.stopped)
    @rule(bad=st.sampled_from([BAD_BATCH, SPIKE]), count=st.integers(1, 6))
    def bad_batches(self, bad, count):
        for _ in range(count):
            if not self.stopped:
                self.act((bad,), self.step)

    @precondition(lambda self: self.writing is not None)
    @rule()
    def copy_ends(self):
        ticket, _ = self.writing
        self.writing = None
        sound = not any(fault.loud for fault in self.contents[ticket.index])
        self.both(lambda r: r.ring.finish(ticket, sound=sound))

    @rule(age=st.integers(0, 4))
    def pin(self, age):
        """Hold one snapshot, as a spill to disk does."""
        held = self.ring.sound()
        if not any(slot.pins for slot in held):
            index = held[age % len(held)].index
            self.both(lambda r: r.ring.pin(r.ring.slots[index]))

    @precondition(lambda self: any(slot.pins for slot in self.ring.slots))
    @rule()
    def unpin(self):
        for index in range(len(self.ring.slots)):
            self.both(lambda r, i=index: r.ring.unpin(r.ring.slots[i]))

    @rule()
    def restart(self):
        """Another process loads the state, and the counts, of a healthy run."""
        if not self.faults and not self.stopped:
            for replica in self.replicas:
                counts = replica.policy.state_dict()
                replica.policy = Policy(self.guard)
                replica.policy.load_state_dict(counts)
            self.begin_anew()

    # one step of the loop

    def one_step(self):
        self.unjudged.append((self.step, self.faults))
        findings = ()
        judged = None
        if len(self.unjudged) > self.lag:
            judged, faults = self.unjudged.pop(0)
            if any(judged >= fault.born + fault.latency for fault in faults):
                findings = (DAMAGE,)
        self.act(findings, judged)

    def act(self, findings, judged):
        step = self.step
        verdict = self.both(lambda r: r.policy.decide(findings, step=step, ring=r.ring))
        self.both(lambda r: r.policy.note(verdict, step))
        if verdict.action is Action.TAKE:
            self.take(verdict, judged)
        elif verdict.action is Action.SKIP:
            self.spikes += 1
            assert self.spikes <= self.guard.max_skips, "more skips in a row than allowed"
        else:
            self.go_back(verdict)

    def take(self, verdict, judged):
        self.spikes = 0
        if not verdict.findings:
            self.note_healthy()
        if not verdict.findings and judged is not None:
            self.both(lambda r: r.ring.healthy(judged))
        self.step += 1
        self.progress = max(self.progress, self.step)
        if self.writing is not None and self.step - self.writing[1] >= LONGEST_COPY:
            self.copy_ends()
        if not verdict.findings and self.both(lambda r: r.ring.due(self.step)):
            before = {s.index: s for s in deepcopy(self.ring.slots)}
            ticket = self.both(lambda r: r.ring.begin(self.step))
            if ticket is not None:
                self.check_victim(before[ticket.index])
                self.contents[ticket.index] = self.faults
                self.writing = ticket, self.step

    def check_victim(self, victim):
        assert not victim.pins
        assert victim.state in (SlotState.FREE, SlotState.VERIFIED)
        if victim.state is SlotState.VERIFIED:
            others = [s.step for s in self.ring.verified()]
            assert max(others, default=-1) > victim.step, "the newest verified one is given up"

    def go_back(self, verdict):
        rollback = verdict.rollback
        if verdict.action is Action.STOP:
            self.stopped = True
            assert rollback is not None, "after genesis there is always a verified snapshot"
            return
        (slot,) = [s for s in self.ring.sound() if s.step == rollback.to_step]
        assert rollback.to_step <= self.step
        if slot.state is SlotState.PENDING:
            assert rollback.attempt == 1, "only the first attempt is optimistic"
        self.note_rollback(rollback)
        self.spikes = 0
        self.faults = self.contents[slot.index]
        if slot.state is SlotState.VERIFIED:
            assert not self.faults, "training continues from a fault"
        for replica in self.replicas:
            replica.ring.rewind(replica.ring.slots[slot.index])
        self.step = rollback.to_step
        self.unjudged = []
        assert all(s.step <= self.step for s in self.ring.slots if s.state is not SlotState.FREE)
        if self.writing is not None and self.writing[1] > self.step:
            stale = self.writing[0]
            self.writing = None
            assert not self.both(lambda r: r.ring.finish(stale, sound=True)), "a void ticket"

    def note_rollback(self, rollback):
        self.rollbacks += 1
        if self.episode:
            assert rollback.lr_scale <= self.episode[-1], "lr rises inside an episode"
            assert rollback.lr_scale < self.episode[-1] or self.guard.lr_backoff == 1
        self.episode.append(rollback.lr_scale)
        assert len(self.episode) <= self.guard.max_rollbacks, "thrash"
        assert self.rollbacks <= self.guard.budget + self.progress // STEPS_PER_ROLLBACK
        self.furthest = max(self.furthest, rollback.from_step)

    def note_healthy(self):
        """Keep an account of our own of when an episode may end."""
        if self.episode and self.step >= self.furthest + self.guard.cooldown:
            self.episode = []

    # what must hold

    @invariant()
    def verified_slots_are_clean(self):
        for slot in self.ring.verified():
            assert not self.contents[slot.index], "a verified snapshot holds a fault"

    @invariant()
    def there_is_a_way_back(self):
        assert self.ring.verified()

    @invariant()
    def one_timeline(self):
        steps = [s.step for s in self.ring.slots if s.state is not SlotState.FREE]
        assert len(steps) == len(set(steps))
        assert max(steps) <= self.step

    @invariant()
    def replicas_agree(self):
        first, second = self.replicas
        assert first.plain() == second.plain()

    @invariant()
    def counts_are_never_rolled_back(self):
        if self.episode:
            assert self.policy.attempts == len(self.episode)
            assert self.policy.lr_scale == self.episode[-1]

    @invariant()
    def the_newest_verified_is_not_old(self):
        """On a healthy stretch; pins may hold on to slots for as long as they like."""
        newest = self.ring.verified()[0].step
        if any(slot.pins for slot in self.ring.slots) or self.faults:
            self.pinned_lately = self.step
        bound = self.guard.confirm_steps + self.lag + 2 * self.ring.every + 1 + LONGEST_COPY
        slowest = max(bound, 2 * (self.guard.confirm_steps + self.lag + LONGEST_COPY) + bound)
        since = min(self.step - newest, self.step - min(self.pinned_lately, self.step))
        assert since <= slowest


Guarded.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    # A mutant only has to fail, not to fail in the shortest way.
    phases=[Phase.generate] if "STABLEOPT_MUTANT" in os.environ else list(Phase),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestGuarded = Guarded.TestCase


def test_the_newest_verified_snapshot_is_as_young_as_promised():
    """Without faults and pins, for every legal size: at most k + L + 2 I + 1 steps old."""
    for slots in (2, 3, 4, 6):
        for confirm in (1, 5, 20, 63):
            for every in (1, 3, 10, 50):
                assert_young(Ring(slots, every, confirm))


def assert_young(ring: Ring) -> None:
    for step in range(ring.confirm * 6 + ring.every * 12):
        ring.healthy(step - 1)
        if ring.due(step):
            ticket = ring.begin(step)
            if ticket is not None:
                ring.finish(ticket, sound=True)
                if step == 0:
                    ring.accept(ticket)
        assert step - ring.verified()[0].step <= ring.confirm + 2 * ring.every + 1


def test_old_snapshots_are_kept_at_distances_that_double():
    """GUARD's example: four slots, every 50 steps, trusted after 20."""
    ring = Ring(4, 50, 20)
    ages: list[list[int]] = [[], [], [], []]
    for step in range(20_000):
        ring.healthy(step - 1)
        if ring.due(step):
            ticket = ring.begin(step)
            assert ticket is not None
            ring.finish(ticket, sound=True)
            if step == 0:
                ring.accept(ticket)
        if step > 10_000:
            for place, slot in enumerate(ring.verified()):
                ages[place].append(step - slot.step)
    assert max(ages[0]) <= 20 + 50 + 1
    assert max(ages[1]) >= 100
    assert max(ages[2]) >= 200


def test_an_interval_that_the_slots_cannot_keep_up_with_is_stretched():
    assert legal_interval(3, 100, 21) == 100
    assert legal_interval(3, 5, 21) == 21
    assert legal_interval(5, 5, 21) == 7
    assert legal_interval(2, 5, 21) == 21
    assert Ring(3, 5, 21).every == 21


def test_a_snapshot_is_trusted_after_confirm_steps_and_not_one_earlier():
    """A fault in it may show as late as in the verdict on the ``confirm``-th step after it."""
    for confirm in (1, 2, 21):
        ring = Ring(3, 100, confirm)
        ring.finish(ring.begin(7), sound=True)
        ring.healthy(7 + confirm - 1)
        assert ring.verified() == []
        ring.healthy(7 + confirm)
        assert [slot.step for slot in ring.verified()] == [7]
