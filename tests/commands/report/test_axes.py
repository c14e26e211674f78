"""Axes: where values lie, and what is written beside them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stableopt.commands.report.axes import Axis, fitted, span
from stableopt.recorded.trace import Trace

finite = st.floats(allow_nan=False, allow_infinity=False)


def traced(values):
    trace = Trace()
    for x, value in enumerate(values):
        trace.add(x, value)
    return trace


@given(st.lists(st.floats(), max_size=50), st.booleans())
def test_every_axis_is_an_interval_with_few_numbers(values, linear):
    y = fitted(traced(values), linear=linear)
    if y is None:
        assert not any(map(math.isfinite, values))
        return
    assert y.low < y.high
    assert not y.logarithmic or (y.low > 0 and not linear)
    ticks = y.ticks()
    assert ticks == sorted(ticks)
    assert len(ticks) <= 25
    for value in values:
        if math.isfinite(value):
            assert 0 <= y.at(value) <= 1


@given(finite, finite)
def test_spans(low, high):
    x = span(low, high)

    assert x.low < x.high
    assert 0 <= x.at(low) <= 1


@given(st.floats(1e-6, 1e6), st.floats(1.0, 1e6))
def test_order_is_kept(low, ratio):
    y = Axis(low=low, high=low * ratio * 1.01, logarithmic=True)
    places = [y.at(low * ratio**share) for share in (0, 0.3, 0.9)]

    assert places == sorted(places)


def test_lines_of_a_wide_range_are_logarithmic():
    assert fitted(traced([1.0, 100.0])).logarithmic
    assert not fitted(traced([1.0, 100.0]), linear=True).logarithmic
    assert not fitted(traced([1.0, 2.0])).logarithmic
    assert not fitted(traced([-1.0, 100.0])).logarithmic


def test_a_single_peak_is_left_out_and_a_plateau_is_not():
    peak = fitted(traced([1.0] * 99 + [1e9]))
    plateau = fitted(traced([1.0] * 50 + [1e9] * 50))

    assert peak.high < 10
    assert plateau.high >= 1e9


@pytest.mark.parametrize(
    ("axis", "ticks"),
    [
        (Axis(low=0, high=1), [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (Axis(low=1, high=900), [200, 400, 600, 800]),
        (Axis(low=0.5, high=9, logarithmic=True), [0.5, 1, 2, 5]),
        (Axis(low=1e-9, high=1.0, logarithmic=True), [1e-9, 1e-7, 1e-5, 1e-3, 1e-1]),
    ],
)
def test_ticks(axis, ticks):
    assert axis.ticks() == pytest.approx(ticks)
