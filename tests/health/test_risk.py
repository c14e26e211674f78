"""From tiers and drifts to a level: what each level means, how it rises and how it falls."""

from __future__ import annotations

import math

import pytest

from stableopt.health.spectra.kappa_slope import (
    DANGER,
    LEARNING,
    SETTLING,
    WARNING,
    WINDOW,
    KappaSlope,
)
from stableopt.health.spectra.risk import HELD, SpectralRisk, WeightHealth
from stableopt.health.spectra.tiers import SMALLEST, TIERS, standing_of
from stableopt.types import Drift, Reading, RiskLevel, Standing


class Slopes:
    """Courses that are known by how steep they are."""

    def __init__(self, of):
        self.of = of

    def slope(self, name, metric):
        assert metric == "effective_rank"
        return self.of(name)


def reading(metric="relative_rank", value=0.9, standing=None, name="w"):
    if standing is None:
        standing = standing_of(metric, value, 64, 64)
    return Reading(name=name, metric=metric, value=value, step=0, standing=standing)


def drift(metric):
    return Drift(
        name="w", metric=metric, value=0.5, step=9, expected=1.0, limit=0.9, confirmed=True
    )


def health(*readings, drifts=()):
    return WeightHealth(
        readings={r.metric: r for r in readings}, drifts=tuple(drift(m) for m in drifts)
    )


HEALTHY = health(reading())
WARNED = health(reading(value=0.55))
DRIFTING = health(reading(), drifts=["effective_rank"])
ENDANGERED = health(reading(value=0.3))
NOT_FINITE = health(reading("spectral_norm", math.nan, Standing.DANGER))
UNDEFINED = health(reading(value=math.nan))


def level(*weights, slope=0.0):
    risk = SpectralRisk(Slopes(lambda name: slope))
    found = risk.assess(0, {f"w{i}": weight for i, weight in enumerate(weights)})
    return None if found is None else found.level


class TestTiers:
    @pytest.mark.parametrize("metric", TIERS)
    def test_each_limit_divides_healthy_from_sick(self, metric):
        tier = TIERS[metric]
        better, worse = (1.01, 0.99) if tier.low_is_bad else (0.99, 1.01)
        assert standing_of(metric, tier.warning * better, 64, 64) is Standing.HEALTHY
        assert standing_of(metric, tier.warning * worse, 64, 64) is Standing.WARNING
        if tier.danger is not None:
            assert standing_of(metric, tier.danger * better, 64, 64) is Standing.WARNING
            assert standing_of(metric, tier.danger * worse, 64, 64) is Standing.DANGER

    def test_infinite_is_beyond_every_limit(self):
        assert standing_of("relative_kappa_p10", math.inf, 64, 64) is Standing.WARNING

    @pytest.mark.parametrize("metric", [*TIERS, "spectral_norm"])
    def test_undefined_is_never_healthy(self, metric):
        assert standing_of(metric, math.nan, 64, 64) is Standing.UNDEFINED

    def test_small_weights_and_other_metrics_are_not_judged(self):
        assert standing_of("relative_rank", 0.1, SMALLEST - 1, 900) is Standing.UNJUDGED
        assert standing_of("relative_rank", 0.1, 900, SMALLEST - 1) is Standing.UNJUDGED
        assert standing_of("relative_rank", 0.1, SMALLEST, SMALLEST) is Standing.DANGER
        assert standing_of("spectral_norm", 1e9, 64, 64) is Standing.UNJUDGED


class TestLevels:
    def test_what_each_means(self):
        assert level() is None
        assert level(UNDEFINED) is None
        assert level(HEALTHY, UNDEFINED) is RiskLevel.STABLE
        moving = health(reading(), reading("effective_rank", 60.0))
        assert level(moving) is RiskLevel.STABLE
        assert level(moving, slope=2e-4) is RiskLevel.LEARNING
        assert level(moving, slope=-2e-4) is RiskLevel.LEARNING
        assert level(moving, slope=None) is RiskLevel.LEARNING
        assert level(HEALTHY, slope=None) is RiskLevel.STABLE
        assert level(HEALTHY, WARNED) is RiskLevel.WARNING
        assert level(HEALTHY, DRIFTING) is RiskLevel.WARNING
        assert level(HEALTHY, ENDANGERED) is RiskLevel.DANGER
        assert level(*[HEALTHY] * 8, ENDANGERED, ENDANGERED) is RiskLevel.INSTABILITY
        assert level(*[HEALTHY] * 30, ENDANGERED, ENDANGERED) is RiskLevel.DANGER
        assert level(*[HEALTHY] * 30, NOT_FINITE) is RiskLevel.INSTABILITY

    def test_a_run_learns_while_half_of_its_weights_move(self):
        slopes = {"a": 1.0, "b": None, "c": 0.0, "d": 0.0, "e": 0.0}
        risk = SpectralRisk(Slopes(slopes.get))
        moving = health(reading(), reading("effective_rank", 60.0))
        names = "abcde"
        assert risk.assess(0, dict.fromkeys(names, moving)).level is RiskLevel.STABLE
        names = "abcd"
        assert risk.assess(1, dict.fromkeys(names, moving)).level is RiskLevel.LEARNING

    def test_drifts_alone_are_a_warning_however_many_there_are(self):
        metrics = ["effective_rank", "kappa_p10", "spectral_norm", "redundancy", "fiedler"]
        assert level(health(reading(), drifts=metrics)) is RiskLevel.WARNING

    def test_the_reason_names_the_worst_first(self):
        risk = SpectralRisk(Slopes(lambda name: 0.0))
        weights = {"a": ENDANGERED, "b": NOT_FINITE, "c": HEALTHY, "d": WARNED}
        found = risk.assess(0, weights)
        assert found.where == ("b", "a")
        assert found.reason == "b: it is not finite (and 1 more)"
        found = SpectralRisk(Slopes(lambda name: 0.0)).assess(0, {"a": WARNED})
        assert found.reason == "a: relative_rank 0.55 below 0.6"
        found = SpectralRisk(Slopes(lambda name: 0.0)).assess(0, {"a": DRIFTING})
        assert found.reason == ("a: effective_rank 0.5 where its course predicts 1 (limit 0.9)")

    def test_it_rises_at_once_and_falls_after_a_while(self):
        risk = SpectralRisk(Slopes(lambda name: 0.0))
        levels = [
            risk.assess(i, {"w": weight}).level
            for i, weight in enumerate([HEALTHY, WARNED, ENDANGERED, *[HEALTHY] * (HELD + 1)])
        ]
        assert levels == [
            RiskLevel.STABLE,
            RiskLevel.WARNING,
            *[RiskLevel.DANGER] * HELD,
            RiskLevel.STABLE,
            RiskLevel.STABLE,
        ]

    def test_the_state_is_plain_and_goes_on(self):
        first, second = (SpectralRisk(Slopes(lambda name: 0.0)) for _ in range(2))
        for weight in (ENDANGERED, HEALTHY):
            first.assess(0, {"w": weight})
        second.load_state_dict(first.state_dict())
        assert second.assess(1, {"w": HEALTHY}) == first.assess(1, {"w": HEALTHY})
        assert second.assess(2, {"w": HEALTHY}).level is RiskLevel.STABLE


class TestKappaSlope:
    def levels(self, logs, every=50):
        risk = KappaSlope()
        found = []
        for i, x in enumerate(logs):
            weight = health(reading("kappa_tilde", math.exp(x), Standing.UNJUDGED))
            found.append(risk.assess(every * i, {"w": weight}))
        return [None if f is None else f.level for f in found]

    @pytest.mark.parametrize(
        ("slope", "expected"),
        [
            (0.0, RiskLevel.STABLE),
            (-0.01, RiskLevel.STABLE),
            (0.9 * LEARNING, RiskLevel.STABLE),
            (1.1 * LEARNING, RiskLevel.LEARNING),
            (1.1 * WARNING, RiskLevel.WARNING),
            (1.1 * DANGER, RiskLevel.DANGER),
        ],
    )
    def test_the_level_is_that_of_the_slope(self, slope, expected):
        before = WINDOW + SETTLING
        found = self.levels([3 + slope * 50 * i for i in range(before + 1)])
        assert found == [None] * before + [expected]

    def test_volatile_slopes_are_an_instability(self):
        logs = [3.0]
        for i in range(2 * (WINDOW + SETTLING)):
            logs.append(logs[-1] + 50 * 0.004 * math.cos(1.3 * i))
        assert RiskLevel.INSTABILITY in self.levels(logs)
        calm = [3 + (x - 3) / 10 for x in logs]
        assert set(self.levels(calm)[WINDOW + SETTLING :]) <= {
            RiskLevel.STABLE,
            RiskLevel.LEARNING,
        }

    def test_a_fast_start_and_a_single_jump_are_none(self):
        start = [3 - 2 * math.exp(-i) for i in range(15)]
        assert set(self.levels(start)[WINDOW + SETTLING :]) == {RiskLevel.STABLE}
        jump = [3.0] * 14 + [5.0] * 10
        assert set(self.levels(jump)[WINDOW + SETTLING :]) == {RiskLevel.STABLE}

    def test_undefined_is_left_out_and_named_once_it_was_defined(self):
        risk = KappaSlope()
        zero = health(reading("kappa_tilde", math.nan))
        fine = health(reading("kappa_tilde", 20.0, Standing.UNJUDGED))
        for i in range(WINDOW + SETTLING + 1):
            found = risk.assess(50 * i, {"a": zero, "b": fine})
        assert found.level is RiskLevel.STABLE
        found = risk.assess(9999, {"a": fine, "b": zero})
        assert found.level is RiskLevel.INSTABILITY
        assert found.where == ("b",)

    def test_weights_that_come_later_are_no_slope(self):
        risk = KappaSlope()
        few = health(reading("kappa_tilde", 11.0, Standing.UNJUDGED))
        many = health(reading("kappa_tilde", 90.0, Standing.UNJUDGED))
        for i in range(WINDOW + SETTLING + 5):
            weights = {"a": few} if i < WINDOW + SETTLING else {"a": few, "b": many}
            found = risk.assess(50 * i, weights)
        assert found.level is RiskLevel.STABLE

    def test_the_worst_are_named(self):
        risk = KappaSlope()
        for i in range(WINDOW + SETTLING + 1):
            weights = {
                name: health(reading("kappa_tilde", math.exp(3 + k * i * 50), Standing.UNJUDGED))
                for name, k in (("slow", 0.001), ("fast", 0.009))
            }
            found = risk.assess(50 * i, weights)
        assert found.level is RiskLevel.DANGER
        assert found.where == ("fast", "slow")
        assert "fast" in found.reason

    def test_the_state_is_plain_and_goes_on(self):
        first, second = KappaSlope(), KappaSlope()
        for i in range(WINDOW + SETTLING):
            weight = health(reading("kappa_tilde", 20.0 + i, Standing.UNJUDGED))
            first.assess(50 * i, {"w": weight})
        second.load_state_dict(first.state_dict())
        weights = {"w": weight}
        assert second.assess(999, weights) == first.assess(999, weights) is not None
