"""Ring and policy together, against every schedule of findings that Hypothesis can think of.

What must never happen is checked at every call (:mod:`tests.guard.world`) and after every rule.
"""

from __future__ import annotations

import os
from unittest import mock

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
from stableopt.guard import policy as policy_module
from stableopt.guard.responses import CAUSES
from stableopt.guard.ring import Ring, SlotState, legal_interval
from tests.guard.world import (
    BAD_BATCH,
    DAMAGE,
    LONGEST_COPY,
    RISKS,
    RULES,
    SPIKE,
    STEEP,
    SYMPTOM,
    Fault,
    World,
)

STEPS_PER_ROLLBACK = 60
"""New steps that earn a rollback in this world, where runs are short."""

STEPS_PER_SPIKE = 7
"""New steps that earn one more spike about which something may be done."""

ALL = [BAD_BATCH, SYMPTOM, SPIKE, STEEP, DAMAGE, *RISKS, *RULES]
KINDS = sorted({finding.kind for finding in ALL} & CAUSES.keys())

answers = {kind: st.sampled_from([r.value for r in CAUSES[kind].allowed]) for kind in KINDS}
mild = {
    kind: st.sampled_from(["warn", "back_off"])
    for kind in ("loss_spike", "gradient_spike", "risk_warning")
}
responses = st.one_of(
    st.just({}),
    st.fixed_dictionaries(mild),
    st.fixed_dictionaries({}, optional=answers),
)

held = st.lists(st.sampled_from(ALL), max_size=3, unique=True).map(tuple)
"""What is held against one call; several causes may come together."""


class Guarded(RuleBasedStateMachine):
    """Train, break, restore."""

    @initialize(
        slots=st.integers(2, 5),
        every=st.integers(1, 8),
        confirm=st.integers(1, 12),
        lag=st.integers(0, 3),
        max_rollbacks=st.integers(0, 4),
        max_skips=st.integers(0, 3),
        cooldown=st.integers(0, 8),
        budget=st.integers(0, 5),
        lr_backoff=st.sampled_from([0.5, 0.7, 1.0]),
        lr_recovery=st.one_of(st.none(), st.integers(0, 6)),
        act_on_risk=st.booleans(),
        responses=responses,
    )
    def start(self, lag, **options):
        self.shorter = mock.patch.multiple(
            policy_module, STEPS_PER_ROLLBACK=STEPS_PER_ROLLBACK, STEPS_PER_SPIKE=STEPS_PER_SPIKE
        )
        self.shorter.start()
        self.world = World(Guard(**options), lag)

    def teardown(self):
        if hasattr(self, "shorter"):
            self.shorter.stop()

    # what happens

    @rule(count=st.integers(1, 30))
    def train(self, count):
        for _ in range(count):
            self.world.call()

    @rule(latency=st.integers(0, 12), loud=st.booleans(), inside=st.booleans())
    def strike(self, latency, loud, inside):
        """Break the state, between two steps or inside the next one."""
        latency = min(latency, self.world.guard.confirm_steps)
        fault = Fault(self.world.step + inside, 0 if loud else latency, loud)
        self.world.faults |= {fault}

    @rule(times=st.integers(1, 6), between=st.integers(1, 4))
    def strike_again_and_again(self, times, between):
        """Break it again after every restore, before the episode is over."""
        for _ in range(times):
            self.strike(latency=0, loud=True, inside=False)
            self.train(between + self.world.lag)

    @rule(causes=st.lists(st.sampled_from(ALL), min_size=1, max_size=2, unique=True))
    def causes_that_stay(self, causes):
        for _ in range(6):
            self.world.call(causes)

    @rule(pattern=st.lists(held, min_size=1, max_size=4), times=st.integers(1, 8))
    def schedule(self, pattern, times):
        """Spike, NaN, rule, nothing; spike, NaN, rule, nothing; …"""
        for _ in range(times):
            for findings in pattern:
                self.world.call(findings)

    @precondition(lambda self: not self.world.stopped)
    @rule(bad=st.sampled_from([BAD_BATCH, DAMAGE, RULES[3]]))
    def without_end(self, bad):
        """Every call is bad: after so many the run has ended."""
        guard, policy = self.world.guard, self.world.policy
        left = min(guard.max_rollbacks - policy.attempts, policy.tokens)
        for _ in range((guard.max_skips + 1) * (left + 1)):
            self.world.call((bad,))
        assert self.world.stopped, "it thrashes"

    @rule(
        worst=st.sampled_from([DAMAGE, RISKS[2], RULES[3]]),
        then=st.sampled_from([SPIKE, BAD_BATCH, RISKS[0], RULES[1]]),
        count=st.integers(1, 20),
    )
    def episode(self, worst, then, count):
        """Go back, with something more to answer for before and after it is over."""
        self.world.danger = False
        for findings in ((worst,), (), (then,)):
            self.world.call(findings)
        self.train(count)
        self.world.call((then,))
        self.train(count)

    @rule(holds=st.booleans())
    def danger(self, holds):
        """A rule that acts, or a risk that is acted upon, holds from now on, or no longer."""
        self.world.danger = holds

    @precondition(lambda self: not self.world.stopped)
    @rule(findings=held)
    def roll_back_by_hand(self, findings):
        self.world.call(findings, manual="the user knows why")

    @rule()
    def copy_ends(self):
        self.world.copy_ends()

    @rule(age=st.integers(0, 4))
    def pin(self, age):
        """Hold one snapshot, as the user asks."""
        slots = self.world.ring.sound()
        step = slots[age % len(slots)].step
        self.world.both(lambda r: r.ring.pin_manual(step))

    @precondition(lambda self: not (self.world.stopped or self.world.faults))
    @rule()
    def restart(self):
        self.world.restart()

    @precondition(lambda self: self.world.stopped)
    @rule()
    def begin_again(self):
        self.world = World(self.world.guard, self.world.lag)

    # what must hold

    @invariant()
    def verified_slots_are_clean(self):
        for slot in self.world.ring.verified():
            assert not self.world.contents[slot.index], "a verified snapshot holds a fault"

    @invariant()
    def there_is_a_restorer(self):
        assert self.world.ring.verified()

    @invariant()
    def one_timeline(self):
        unused = (SlotState.FREE, SlotState.ASIDE)
        steps = [s.step for s in self.world.ring.slots if s.state not in unused]
        assert len(steps) == len(set(steps))
        assert max(steps) <= self.world.step

    @invariant()
    def replicas_agree(self):
        first, second = self.world.replicas
        assert first.plain() == second.plain()

    @invariant()
    def the_newest_verified_is_not_old(self):
        """On a healthy stretch; pins may hold slots for any time."""
        world, ring = self.world, self.world.ring
        newest = ring.verified()[0].step
        if any(slot.manual for slot in ring.slots) or world.faults or world.danger:
            world.disturbed = world.step
        bound = ring.confirm + world.lag + 2 * ring.every + 1 + LONGEST_COPY
        slowest = max(bound, 2 * (ring.confirm + world.lag + LONGEST_COPY) + bound)
        since = min(world.step - newest, world.step - min(world.disturbed, world.step))
        assert since <= slowest


Guarded.TestCase.settings = settings(
    max_examples=1500,
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
