"""The numbers that rules are about, against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stableopt.triggers.signal_statistics import DECAY, FIRST, Course, split_metric, statistics_of

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
    found = statistics_of(told)
    mean = math.fsum(values) / len(values)
    assert found["mean"] == pytest.approx(mean, abs=1e-6)
    assert found["max"] == max(values)
    assert found["min"] == min(values)
    assert found["magnitude"] == max(map(abs, values))
    variance = math.fsum((v - mean) ** 2 for v in values) / len(values)
    assert found["variance"] == pytest.approx(variance, rel=1e-6, abs=1e-3)
    parts = {"a": told[: len(values) // 2], "b": {"c": told[len(values) // 2 :]}}
    assert statistics_of(parts) == pytest.approx(found, rel=1e-9, abs=1e-6)


@pytest.mark.parametrize(
    ("value", "mean"),
    [(3, 3.0), (True, 1.0), (0.1, 0.1), (16777217, 16777217.0), (2e39, 2e39), (-1e-50, -1e-50)],
)
def test_numbers_are_not_rounded(value, mean):
    assert statistics_of(value)["mean"] == mean
    assert statistics_of({"a": value})["max"] == mean
    assert statistics_of(value)["magnitude"] == abs(mean)
    assert statistics_of(value)["variance"] == 0.0


def test_odd_values():
    assert statistics_of(torch.tensor([3 + 4j]))["max"] == 5.0
    assert statistics_of(torch.tensor([2.0], dtype=torch.bfloat16))["variance"] == 0.0
    assert statistics_of(torch.tensor([-128], dtype=torch.int8))["magnitude"] == 128.0
    for broken in (math.nan, torch.tensor([1.0, math.nan]), {"a": 1.0, "b": math.nan}, {}):
        assert all(math.isnan(number) for number in statistics_of(broken).values())
    for end in (math.inf, torch.tensor([1.0, math.inf])):
        found = statistics_of(end)
        assert found["max"] == found["magnitude"] == math.inf
        assert math.isnan(found["variance"])


@given(values=VALUES)
def test_a_course_is_that_of_the_corrected_average(values):
    course, averages = Course(), []
    for k, value in enumerate(values):
        weights = [DECAY ** (k - i) for i in range(k + 1)]
        known = zip(weights, values[: k + 1], strict=True)
        average = math.fsum(w * v for w, v in known) / math.fsum(weights)
        averages.append(average)
        count = [*averages[FIRST - 1 :], average]
        room = 1e-9 * (1 + max(map(abs, values)))
        drop, rise = max(count) - average, average - min(count)
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
