"""What ranks say in the sum of a step, and what follows from it; no process is started."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stableopt.ranks.message import FLAGS, SLOTS, Said, clock_of, pack, unpack
from stableopt.ranks.words import merged
from stableopt.types import Finding, Scope

NUMBERS = st.floats(-1e6, 1e6)
SAID = st.builds(
    Said,
    **{name: st.booleans() for name in FLAGS},
    loss=st.none() | NUMBERS,
    square=st.none() | st.floats(0, 1e12),
    groups=st.dictionaries(st.integers(0, SLOTS - 1), st.floats(0, 1e12)),
    signals=st.fixed_dictionaries({"a": st.none() | NUMBERS, "b": st.none() | NUMBERS}),
    clock=st.just(7),
)


def agreed(ranks, names=("a", "b")):
    total = [sum(numbers) for numbers in zip(*map(pack, ranks), strict=True)]
    return unpack(total, len(ranks), names)


@given(st.lists(SAID, min_size=1, max_size=8))
def test_what_ranks_agree_on(ranks):
    found = agreed(ranks)
    assert found.flags == {name for name in FLAGS if any(getattr(said, name) for said in ranks)}
    losses = [said.loss for said in ranks if said.loss is not None]
    assert found.loss == (pytest.approx(sum(losses) / len(losses)) if losses else None)
    squares = [said.square for said in ranks if said.square is not None]
    assert found.norm == (pytest.approx(math.sqrt(sum(squares))) if squares else None)
    for name in ("a", "b"):
        values = [said.signals[name] for said in ranks if said.signals[name] is not None]
        assert found.signals.get(name) == (
            pytest.approx(sum(values) / len(values)) if values else None
        )
    for slot in range(SLOTS):
        squares = [said.groups.get(slot, 0.0) for said in ranks]
        assert found.groups[slot] == pytest.approx(math.sqrt(sum(squares)))
    assert found.in_step


@given(st.lists(SAID, min_size=2, max_size=4))
def test_every_rank_sends_as_many_numbers(ranks):
    assert len({len(pack(said)) for said in ranks}) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_reaches_everybody(value):
    found = agreed([Said(loss=1.0), Said(loss=value), Said()], names=())
    assert not math.isfinite(found.loss)


def test_norms_of_all_ranks_overflow_in_no_square():
    assert agreed([Said(square=1e38**2), Said(square=1e38**2)], names=()).norm > 1e38


@given(st.lists(st.integers(0, 2**16 - 1), min_size=2, max_size=1_024))
def test_clocks_that_differ_are_seen(clocks):
    found = agreed([Said(clock=clock) for clock in clocks], names=())
    assert found.in_step == (len(set(clocks)) == 1)


def test_a_clock_is_of_everything():
    assert clock_of(1, 2) == clock_of(1, 2) != clock_of(2, 1)


def finding(message, **options):
    return Finding(kind="nonfinite_weight", message=message, scope=Scope.STATE, **options)


class TestWords:
    def test_what_everybody_says_is_said_once(self):
        mine = finding("a is NaN", value=math.nan)
        theirs = finding("a is NaN", value=float("nan"))
        assert merged([(mine,), (theirs,)]) == (mine,)

    def test_what_some_say_has_their_numbers(self):
        one, two = finding("a is NaN"), finding("b is NaN")
        found = merged([(one,), (two, one), (one,), (two,)])
        assert [f.message for f in found] == [
            "on ranks 0, 1, 2 a is NaN",
            "on ranks 1, 3 b is NaN",
        ]

    def test_nothing(self):
        assert merged([(), ()]) == ()

    def test_a_rank_that_says_it_twice_counts_once(self):
        one = finding("a is NaN")
        assert merged([(one, one), ()])[0].message == "on rank 0 a is NaN"
