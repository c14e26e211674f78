"""Series that forget where, but never how low or how high."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stableopt.recorded.trace import Trace

values = st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=300)


@settings(deadline=None)
@given(values=values, half=st.integers(1, 16))
def test_nothing_that_matters_is_lost(values, half):
    trace = Trace(capacity=2 * half)
    for x, value in enumerate(values):
        trace.add(x, value)

    finite = [value for value in values if math.isfinite(value)]
    assert len(trace.buckets) <= 2 * half
    assert trace.count == len(values) == sum(b.count for b in trace.buckets)
    assert trace.low == min(finite, default=None)
    assert trace.high == max(finite, default=None)
    assert trace.nonfinite == len(values) - len(finite)
    assert sum(b.undefined for b in trace.buckets) == sum(map(math.isnan, values))
    if values:
        assert (trace.first, trace.last) == pytest.approx((values[0], values[-1]), nan_ok=True)


@given(count=st.integers(1, 300))
def test_buckets_follow_each_other(count):
    trace = Trace(capacity=8)
    for x in range(count):
        trace.add(x, float(x))

    edges = [edge for b in trace.buckets for edge in (b.start, b.end)]
    assert edges == sorted(edges)
    assert (edges[0], edges[-1]) == (0, count - 1)
    for bucket in trace.buckets:
        assert (bucket.first, bucket.low) == (bucket.start, bucket.start)
        assert (bucket.last, bucket.high) == (bucket.end, bucket.end)
    assert max(b.count for b in trace.buckets) <= trace.merged


def test_a_bucket_that_begins_with_nan():
    trace = Trace(capacity=2)
    for x, value in enumerate([math.nan, 3.0, 1.0, math.inf]):
        trace.add(x, value)

    first, last = trace.buckets
    assert (first.first, first.last, first.undefined) == (3.0, 3.0, 1)
    assert (last.first, last.last, last.infinite) == (1.0, 1.0, 1)
