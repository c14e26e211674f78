"""The numbers that rules are about, against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stableopt.health.signal_statistics import DECAY, Course, split_metric, statistic_of

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20)


@pytest.mark.parametrize(
    ("metric", "found"),
    [
        ("accuracy", ("accuracy", None)),
        ("accuracy.drop", ("accuracy", "drop")),
        ("a.b.max", ("a.b", "max")),
        ("a.b", ("a.b", None)),
        ("drop", ("drop", None)),
    ],
)
def test_names(metric, found):
    assert split_metric(metric) == found


@given(values=VALUES)
def test_statistics_of_values(values):
    told = torch.tensor(values, dtype=torch.float64)
    mean = math.fsum(values) / len(values)
    assert statistic_of(told, "mean") == pytest.approx(mean, abs=1e-6)
    assert statistic_of(told, "max") == max(values)
    assert statistic_of(told, "min") == min(values)
    assert statistic_of(told, "magnitude") == max(map(abs, values))
    variance = math.fsum((v - mean) ** 2 for v in values) / len(values)
    assert statistic_of(told, "variance") == pytest.approx(variance, rel=1e-6, abs=1e-3)
    parts = {"a": told[: len(values) // 2], "b": {"c": told[len(values) // 2 :]}}
    assert statistic_of(parts, "max") == max(values)


def test_odd_values():
    assert statistic_of(3, "mean") == 3.0
    assert statistic_of(True, "max") == 1.0
    assert statistic_of(torch.tensor([3 + 4j]), "max") == 5.0
    assert statistic_of(torch.tensor([2.0], dtype=torch.bfloat16), "variance") == 0.0
    assert math.isnan(statistic_of(torch.tensor([1.0, math.nan]), "max"))
    assert math.isnan(statistic_of({}, "max"))


@given(values=VALUES)
def test_a_course_is_that_of_the_corrected_average(values):
    course, averages = Course(), []
    for k, value in enumerate(values):
        weights = [DECAY ** (k - i) for i in range(k + 1)]
        known = zip(weights, values[: k + 1], strict=True)
        average = math.fsum(w * v for w, v in known) / math.fsum(weights)
        averages.append(average)
        room = 1e-9 * (1 + max(map(abs, values)))
        drop, rise = max(averages) - average, average - min(averages)
        assert course.statistic(value, "drop") == pytest.approx(drop, abs=room)
        assert course.statistic(value, "rise") == pytest.approx(rise, abs=room)
        course.add(value)
    again = Course.from_state(course.state_dict())
    assert again.state_dict() == course.state_dict()


def test_asking_teaches_nothing_and_neither_does_what_is_not_finite():
    course = Course()
    course.add(1.0)
    known = course.state_dict()
    course.statistic(5.0, "drop")
    for value in (math.nan, math.inf, -math.inf):
        assert math.isnan(course.statistic(value, "drop"))
        course.add(value)
    assert course.state_dict() == known
