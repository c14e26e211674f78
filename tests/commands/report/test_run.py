"""A run from its records: what it says is what the optimizer said."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from stableopt.recorded import Run, load_run, status_of
from stableopt.recorded.interventions import Kind, in_rows, read_intervention
from stableopt.recorded.run import MOST_SIGNALS, TAIL
from stableopt.recorded.status import say_interventions
from stableopt.recorded.trace import Trace

from .conftest import event


def built(records):
    run = Run(Path("run/telemetry.jsonl"))
    for record in records:
        run.add(record)
    return run


def test_it_says_what_the_optimizer_said(trained):
    where, opt = trained
    run, summary = load_run(where), opt.summary()
    status = status_of(run)

    keys = "calls", "steps", "skips", "tamed", "rollbacks", "steps_lost", "back_offs", "stops"
    for key in keys:
        assert getattr(status, key) == summary[key], key
    assert (status.integrity, status.state, status.bad) == ("OK", "closed", False)
    assert status.risk == opt.risk.value
    ledger = [(e.call, e.step, e.reason) for e in opt.ledger]
    assert [(i.call, i.step, i.reason) for i in run.interventions] == ledger
    for name, metrics in opt.readings.items():
        for metric, reading in metrics.items():
            told = float(f"{reading.value:.6g}")
            assert run.newest(metric, name) == pytest.approx(told, nan_ok=True)


def test_what_went_wrong_is_there(trained):
    kinds = {i.kind: i for i in load_run(trained[0]).interventions}

    assert kinds[Kind.SKIP].call == 21
    back = kinds[Kind.ROLL_BACK]
    assert back.call == 131
    assert back.undone == 29
    assert back.layers == ("0.weight",)  # the cause, not every gradient that was not finite
    assert math.isnan(back.loss)


def test_the_call_behind_a_snapshot(trained):
    run = load_run(trained[0])

    # One call was skipped before update 100.
    assert run.call_of(100, before=131) == 101
    assert run.call_of(10, before=131) == 10
    assert run.call_of(20, before=131) == 21
    # The second time the run was there because it had gone back.
    assert run.call_of(100, before=150) == 131
    # Where the records do not reach back, nothing beyond them is said.
    assert built([event(50), event(60)]).call_of(10, before=60) == 50


def test_losses_of_skipped_batches_are_no_losses_of_the_run():
    run = built([event(1, loss=1.0), event(2, 1, "skip", loss=99.0), event(3, 2, loss=3.0)])

    assert run.loss.high == 3.0
    assert run.interventions[0].loss == 99.0
    assert run.final_loss == 2.0


def test_what_was_undone_is_not_what_was_reached():
    taken = [event(call, loss=5.0 if call <= 10 else 1.0) for call in range(1, 31)]
    back = event(31, 10, "roll_back", rollback={"from_step": 30, "to_step": 10, "lr_scale": 1.0})
    run = built([*taken, back])

    assert run.final_loss == 5.0
    assert run.lost == 20
    run.add(event(32, 11, loss=math.nan))
    assert math.isnan(run.final_loss)
    assert run.best_loss == 1.0


def test_the_final_loss_is_a_mean_of_the_last():
    run = built([event(call, loss=float(call)) for call in range(1, 2 * TAIL + 1)])

    assert run.final_loss == sum(range(TAIL + 1, 2 * TAIL + 1)) / TAIL
    assert run.best_loss == pytest.approx(3.0)  # of the first five


@pytest.mark.parametrize(("told", "value"), [("NaN", math.nan), ("-Infinity", -math.inf)])
def test_spelled_numbers(told, value):
    run = built([event(1, loss=told, readings={"w": {"step": 0, "rank": told}})])

    assert run.loss.last == pytest.approx(value, nan_ok=True)
    assert run.readings["rank"]["w"].last == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize(
    "damage",
    [
        {"call": "7"},
        {"call": None},
        {"call": True},
        {"call": 10**400},
        {"event": "other"},
        {"step": 1.5},
    ],
)
def test_records_of_another_kind_are_passed_by(damage):
    assert built([{**event(7), **damage}]).records == 0


@pytest.mark.parametrize(
    "odd",
    [
        {"loss": [1], "grad_norm": {}, "lr": []},
        {"lr": ["x"], "signals": [1], "risk": 3},
        {"readings": {"w": 3, "v": {"rank": None}}},
        {"acts": {"transform": 1}, "findings": "x"},
        {"acts": [1, {"worst": 3}], "findings": [1, {"where": 3}, {"where": [4]}]},
        {"rollback": "x", "action": "roll_back"},
        {"time": "soon", "reason": 3},
        {"loss": 10**400},
    ],
)
def test_odd_values_are_passed_by(odd):
    run = built([event(1), {**event(2), **odd}, event(3)])

    assert run.records == 3
    assert run.final_loss is not None


def test_of_several_learning_rates_the_first_with_our_factor():
    assert built([event(1, lr=[2.0, 3.0], lr_scale=0.5)]).lr.last == 1.0


def test_signals_are_bounded():
    many = {f"s{i}": {"mean": 1.0} for i in range(2 * MOST_SIGNALS)}

    assert len(built([event(1, signals=many)]).signals) == MOST_SIGNALS


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (event(1), None),
        (event(1, action="skip"), Kind.SKIP),
        (event(1, action="stop"), Kind.STOP),
        (event(1, backs_off=True, findings=[{"kind": "rule"}]), Kind.BACK_OFF),
        (event(1, findings=[{"kind": "risk_danger"}]), Kind.RISK),
        (event(1, findings=[{"kind": "risk_danger"}, {"kind": "loss_spike"}]), Kind.NOTICE),
        (event(1, reason="ClipGradNorm moves"), Kind.CORRECTION),
    ],
)
def test_kinds(record, kind):
    found = read_intervention(record, 1, 1)

    assert (None if found is None else found.kind) is kind


def test_rows_of_skips_are_told_together_and_rollbacks_are_not():
    actions = ["skip", "skip", "take", "skip", "roll_back", "roll_back"]
    run = built([event(i, action=action) for i, action in enumerate(actions, 1)])

    rows = [[i.call for i in row] for row in in_rows(run.interventions)]
    assert rows == [[1, 2], [4], [5], [6]]


def test_memory_is_bounded():
    run = built(
        event(call, readings={"w": {"step": call, "rank": 1.0 / call}}) for call in range(1, 5001)
    )

    assert isinstance(run.loss, Trace)
    assert run.loss.count == 5000
    assert len(run.loss.buckets) <= 800
    assert len(run.readings["rank"]["w"].buckets) <= 96


# The state


def summary(**more):
    return {"status": "running", "integrity": "OK", "calls": 0, "steps": 0, **more}


@pytest.mark.parametrize(
    ("told", "records", "state", "integrity", "bad"),
    [
        (summary(status="closed", calls=2, steps=2), [event(1)], "closed", "OK", False),
        (summary(), [event(1)], "open", "OK", False),
        (None, [event(1)], "unknown", "UNKNOWN", False),
        (None, [], "unknown", "UNKNOWN", False),
        (summary(), [event(1, action="stop")], "stopped", "COMPROMISED", True),
        (summary(), [event(1, loss="NaN")], "open", "COMPROMISED", True),
        (summary(integrity="UNCHECKED"), [event(1)], "open", "UNCHECKED", False),
        (summary(integrity="spam"), [event(1)], "open", "UNKNOWN", False),
        (summary(), [event(1, risk="danger")], "open", "OK", True),
        (summary(), [event(1, risk="danger"), event(2, risk="warning")], "open", "OK", False),
        # The newest recorded loss is older than the summary, which knows better.
        (summary(status="closed", calls=9, steps=9), [event(5, loss="NaN")], "closed", "OK", False),
    ],
)
def test_states(told, records, state, integrity, bad):
    run = built(records)
    run.summary = told
    status = status_of(run)

    assert (status.state, status.integrity, status.bad) == (state, integrity, bad)
    assert status.exit_code == int(bad)


def test_a_run_that_goes_on_is_ahead_of_its_summary():
    run = built([event(1), event(2, 1, "skip"), event(3, 2)])
    run.summary = summary(skips=0)
    status = status_of(run)

    assert (status.calls, status.steps, status.skips) == (3, 2, 1)


@pytest.mark.parametrize(
    ("losses", "integrity"),
    [
        ([1.0, "NaN"], "OK"),
        (["NaN"] * 3, "OK"),
        ([*["NaN"] * 9, 1.0, "NaN"], "OK"),
        ([1.0, *["NaN"] * 5], "COMPROMISED"),  # 41 calls
    ],
)
def test_a_loss_that_is_not_finite_now_and_then_means_nothing_under_a_guard(losses, integrity):
    run = built(event(1 + 10 * i, loss=loss) for i, loss in enumerate(losses))
    run.summary = summary(guard={"every": 100})
    assert status_of(run).integrity == integrity


def test_tamed_batches_are_told():
    run = built([event(1), event(2, tames=True, findings=[{"kind": "gradient_spike"}])])
    run.summary = summary(tamed=0)
    status = status_of(run)
    assert (status.tamed, status.skips) == (1, 0)
    assert say_interventions(status) == "1 batch tamed."
    (told,) = run.interventions
    assert (told.kind, told.refused) == (Kind.TAME, False)


def test_states_are_plain(trained):
    assert json.loads(json.dumps(status_of(load_run(trained[0])).to_dict()))["rollbacks"] == 1
