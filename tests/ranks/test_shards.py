"""Transforms and sensors see whole weights, whatever part of them a rank holds."""

from __future__ import annotations

import pytest

from tests.ranks import loops
from tests.ranks.world import run


@pytest.fixture(scope="module")
def alone():
    """What one process comes to."""
    return run(loops.all_transformed, "one", ranks=1)[0]


@pytest.mark.parametrize(
    ("mode", "ranks"),
    [
        ("fsdp2", 2),
        pytest.param("hsdp", 4, marks=pytest.mark.slow),
        pytest.param("fsdp2", 3, marks=pytest.mark.slow),
    ],
)
def test_transforms_equal_one_process(alone, mode, ranks):
    for found in run(loops.all_transformed, mode, ranks=ranks, limit=150):
        for name, (weights, changes) in found.items():
            expected, count = alone[name]
            assert changes == count > 0, name
            # Gradients of several ranks are summed in another order; norms are, for clipping.
            most = 1e-6 if name in ("ClipGradNorm", "UpdateCap") or ranks > 2 else 0.0
            for a, b in zip(weights, expected, strict=True):
                assert (a - b).abs().max() <= most, name


def test_everything_switched_on_equals_one_process():
    ((expected, readings, _),) = run(loops.robust, "one", 60, ranks=1)
    for weights, theirs, interventions in run(loops.robust, "fsdp2", 60):
        assert not interventions
        assert theirs.keys() == readings.keys()
        for name, of in readings.items():
            assert theirs[name] == pytest.approx(of, rel=1e-3, nan_ok=True), name
        for a, b in zip(weights, expected, strict=True):
            assert (a - b).abs().max() <= 1e-5


def test_transforms_see_the_largest_of_each_number():
    for found in run(loops.largest_signals):
        assert found == ([1.0, 5.0], {"a": 2.0}, 1.0)


def test_rules_see_the_mean():
    one, other = run(loops.ruled)
    assert one == other == [(3, "score is 3: score > 2")]
