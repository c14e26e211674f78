"""Triggers: when they act and how hard, their algebra, hysteresis, their text, their evidence."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stableopt import ConfigError, above, below, drift
from stableopt.health.spectra.drift import LAWS
from stableopt.health.spectra.risk import WeightHealth
from stableopt.transforms.evidence import Known, is_about, signal_about
from stableopt.triggers.conditions import AllOf, AnyOf, check_trigger
from stableopt.triggers.text import parse_trigger
from stableopt.types import Drift, Reading


@dataclass
class Facts:
    """What is known, as a test wants it."""

    values: dict = field(default_factory=dict)
    drifts: dict = field(default_factory=dict)

    def value(self, metric, *, largest):
        known = self.values.get(metric)
        return (max if largest else min)(known) if isinstance(known, list) else known

    def drift(self, metric):
        return self.drifts.get(metric)


def severity(trigger, held=None, **values):
    return trigger.severity(Facts(values), set() if held is None else held)


def off_course(value, limit):
    return Drift(
        name="w", metric="fiedler", value=value, step=9, expected=1.0, limit=limit, confirmed=True
    )


positive = st.floats(1e-6, 1e6)


class TestSeverity:
    @given(limit=positive, value=st.floats(-1e6, 1e6))
    def test_below(self, limit, value):
        found = severity(below("m", limit), m=value)
        if value < limit:
            assert found == min(1.0, (limit - value) / limit)
        else:
            assert found is None

    @given(limit=positive, value=st.floats(-1e6, 1e9))
    def test_above(self, limit, value):
        found = severity(above("m", limit), m=value)
        if value > limit:
            assert found == min(1.0, math.log(value / limit))
        else:
            assert found is None

    @given(limit=positive, value=st.floats(), upper=st.booleans())
    def test_it_is_in_the_unit_interval_whatever_is_read(self, limit, value, upper):
        found = severity((above if upper else below)("m", limit), m=value)
        assert found is None or 0 <= found <= 1

    @pytest.mark.parametrize(
        ("trigger", "value", "expected"),
        [
            (above("m", 10), 10.0, None),
            (above("m", 10), 10 * math.e, 1.0),
            (above("m", 10), 10 * math.sqrt(math.e), pytest.approx(0.5)),
            (above("m", 10), math.inf, 1.0),
            (above("m", 10), -math.inf, None),
            (below("m", 0.5), 0.5, None),
            (below("m", 0.5), 0.25, 0.5),
            (below("m", 0.5), 0.0, 1.0),
            (below("m", 0.5), -3.0, 1.0),
            (below("m", 0.5), -math.inf, 1.0),
            (below("m", 0.5), math.inf, None),
            (above("m", 10, severity=0.3), 1e9, 0.3),
            (below("m", 10, severity=1), 9.9, 1.0),
            (below("m", 10, severity=0), 1.0, 0.0),
        ],
    )
    def test_at_the_ends(self, trigger, value, expected):
        assert severity(trigger, m=value) == expected

    @pytest.mark.parametrize("trigger", [above("m", 1), below("m", 1), drift("fiedler")])
    @pytest.mark.parametrize("value", [None, math.nan])
    def test_what_is_unknown_or_undefined_triggers_nothing(self, trigger, value):
        assert severity(trigger, m=value, fiedler=value) is None

    def test_an_upper_limit_asks_for_the_largest_value_and_a_lower_one_for_the_smallest(self):
        facts = {"m": [0.25, 1.0, 20.0]}
        assert severity(above("m", 10), **facts) == pytest.approx(math.log(2))
        assert severity(below("m", 0.5), **facts) == 0.5


class TestDrift:
    @pytest.mark.parametrize(
        ("value", "limit", "expected"),
        [
            (2.0, 1.0, pytest.approx(math.log(2))),
            (0.5, 1.0, pytest.approx(math.log(2))),
            (100.0, 1.0, 1.0),
            (0.0, 1.0, 1.0),
            (-0.2, 0.1, 1.0),
            (0.1, -0.2, 1.0),
        ],
    )
    def test_it_is_as_hard_as_the_course_is_left(self, value, limit, expected):
        facts = Facts(drifts={"fiedler": off_course(value, limit)})
        assert drift("fiedler").severity(facts, set()) == expected

    def test_on_its_course_it_does_nothing(self):
        facts = Facts({"fiedler": 0.0}, {"spectral_norm": off_course(2.0, 1.0)})
        assert drift("fiedler").severity(facts, set()) is None

    @pytest.mark.parametrize("metric", ["loss", "", 3, None, ["fiedler"]])
    def test_only_metrics_whose_course_is_followed(self, metric):
        with pytest.raises(ConfigError, match=r"^metric=.* has no course.*: use one of .*fiedler"):
            drift(metric)


class TestAlgebra:
    @given(limits=st.lists(st.floats(0.1, 10), min_size=2, max_size=4), value=st.floats(0, 30))
    def test_or_is_the_largest_and_and_the_smallest(self, limits, value):
        parts = [above("m", limit) for limit in limits]
        alone = [severity(part, m=value) for part in parts]
        either = both = parts[0]
        for part in parts[1:]:
            either, both = either | part, both & part
        found = [known for known in alone if known is not None]
        assert severity(either, m=value) == max(found, default=None)
        assert severity(both, m=value) == (None if None in alone else min(found))

    @pytest.mark.parametrize(
        ("a", "b", "c", "expected"),
        [
            (20.0, 0.0, 0.0, None),
            (20.0, 4.0, 0.0, pytest.approx(math.log(2))),
            (20.0, 0.0, 4.0, pytest.approx(math.log(2))),
            (0.0, 4.0, 4.0, None),
            (1e9, 1e9, 3.0, 1.0),
        ],
    )
    def test_nested(self, a, b, c, expected):
        trigger = above("a", 10) & (above("b", 2) | above("c", 2))
        assert severity(trigger, a=a, b=b, c=c) == expected

    def test_one_that_is_unknown_does_not_hide_the_other(self):
        assert severity(above("a", 1) | above("b", 1), a=None, b=9.0) == 1.0
        assert severity(above("a", 1) & above("b", 1), a=None, b=9.0) is None

    def test_every_part_is_asked_so_that_all_know_what_holds(self):
        held = set()
        for trigger in (above("a", 1) | above("b", 1), above("c", 1) & above("d", 1)):
            severity(trigger, held, a=9.0, b=9.0, c=0.0, d=9.0)
        assert held == {"a > 1", "b > 1", "d > 1"}

    def test_the_order_of_parentheses_does_not_matter(self):
        a, b, c = above("a", 1), below("b", 2), drift("fiedler")
        assert (a | b) | c == a | (b | c)
        assert (a & b) & c == a & (b & c)
        assert (a & b) | c != a & (b | c)
        assert [leaf.metric for leaf in ((a & b) | c).leaves()] == ["a", "b", "fiedler"]

    def test_text_may_be_combined_with(self):
        assert above("a", 1) | "b < 2" == above("a", 1) | below("b", 2)

    @pytest.mark.parametrize("other", [3, None, above, "b <"])
    def test_what_is_no_trigger_is_refused(self, other):
        with pytest.raises(ConfigError, match="trigger="):
            above("a", 1) | other

    @pytest.mark.parametrize("kind", [AnyOf, AllOf])
    def test_nothing_is_no_trigger(self, kind):
        with pytest.raises(ConfigError, match=r"^parts=\(\) must be at least one trigger"):
            kind(())


class TestHysteresis:
    def test_it_does_not_flicker_at_the_limit(self):
        def acts(trigger):
            held, values = set(), [9, 11, 9.9, 10.1, 9.9, 10.1, 8.5, 7.9, 9.9, 10.1, 7.9]
            return [severity(trigger, held, m=value) is not None for value in values]

        assert acts(above("m", 10, release=8)) == [0, 1, 1, 1, 1, 1, 1, 0, 0, 1, 0]
        assert acts(above("m", 10)) == [0, 1, 0, 1, 0, 1, 0, 0, 0, 1, 0]

    def test_from_below(self):
        held, trigger = set(), below("m", 1, release=2)
        found = [severity(trigger, held, m=value) for value in (1.5, 0.5, 1.5, 2.0, 1.5)]
        assert found == [None, 0.5, 0.0, None, None]

    def test_while_it_holds_a_severity_that_was_given_stays(self):
        held, trigger = set(), above("m", 10, release=8, severity=0.7)
        assert [severity(trigger, held, m=value) for value in (11, 9, 7)] == [0.7, 0.7, None]

    @pytest.mark.parametrize("value", [None, math.nan])
    def test_it_lets_go_of_what_is_no_longer_known(self, value):
        held, trigger = set(), above("m", 10, release=8)
        assert [severity(trigger, held, m=v) for v in (11, value, 9)] == [
            pytest.approx(math.log(1.1)),
            None,
            None,
        ]

    def test_limits_that_let_go_at_different_values_hold_by_themselves(self):
        held = set()
        soft = above("m", 10, release=2, severity=0.1)
        hard = above("m", 10, release=8, severity=0.9)
        found = [severity(soft | hard, held, m=value) for value in (11, 5, 9)]
        assert found == [0.9, 0.1, 0.1]

    def test_limits_that_are_close_hold_by_themselves(self):
        held, values = set(), (1000001.5, 1000000.5)
        trigger = above("m", 1000001.0, release=1.0) & above("m", 1000000.0)
        assert [severity(trigger, held, m=value) is None for value in values] == [False, False]
        assert len(held) == 2

    @given(st.lists(st.floats(0, 20), max_size=30))
    def test_it_holds_between_the_limit_and_the_release_as_it_did_before(self, values):
        held, trigger, holds = set(), above("m", 10, release=5), False
        for value in values:
            holds = value > (5 if holds else 10)
            assert (severity(trigger, held, m=value) is not None) is holds


names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_./-]{0,8}", fullmatch=True)
limits = st.floats(min_value=1e-300, max_value=1e300)
leaves = (
    st.builds(above, names, limits)
    | st.builds(below, names, limits)
    | st.builds(drift, st.sampled_from(sorted(LAWS)))
)
triggers = st.recursive(
    leaves,
    lambda inner: (
        st.builds(lambda a, b: a | b, inner, inner) | st.builds(lambda a, b: a & b, inner, inner)
    ),
    max_leaves=8,
)


class TestText:
    @given(triggers)
    def test_it_says_everything(self, trigger):
        assert parse_trigger("when", str(trigger)) == trigger

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("a > 1", above("a", 1)),
            ("  a>1e2 ", above("a", 100)),
            ("a/b.c-d < .5", below("a/b.c-d", 0.5)),
            ("a < 1 | b > 2 & fiedler drifts", below("a", 1) | (above("b", 2) & drift("fiedler"))),
            ("(a < 1 | b > 2) & c < 3", (below("a", 1) | above("b", 2)) & below("c", 3)),
            ("((a < 1))", below("a", 1)),
            ("a > 1 | b > 2 | c > 3", above("a", 1) | above("b", 2) | above("c", 3)),
            ("drifts > 2", above("drifts", 2)),
        ],
    )
    def test_it_is_read(self, text, expected):
        assert parse_trigger("when", text) == expected

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "it ends where a metric should be"),
            ("   ", "it ends where a metric should be"),
            ("a", "it ends where '<', '>' or 'drifts' should be"),
            ("a >", "it ends where a number should be"),
            ("a > b", "'b' is where a number should be"),
            ("a > .", "'.' is where a number should be"),
            ("a b 3", "'b' is where '<', '>' or 'drifts' should be"),
            ("5 > 3", "'5' is where a metric should be"),
            ("& > 3", "'&' is where a metric should be"),
            ("a > 1 | | b > 1", r"'\|' is where a metric should be"),
            ("a >= 3", "'= 3' is not understood"),
            ("(a > 3", "a parenthesis is not closed"),
            ("a > 3)", r"'\)' is left over"),
            ("a > 3 4", "'4' is left over"),
            ("a > 3 or b > 4", "'or' is left over"),
            ("a > -3", r"^limit=-3.0 must be a number above 0: the bound on a"),
            ("a > 0", r"^limit=0.0 must be a number above 0"),
            ("a > inf", "^limit=inf must be finite"),
            ("a > 1e999", "^limit=inf must be finite"),
            ("a > nan", "^limit=nan must be a number above 0"),
            ("loss drifts", "^metric='loss' has no course"),
        ],
    )
    def test_what_is_no_trigger_is_refused(self, text, message):
        with pytest.raises(ConfigError, match=message) as caught:
            parse_trigger("when", text)
        told = str(caught.value)
        assert told.startswith(("limit=", "metric=")) or (
            told.startswith(f"when={text!r} is no trigger") and "metric < number" in told
        )

    @given(st.text("ab<>|&() 1.e-", max_size=20))
    def test_any_text_is_a_trigger_or_a_config_error(self, text):
        try:
            found = parse_trigger("when", text)
        except ConfigError:
            return
        assert parse_trigger("when", str(found)) == found


WRONG = [
    (above, {"metric": "", "limit": 1}, r"^metric='' must be the name"),
    (above, {"metric": 3, "limit": 1}, r"^metric=3 must be the name"),
    (below, {"limit": 0}, r"^limit=0 must be a number above 0: the bound on m"),
    (below, {"limit": -1.0}, r"^limit=-1.0 must be a number above 0"),
    (below, {"limit": math.nan}, r"^limit=nan must be a number above 0"),
    (above, {"limit": True}, r"^limit=True must be a number above 0"),
    (above, {"limit": "10"}, r"^limit='10' must be a number above 0"),
    (above, {"limit": math.inf}, r"^limit=inf must be finite: nothing is beyond it"),
    (below, {"limit": 10**400}, r"^limit=10+ must be finite"),
    (above, {"limit": 1, "release": 1.5}, r"^release=1.5 must be at most limit=1"),
    (above, {"limit": 1, "release": 0}, r"^release=0 must be a number above 0"),
    (above, {"limit": 1, "release": math.nan}, r"^release=nan must be a number above 0"),
    (above, {"limit": 1, "release": "1"}, r"^release='1' must be a number above 0"),
    (below, {"limit": 1, "release": 0.5}, r"^release=0.5 must be at least limit=1"),
    (below, {"limit": 1, "release": "2"}, r"^release='2' must be a number"),
    (below, {"limit": 1, "release": math.inf}, r"^release=inf must be a number .* at most"),
    (below, {"limit": 1, "severity": 1.1}, r"^severity=1.1 must be a number from 0 to 1"),
    (below, {"limit": 1, "severity": -0.1}, r"^severity=-0.1 must be a number from 0 to 1"),
    (above, {"limit": 1, "severity": math.nan}, r"^severity=nan must be a number from 0 to 1"),
    (above, {"limit": 1, "severity": True}, r"^severity=True must be a number from 0 to 1"),
    (above, {"limit": 1, "severity": "1"}, r"^severity='1' must be a number from 0 to 1"),
]


@pytest.mark.parametrize(("make", "options", "message"), WRONG)
def test_a_limit_that_cannot_be_is_refused(make, options, message):
    with pytest.raises(ConfigError, match=message):
        make(**{"metric": "m", **options})


def test_what_is_given_as_a_trigger():
    trigger = above("m", 1)
    assert check_trigger("when", trigger) is trigger
    assert check_trigger("when", "m > 1") == trigger
    for value in (None, 3, above, AnyOf, ["m > 1"]):
        with pytest.raises(ConfigError, match=r"^when=.* must be a trigger, e\.g\. above\("):
            check_trigger("when", value)


class TestSignals:
    @pytest.mark.parametrize(
        ("signal", "largest", "expected"),
        [
            (3, True, 3.0),
            (2.5, False, 2.5),
            (math.inf, True, math.inf),
            (math.nan, True, None),
            (None, True, None),
            (torch.tensor(4.0), True, 4.0),
            (torch.tensor([[1.0, 7.0], [2.0, -3.0]]), True, 7.0),
            (torch.tensor([[1.0, 7.0], [2.0, -3.0]]), False, -3.0),
            (torch.tensor([3 + 4j, 1j]), True, 5.0),
            (torch.tensor([3 + 4j, 1j]), False, 1.0),
            (torch.tensor([True, False]), True, 1.0),
            (torch.tensor([1.0, math.nan]), True, None),
            (torch.tensor([]), True, None),
            (torch.tensor([2, 5], dtype=torch.int32), False, 2.0),
            ({}, True, None),
        ],
    )
    def test_numbers_and_tensors(self, signal, largest, expected):
        assert signal_about(signal, "w", largest=largest) == expected

    def test_the_more_specific_key_wins(self):
        signal = {
            "layers": 1.0,
            "layers.1": torch.tensor([2.0, 9.0]),
            "layers.1.attention.weight": 3.0,
            "layers.10": 4.0,
            "lay": 5.0,
        }

        def found(name):
            return signal_about(signal, name, largest=True)

        assert found("layers.0.weight") == 1.0
        assert found("layers.1.mlp.weight") == 9.0
        assert found("layers.1.attention.weight") == 3.0
        assert found("layers.10.weight") == 4.0
        assert found("layers") == 1.0
        assert found("layersX.weight") is None
        assert found("head.weight") is None

    def test_dicts_in_dicts(self):
        signal = {"layers": {"layers.1": {"layers.1.w": 3.0}, "layers.2": 4.0}, "head": 1.0}
        assert signal_about(signal, "layers.1.w", largest=True) == 3.0
        assert signal_about(signal, "layers.2.w", largest=True) == 4.0
        assert signal_about(signal, "layers.3.w", largest=True) is None

    def test_names(self):
        assert is_about("a.b", "a.b")
        assert is_about("a", "a.b")
        assert not is_about("a.b", "a")
        assert not is_about("a", "ab")


class TestKnown:
    def reading(self, value):
        return Reading(name="w", metric="spectral_norm", value=value, step=3)

    def health(self, value, drifts=()):
        readings = {"spectral_norm": self.reading(value)}
        return WeightHealth(readings=readings, drifts=drifts, shape=(4, 4))

    def test_a_reading_comes_before_a_signal_of_the_same_name(self):
        known = Known("w", self.health(2.0), {"spectral_norm": 5.0, "noise": {"w": 7.0}})
        assert known.value("spectral_norm", largest=True) == 2.0
        assert known.value("noise", largest=True) == 7.0
        assert known.value("other", largest=True) is None

    def test_a_reading_that_is_undefined_is_not_known(self):
        known = Known("w", self.health(math.nan), {"spectral_norm": 5.0})
        assert known.value("spectral_norm", largest=True) is None

    def test_what_no_sensor_has_visited_is_known_by_signals_alone(self):
        known = Known("w", None, {"spectral_norm": 5.0})
        assert known.value("spectral_norm", largest=True) == 5.0
        assert known.drift("spectral_norm") is None

    def test_drifts(self):
        left = off_course(2.0, 1.0)
        known = Known("w", self.health(2.0, (left,)), {})
        assert known.drift("fiedler") is left
        assert known.drift("spectral_norm") is None
