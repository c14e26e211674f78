"""The account of the sensors: never more than their share, and a little in advance."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stableopt.sensors.governor import CREDIT, Governor


@given(
    budget=st.floats(0.001, 0.2),
    steps=st.lists(st.tuples(st.floats(0.0, 2.0), st.floats(0.0, 0.5)), max_size=200),
)
def test_no_more_than_the_share_and_the_advance_is_spent(budget, steps):
    governor = Governor(budget)
    now = longest = 0.0
    for passed, wanted in steps:
        now += passed
        if governor.allows(now):
            governor.charge(wanted)
            longest = max(longest, wanted)
    assert governor.spent <= budget * now + CREDIT + longest + 1e-9


def test_sensors_that_take_twice_their_share_run_half_of_the_time():
    governor = Governor(0.01)
    ran = 0
    for step in range(20_000):
        if governor.allows(now=step * 1.0):
            governor.charge(0.02)
            ran += 1
    assert ran == pytest.approx(10_000, abs=2 + CREDIT / 0.01)
    assert governor.share(now=20_000.0) == pytest.approx(0.01, rel=0.01)


def test_a_long_pause_earns_no_more_than_the_advance():
    governor = Governor(0.01)
    governor.allows(now=0.0)
    governor.charge(3 * CREDIT)
    assert not governor.allows(now=1.0)
    assert governor.allows(now=1e6)
    governor.charge(CREDIT * 1.01)
    assert not governor.allows(now=1e6)


def test_without_a_budget_everything_is_allowed_and_counted():
    governor = Governor(None)
    assert governor.allows(now=0.0)
    governor.charge(100.0)
    assert governor.allows(now=10.0)
    assert governor.share(now=200.0) == 0.5


def test_nothing_was_spent_before_anything_was_asked():
    assert Governor(0.01).share() == 0.0
