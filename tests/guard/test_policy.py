"""Single decisions of the policy, where the state machine finds them only by luck."""

from __future__ import annotations

import pytest

from stableopt import Guard
from stableopt.guard.policy import Policy
from stableopt.guard.ring import Ring
from stableopt.types import Action, Finding, Scope

LOST = (Finding(kind="nonfinite_weight", message="a weight is NaN", scope=Scope.STATE),)


def ring_with(verified, pending):
    ring = Ring(slots=4, every=1, confirm=1)
    for step in (*verified, *pending):
        ticket = ring.begin(step)
        ring.finish(ticket, sound=True)
        if step in verified:
            ring.accept(ticket)
    return ring


@pytest.mark.parametrize(("attempts", "target"), [(0, 20), (1, 10), (2, 0)])
def test_the_more_attempts_the_older_the_snapshot_and_only_the_first_is_optimistic(
    attempts, target
):
    policy = Policy(Guard())
    policy.attempts = attempts
    verdict = policy.decide(LOST, step=25, ring=ring_with(verified=[0, 10], pending=[20]))
    assert verdict.action is Action.ROLL_BACK
    assert verdict.rollback.to_step == target
    assert verdict.rollback.restores_rng is (attempts == 0)
