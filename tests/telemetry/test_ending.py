"""How a run ended: in the summary, in the events, however it is closed."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import textwrap

import pytest
import torch

from stableopt import DivergenceError, Guard, JsonLines, StableOptimizer
from stableopt.telemetry import LifecycleEvents, LoggingWriter
from stableopt.telemetry.ending import Ending
from tests.telemetry.runs import train


def closed_in(error, telemetry):
    """Train, fail, and close on the way out."""
    opt, _ = train(telemetry, faults=False, steps=2, close=False)
    try:
        raise error
    finally:
        opt.close()


@pytest.mark.parametrize(
    ("error", "status", "outcome"),
    [
        (RuntimeError("boom"), "failed", "failed"),
        (SystemExit(3), "failed", "failed"),
        (SystemExit("bad"), "failed", "failed"),
        (KeyboardInterrupt(), "interrupted", "killed"),
        (SystemExit(0), "closed", "completed"),
        (SystemExit(), "closed", "completed"),
        (StopIteration(), "closed", "completed"),
    ],
    ids=repr,
)
def test_closed_on_the_way_out_of_an_exception(tmp_path, events, error, status, outcome):
    said = []
    with pytest.raises(type(error)):
        closed_in(error, [JsonLines(tmp_path), LifecycleEvents(said.append), events])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == events.summaries[-1]["status"] == status
    fault = None if status == "closed" else type(error).__name__
    assert summary.get("ended_by") == fault
    stop = said[-1]["metadata"]
    assert (stop["status"], stop["success"]) == (outcome, status == "closed")
    assert stop.get("reason") == (fault and f"the program ended with {fault}")


def test_a_trial_that_is_pruned_has_not_failed(events):
    optuna = pytest.importorskip("optuna")
    with pytest.raises(optuna.TrialPruned):
        closed_in(optuna.TrialPruned(), events)
    assert events.summaries[-1]["status"] == "closed"


def test_an_exception_from_before_the_run_is_not_its_end(events):
    try:
        raise ValueError("the first attempt")
    except ValueError:
        opt, _ = train(events, faults=False, steps=2, close=False)
        opt.close()
    assert events.summaries[-1]["status"] == "closed"


def test_what_the_guard_has_stopped_was_stopped(events):
    w = torch.nn.Parameter(torch.ones(2))
    w.grad = torch.full((2,), torch.nan)
    opt = StableOptimizer(torch.optim.SGD([w], lr=0.1), telemetry=events, guard=Guard(max_skips=0))
    with pytest.raises(DivergenceError), contextlib.closing(opt):
        opt.step()
    assert events.summaries[-1]["status"] == "stopped"
    assert "ended_by" not in events.summaries[-1]


def test_a_run_that_failed_is_a_warning_in_the_log(caplog):
    with pytest.raises(RuntimeError):
        closed_in(RuntimeError(), LoggingWriter("train.ending"))
    (record,) = [r for r in caplog.records if "run failed" in r.message]
    assert record.levelname == "WARNING"


def test_an_ending_keeps_no_exception_alive():
    ending = Ending()
    try:
        raise KeyError
    except KeyError as error:
        ending.note()
        seen = id(error)
    assert ending.status() == ("failed", "KeyError")
    assert seen not in {id(value) for value in vars(ending).values()}


@pytest.mark.parametrize(
    ("scope", "ending", "status"),
    [
        ("function", "raise ValueError('the data are gone')", "failed"),
        ("module", "raise KeyboardInterrupt", "interrupted"),
        ("module", "caught()", "closed"),
    ],
)
def test_the_summary_of_a_program_that_forgets_to_close(tmp_path, scope, ending, status):
    code = f"""
        import sys, torch
        from stableopt import StableOptimizer

        def caught():
            try:
                sys.exit(2)
            except SystemExit:
                pass

        def body():
            w = torch.nn.Parameter(torch.ones(2))
            opt = StableOptimizer(torch.optim.SGD([w], lr=0.1), telemetry=sys.argv[1])
            w.grad = torch.ones(2)
            opt.step()
            {ending}

        def start():
            w = torch.nn.Parameter(torch.ones(2))
            return StableOptimizer(torch.optim.SGD([w], lr=0.1), telemetry=sys.argv[1])

        if {scope == "function"}:
            body()
        else:
            opt = start()
            {ending}
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], stderr=subprocess.DEVNULL
    )
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == status
