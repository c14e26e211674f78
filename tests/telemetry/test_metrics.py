"""Events as flat numbers: all of an event, nothing else, and sums that agree with the ledger."""

from __future__ import annotations

import math

import pytest

from stableopt.telemetry.metrics import (
    COUNTERS,
    RunMetrics,
    flat_numbers,
    interventions_of,
    metrics_of,
)
from stableopt.types import Act, Action, Event, Finding, Reading, RiskLevel, Rollback, Scope
from tests.telemetry.runs import train


def reading(name, metric, value):
    return Reading(name=name, metric=metric, value=value, step=9)


def test_everything_in_an_event_is_there_and_nothing_else():
    act = Act(
        transform="MaxNorm",
        metric="row_norm",
        where=("a", "b"),
        before=(2.0, 3.0),
        after=(1.0, 1.0),
        routine=True,
    )
    event = Event(
        call=12,
        step=10,
        action=Action.TAKE,
        lr_scale=0.5,
        loss=1.5,
        grad_norm=2.5,
        lr=(0.1, 0.2),
        signals={"accuracy": 0.9, "heads": {"a": 1.0, "b": {"mean": 2.0, "max": math.inf}}},
        readings=(reading("0.weight", "fiedler", 0.25),),
        risk=RiskLevel.DANGER,
        acts=(act,),
        time=1.0,
    )
    assert metrics_of(event) == {
        "step": 10,
        "loss": 1.5,
        "grad_norm": 2.5,
        "lr/0": 0.1,
        "lr/1": 0.2,
        "lr_scale": 0.5,
        "risk": 3,
        "signals/accuracy": 0.9,
        "signals/heads/a": 1.0,
        "signals/heads/b/mean": 2.0,
        "signals/heads/b/max": math.inf,
        "acts/MaxNorm": 2,
        "layers/0.weight/fiedler": 0.25,
    }


def test_what_is_not_known_is_not_there():
    assert set(metrics_of(Event(call=1, step=1, action=Action.TAKE))) == {"step", "lr_scale"}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_losses_that_are_not_finite_are_kept(value):
    found = metrics_of(Event(call=3, step=2, action=Action.SKIP, loss=value, grad_norm=value))
    assert str(found["loss"]) == str(found["grad_norm"]) == str(value)


def test_what_is_no_number_is_left_out():
    assert flat_numbers({"a": True, "b": "text", "c": None, "d": {"e": [1]}}) == {"a": 1.0}


def test_counters_come_with_the_first_event_and_where_they_change():
    metrics = RunMetrics("")
    skip = Finding(kind="nonfinite_loss", message="the loss is nan")
    found = [
        metrics.of(Event(call=1, step=1, action=Action.TAKE)),
        metrics.of(Event(call=2, step=2, action=Action.TAKE)),
        metrics.of(Event(call=3, step=2, action=Action.SKIP, findings=(skip,))),
    ]
    counters = [{n: v for n, v in row.items() if n in COUNTERS} for row in found]
    assert counters == [dict.fromkeys(COUNTERS, 0), {}, {"interventions": 1, "skips": 1}]


@pytest.mark.parametrize(
    ("event", "counts"),
    [
        ({"action": Action.STOP}, {"interventions": 1, "stops": 1}),
        ({"action": Action.TAKE, "backs_off": True}, {"interventions": 1, "back_offs": 1}),
        ({"action": Action.TAKE}, {}),
        (
            {
                "action": Action.TAKE,
                "findings": (Finding(kind="risk_danger", message="", scope=Scope.RISK),),
            },
            {},
        ),
        (
            {
                "action": Action.TAKE,
                "findings": (Finding(kind="loss_spike", message="", scope=Scope.SPIKE),),
            },
            {},
        ),
        ({"action": Action.TAKE, "tames": True}, {"interventions": 1, "tamed": 1}),
        (
            {"action": Action.TAKE, "baseline_reset": True},
            {"interventions": 1, "baseline_resets": 1},
        ),
        (
            {"action": Action.TAKE, "tames": True, "backs_off": True},
            {"interventions": 1, "tamed": 1, "back_offs": 1},
        ),
        (
            {
                "action": Action.ROLL_BACK,
                "rollback": Rollback(
                    from_step=9, to_step=4, attempt=1, lr_scale=1.0, restores_rng=True
                ),
            },
            {"interventions": 1, "rollbacks": 1, "steps_lost": 5},
        ),
    ],
)
def test_what_counts(event, counts):
    assert interventions_of(Event(call=9, step=4, **event)) == counts


def test_the_sums_over_events_are_those_of_the_summary(events):
    opt, _ = train(events)
    total = dict.fromkeys(COUNTERS, 0)
    for event in events.seen:
        for name, count in interventions_of(event).items():
            total[name] += count
    summary = opt.summary()
    assert total.pop("interventions") == 2
    assert total == {name: summary[name] for name in total}
    assert (total["skips"], total["rollbacks"]) == (1, 1)


def test_readings_are_summarized_over_the_newest_of_every_weight():
    metrics = RunMetrics("")

    def spread(*readings):
        row = metrics.of(Event(call=1, step=1, action=Action.TAKE, readings=readings))
        return {n: v for n, v in row.items() if n.startswith("readings/")}

    first = spread(reading("a", "fiedler", 1.0), reading("b", "fiedler", math.nan))
    assert first == {f"readings/fiedler/{what}": 1.0 for what in ("min", "median", "max")}
    second = spread(reading("c", "fiedler", 3.0), reading("b", "fiedler", 2.0))
    assert list(second.values()) == [1.0, 2.0, 3.0]
    assert list(spread(reading("c", "fiedler", 0.5)).values()) == [0.5, 1.0, 2.0]
    assert spread(reading("a", "rank", math.nan)) == {}
    assert spread() == {}


def test_layers_may_be_left_out():
    event = Event(call=1, step=1, action=Action.TAKE, readings=(reading("a", "fiedler", 1.0),))
    with_layers, without = RunMetrics().of(event), RunMetrics(layers=False).of(event)
    assert set(with_layers) - set(without) == {"stable/layers/a/fiedler"}
