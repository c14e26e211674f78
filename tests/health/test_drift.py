"""The course of a metric: what leaves it is seen, what belongs to it is not."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stableopt.health.spectra.drift import KEPT, LAWS, LEARNED, RELEARNED, Course, DriftDetector
from stableopt.types import FOLLOWED

BAD = {
    "effective_rank": 0.5,
    "kappa_p10": 2.0,
    "spectral_norm": 2.0,
    "fiedler": 0.5,
    "redundancy": 2.0,
}
"""Factors that take each metric where it should not go."""


def feed(values, metric="effective_rank", every=10):
    """Return the drift at each of ``values``, visited every so many steps."""
    detector = DriftDetector(spacing=1)
    return [detector.judge("w", metric, v, every * i) for i, v in enumerate(values)]


@given(
    value=st.floats(1e-30, 1e30),
    metric=st.sampled_from(sorted(LAWS)),
    steps=st.lists(st.integers(1, 500), min_size=1, max_size=60),
)
def test_a_constant_never_drifts(value, metric, steps):
    detector = DriftDetector(spacing=1)
    step = 0
    for gap in steps:
        step += gap
        assert detector.judge("w", metric, value, step) is None


@given(
    slope=st.floats(-0.02, 0.02),
    metric=st.sampled_from(sorted(LAWS)),
    gaps=st.lists(st.sampled_from([10, 20, 80]), min_size=10, max_size=60),
)
def test_a_steady_course_is_no_drift(slope, metric, gaps):
    detector = DriftDetector(spacing=1)
    step = 0
    for gap in gaps:
        step += gap
        x = slope * step / 10
        value = math.exp(x) if LAWS[metric].logarithm else x
        assert detector.judge("w", metric, value, step) is None


@pytest.mark.parametrize("metric", sorted(LAWS))
def test_a_step_the_wrong_way_is_seen_at_once_and_confirmed_by_the_next(metric):
    found = feed([1.0] * KEPT + [BAD[metric]] * 2, metric)
    assert found[:KEPT] == [None] * KEPT
    first, second = found[KEPT:]
    assert not first.confirmed
    assert second.confirmed
    assert second.value == BAD[metric]
    assert first.expected == pytest.approx(1.0)
    assert second.expected == first.expected, "a flagged value has entered the course"


@pytest.mark.parametrize("metric", sorted(LAWS))
def test_a_step_the_right_way_is_none(metric):
    assert feed([1.0] * KEPT + [1 / BAD[metric]] * 10, metric)[KEPT:] == [None] * 10


@pytest.mark.parametrize("metric", sorted(LAWS))
def test_nothing_is_judged_before_the_course_is_known(metric):
    wild = [1.0, BAD[metric]] * (LEARNED // 2)
    assert feed(wild, metric) == [None] * LEARNED


def test_flagged_values_are_no_part_of_the_course():
    course = Course(LAWS["effective_rank"], spacing=1)
    for step in range(KEPT):
        course.judge(step, 1.0)
    before = list(course.visits)
    for step in range(KEPT, KEPT + RELEARNED - 1):
        assert course.judge(step, 0.5) is not None
        assert course.visits == before


def test_one_odd_value_is_forgotten():
    values = [1.0] * KEPT + [0.5] + [1.0] * 3 + [0.5] + [1.0]
    found = feed(values)
    assert [drift is not None for drift in found[KEPT:]] == [True, False, False, False, True, False]
    assert not any(drift.confirmed for drift in found if drift)
    assert {drift.expected for drift in found if drift} == {1.0}


def test_visits_that_are_close_together_are_judged_and_not_learned():
    detector = DriftDetector(spacing=40)
    for step in range(0, 40 * LEARNED, 10):
        assert detector.judge("w", "effective_rank", 1.0, step) is None
    assert not detector.learns("w", step)
    visits = detector.state_dict()["w"]["effective_rank"]["visits"]
    assert [at for at, _ in visits] == list(range(0, 40 * LEARNED, 40))
    assert detector.judge("w", "effective_rank", 0.5, step + 1) is not None


def test_a_course_that_is_being_learned_is_visited_at_its_spacing():
    detector = DriftDetector(spacing=40)
    detector.judge("w", "effective_rank", 1.0, 100)
    asked = [detector.learns("w", step) for step in (110, 139, 140, 200)]
    assert asked == [False, False, True, True]


def test_a_trend_that_turns_has_room():
    # The slopes of an early course vary: that it goes on is likely, not certain.
    values = [math.exp(-0.05 * i + 0.003 * i * i) for i in range(9)]
    detector = DriftDetector(spacing=1)
    for i, value in enumerate(values):
        detector.judge("w", "effective_rank", value, 40 * i)
    assert detector.judge("w", "effective_rank", values[-1] * 0.85, 40 * 8 + 80) is None
    assert detector.judge("w", "effective_rank", values[-1] * 0.4, 40 * 8 + 80) is not None


def test_what_is_undefined_is_neither_seen_nor_learned():
    for value in (math.nan, math.inf, -1.0, 0.0):
        course = Course(LAWS["effective_rank"], spacing=1)
        for step in range(KEPT):
            assert course.judge(step, value) is None
        assert course.visits == []
    found = feed([1.0] * KEPT + [0.5, math.nan, 0.5])
    assert found[-1].confirmed, "an undefined value has ended the row"


def test_the_new_place_is_learned_after_six_in_a_row():
    found = feed([1.0] * KEPT + [0.5] * (RELEARNED + KEPT) + [0.25] * 2)
    flagged = [drift is not None for drift in found[KEPT:]]
    assert flagged == [True] * RELEARNED + [False] * KEPT + [True] * 2
    assert found[-1].expected == pytest.approx(0.5)


def test_noise_of_a_healthy_course_is_no_confirmed_drift():
    draw = random.Random(0)
    for metric in sorted(LAWS):
        for spread in (0.002, 0.02):
            values = [math.exp(draw.gauss(0, spread)) for _ in range(600)]
            confirmed = sum(d.confirmed for d in feed(values, metric) if d)
            assert confirmed == 0, (metric, spread)


def test_a_metric_without_a_law_is_not_followed():
    assert feed([1.0] * 20 + [1e9], "stable_rank") == [None] * 21


def test_weights_and_metrics_do_not_mix():
    detector = DriftDetector(spacing=1)
    for step in range(KEPT):
        detector.judge("a", "effective_rank", 1.0, step)
        detector.judge("a", "kappa_p10", 5.0, step)
        detector.judge("b", "effective_rank", 100.0, step)
    assert detector.judge("b", "effective_rank", 1.0, KEPT) is not None
    assert detector.judge("a", "effective_rank", 1.0, KEPT) is None
    assert detector.judge("c", "effective_rank", 1.0, KEPT) is None
    assert [detector.learns(name, 99) for name in "abcd"] == [False, False, True, False]


def test_the_state_is_plain_and_goes_on():
    draw = random.Random(1)
    values = [math.exp(draw.gauss(0, 0.05)) for _ in range(40)] + [0.3, 0.3]
    whole = feed(values)
    for cut in (3, 20, 41):
        first, second = DriftDetector(spacing=1), DriftDetector(spacing=1)
        for i, value in enumerate(values[:cut]):
            first.judge("w", "effective_rank", value, 10 * i)
        second.load_state_dict(first.state_dict())
        rest = [
            second.judge("w", "effective_rank", value, 10 * (cut + i))
            for i, value in enumerate(values[cut:])
        ]
        assert rest == whole[cut:]


def test_the_metrics_that_triggers_know_are_those_with_a_law():
    assert tuple(LAWS) == FOLLOWED
