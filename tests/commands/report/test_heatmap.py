"""Colours: the class of every cell, from readings to the page."""

from __future__ import annotations

import json
import math

import pytest

from stableopt.commands.report.axes import span
from stableopt.commands.report.heatmap import draw_heatmap, shorten
from stableopt.commands.report.scales import UNDEFINED, Change, Limits, factors_for
from stableopt.health.spectra.tiers import TIERS
from stableopt.recorded import load_run
from stableopt.recorded.offenders import judge, say_undefined, top_offenders
from stableopt.recorded.trace import Bucket, Trace
from stableopt.types import Standing

from .conftest import event
from .parse import Page


def bucket(*values):
    made = Bucket(0, 0)
    for value in values:
        made.add(0, value)
    return made


@pytest.mark.parametrize("metric", TIERS)
def test_limits_are_those_of_the_guard(metric):
    tier = TIERS[metric]
    scale = Limits(metric, tier.standing)
    sign = -1 if tier.low_is_bad else 1

    assert scale.kind(bucket(tier.warning * (1 + sign * 1e-6))) == "warning"
    assert scale.kind(bucket(tier.warning)) == "h4"
    assert scale.kind(bucket(1.5 if tier.low_is_bad else 0.5)) == "h0"
    if tier.danger is not None:
        assert scale.kind(bucket(tier.danger * (1 + sign * 1e-6))) == "danger"
    # The worst of several readings counts.
    assert scale.kind(bucket(1.0, tier.warning * (1 + sign * 0.01), 1.0)) == "warning"
    assert scale.kind(bucket(math.nan)) == UNDEFINED


def test_an_infinite_condition_is_the_worst():
    scale = Limits("relative_kappa_p10", TIERS["relative_kappa_p10"].standing)

    assert scale.kind(bucket(1.0, math.inf)) == "warning"


@pytest.mark.parametrize(
    ("value", "kind"),
    [(1.0, "d4"), (1.2, "d5"), (1.6, "d6"), (3.0, "d7"), (9.0, "d8"), (0.6, "d2"), (-1.0, "d0")],
)
def test_changes(value, kind):
    assert Change(1.0).kind(bucket(value)) == kind


def test_changes_of_what_was_nothing():
    assert Change(0.0).kind(bucket(0.0)) == "d4"
    assert Change(0.0).kind(bucket(0.1)) == "d8"
    assert Change(math.nan).kind(bucket(0.1)) == "d4"
    assert Change(1.0).kind(bucket(math.inf)) == "d8"
    assert Change(1.0).kind(bucket(math.nan)) == UNDEFINED


@pytest.mark.parametrize(("most", "factor"), [(1.1, 1.2), (3.0, 4.0), (100.0, 30.0)])
def test_changes_are_divided_by_how_large_they_are(most, factor):
    trace = Trace()
    trace.add(0, 1.0)
    trace.add(1, most)

    assert factors_for([trace])[-1] == factor
    assert len(Change(1.0, factors_for([trace])).legend()) == 10


@pytest.fixture
def collapsing(write):
    """One weight that collapses, one that is healthy, an output layer, and one that is tiny."""
    ranks = {"bad.weight": 1.0, "good.weight": 1.0, "lm_head.weight": 0.1, "tiny.weight": 0.1}
    records = []
    for call in range(1, 101):
        ranks["bad.weight"] = 1.0 - call / 125
        readings = {
            name: {
                "step": call,
                "relative_rank": rank,
                "effective_rank": rank * (5.0 if name == "tiny.weight" else 50.0),
            }
            for name, rank in ranks.items()
        }
        records.append(event(call, readings=readings))
    return load_run(write(records))


def cells(run, metric, columns=100):
    """Return the class of every cell, by row and column."""
    figure = Page(draw_heatmap(run, metric, span(1.0, 100.0)))
    found = {}
    for path in figure.all("path"):
        for move in path["d"].removesuffix("z").split("z"):
            place, width = move.removeprefix("M").split("h")[:2]
            column, row = map(int, place.split())
            for i in range(int(width.partition("v")[0])):
                assert (row, column + i) not in found
                found[row, column + i] = path["class"].removeprefix("c-")
    return figure, found


def test_cells_follow_the_readings(collapsing):
    figure, found = cells(collapsing, "relative_rank")
    bad, good = ([found[row, column] for column in range(100)] for row in (0, 1))

    assert len(found) == 400
    assert set(good) == {"h0"}
    assert [kind for i, kind in enumerate(bad) if i == 0 or bad[i - 1] != kind] == [
        *("h1", "h2", "h3", "h4", "warning", "danger")
    ]
    # 1 - call / 125 passes 0.6 at call 50, and 0.45 at call 68.75.
    assert bad.index("warning") == pytest.approx(51, abs=1)
    assert bad.index("danger") == pytest.approx(69, abs=1)
    assert "1 of 4 layers beyond the limit now: bad.weight." in figure.text
    assert "■0.2" in figure.text


def test_limits_apply_where_the_guard_applies_them(collapsing):
    assert judge(collapsing, "relative_rank", "bad.weight", 0.3) is Standing.DANGER
    assert judge(collapsing, "relative_rank", "lm_head.weight", 0.3) is Standing.UNJUDGED
    assert judge(collapsing, "relative_rank", "tiny.weight", 0.3) is Standing.UNJUDGED
    assert [o.name for o in top_offenders(collapsing)] == ["bad.weight"]


def test_limits_do_not_apply_where_the_summary_says_so(write):
    """An embedding that is tied by hand is an output layer to the guard, whatever its name."""
    records = [
        {"event": "step", "call": call, "step": call, "action": "take"}
        | {"readings": {name: {"step": call, "relative_rank": 0.2} for name in ("bytes", "plain")}}
        for call in (1, 2)
    ]
    unjudged = {"integrity": "OK", "sensors": {"unjudged": ["bytes"]}}
    assert [o.name for o in top_offenders(load_run(write(records, unjudged)))] == ["plain"]
    other = write(records, directory="without")
    assert [o.name for o in top_offenders(load_run(other))] == ["bytes", "plain"]


def test_of_two_in_danger_the_one_that_was_named_comes_first(write):
    low = {"step": 1, "relative_rank": 0.1}
    findings = [{"kind": "nonfinite_weight", "where": ["b"]}]
    run = load_run(
        write([event(1, readings={"a": low, "b": low}), event(2, 1, "skip", findings=findings)])
    )

    assert [o.name for o in top_offenders(run)] == ["b", "a"]
    assert top_offenders(run)[0].reading == "relative_rank 0.1, below 0.45"


def test_what_was_read_from_weights_that_went_back_is_not_now(write):
    def reading(call, value, **more):
        return event(call, readings={"w": {"step": call, "relative_rank": value}}, **more)

    back = event(3, 1, "roll_back", rollback={"from_step": 2, "to_step": 1, "lr_scale": 1.0})
    run = load_run(write([reading(1, 0.9), reading(2, 0.1), back]))

    assert run.newest("relative_rank", "w") == 0.9
    assert run.readings["relative_rank"]["w"].low == 0.1
    assert [o.name for o in top_offenders(run)] == []


def test_a_colour_holds_until_the_next_reading(write):
    record = event(1, readings={"w": {"step": 1, "relative_rank": 0.95}})
    run = load_run(write([record, *(event(call) for call in range(2, 101))]))

    _, found = cells(run, "relative_rank")
    assert set(found.values()) == {"h1"}
    assert len(found) == 100


def test_short_names_keep_both_ends():
    assert shorten("model.layers.31.self_attn.q_proj.weight") != shorten(
        "model.layers.31.self_attn.k_proj.weight"
    )
    assert len(shorten("x" * 100)) == 17


@pytest.fixture
def lost(write):
    """A weight that turns NaN, one of an output layer that does, a mask that never was a number."""
    nan = {"spectral_norm": "NaN", "relative_rank": "NaN", "redundancy": "NaN"}
    fine = {"spectral_norm": 1.0, "relative_rank": 0.9, "redundancy": 1.0}
    names = {"a.weight": fine, "head.weight": fine, "mask": nan, "well.weight": fine}
    records = [event(1, readings={name: {"step": 1, **read} for name, read in names.items()})]
    gone = {"a.weight": nan, "head.weight": nan, "mask": nan, "well.weight": fine}
    records.append(event(2, readings={name: {"step": 2, **r} for name, r in gone.items()}))
    return write(records, {"integrity": "OK", "sensors": {"unjudged": ["head.weight"]}})


@pytest.mark.parametrize("metric", ["relative_rank", "redundancy"])
def test_what_was_a_number_and_is_none_now_is_counted(lost, metric):
    text = Page(draw_heatmap(load_run(lost), metric, span(1.0, 2.0))).text

    assert "2 of 4 undefined now, not before: a.weight, head.weight." in text
    assert text.count("■NaN") == 2


def test_what_was_a_number_and_is_none_now_stands_out(lost, page):
    first, second = top_offenders(load_run(lost))

    assert (first.name, second.name) == ("a.weight", "head.weight")
    assert {first.standing, second.standing} == {Standing.DANGER}
    assert first.reading == "undefined, and was not before: relative_rank, spectral_norm"
    words = "2 of 4 layers are undefined now, and were not before (not finite, or zero): "
    assert f"{words}a.weight, head.weight. Nothing harmful" in page(lost).text


def test_what_went_back_is_defined_again(lost, write):
    records = (lost / "telemetry.jsonl").read_text().splitlines()
    back = event(3, 1, "roll_back", rollback={"from_step": 2, "to_step": 1, "lr_scale": 1.0})
    run = load_run(write([*map(json.loads, records), back]))

    assert top_offenders(run) == []
    assert say_undefined(run) == ""
