"""Which weights are visited when: coverage, order, and bad options."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stableopt import ConfigError
from stableopt.sensors import Sampler

NAMES = [f"layers.{i}.weight" for i in range(11)]


@given(
    count=st.integers(1, 40),
    ratio=st.floats(0.01, 1.0),
    first=st.integers(0, 1000),
    seed=st.integers(0, 99),
)
def test_round_robin_visits_every_weight_within_its_coverage(count, ratio, first, seed):
    names = [f"w{i}" for i in range(count)]
    sampler = Sampler(ratio=ratio, every=10, seed=seed)
    turns = sampler.coverage // sampler.every
    seen = [sampler.pick(names, first + turn, step=0) for turn in range(turns)]
    assert set().union(*seen) == set(names)
    assert all(len(set(picked)) == len(picked) for picked in seen)
    assert {len(picked) for picked in seen} == {min(count, max(1, math.ceil(ratio * count)))}


@pytest.mark.parametrize("order", ["round_robin", "random"])
def test_the_order_of_the_parameters_does_not_matter(order):
    sampler = Sampler(ratio=0.3, order=order)
    for turn in range(10):
        there = sampler.pick(NAMES, turn, step=10 * turn)
        assert sampler.pick(NAMES[::-1], turn, step=10 * turn) == there


def test_random_draws_anew_at_every_step_and_the_same_again():
    sampler = Sampler(ratio=0.3, order="random")
    drawn = [tuple(sampler.pick(NAMES, 0, step)) for step in range(20)]
    assert len(set(drawn)) > 10
    assert drawn == [tuple(sampler.pick(NAMES, 5, step)) for step in range(20)]
    assert drawn != [
        tuple(Sampler(0.3, order="random", seed=1).pick(NAMES, 0, s)) for s in range(20)
    ]


def test_it_is_due_at_the_start_and_read_with_every_tenth_step():
    assert [step for step in range(45) if Sampler().due(step)] == [0, 9, 19, 29, 39]
    assert all(Sampler(every=1).due(step) for step in range(5))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("ratio", 0),
        ("ratio", 1.5),
        ("ratio", math.nan),
        ("ratio", "all"),
        ("ratio", True),
        ("every", 0),
        ("every", 2.0),
        ("every", True),
        ("seed", -1),
        ("order", "alphabetical"),
    ],
)
def test_bad_options(option, value):
    with pytest.raises(ConfigError, match=rf"^{option}={value!r} must be "):
        Sampler(**{option: value})
