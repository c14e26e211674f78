"""Several runs beside each other."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from stableopt.commands.compare.compare import compare_runs
from stableopt.commands.compare.table import show_comparison
from stableopt.recorded.files import read_runs, select_runs
from stableopt.telemetry.encode import encode

from .conftest import event

GUARDED = {
    "status": "closed",
    "integrity": "OK",
    "optimizer": "AdamW",
    "guard": {"slots": 3, "max_skips": 6},
    "transforms": [
        {"transform": "UpdateCap(ratio=0.1)", "parameters": 4, "steps": 9, "newest": {}}
    ],
    "sensors": {"use": ["SpectralNorm()"], "share": 0.1},
}


@pytest.fixture
def compared(write):
    """Compare runs with these summaries."""

    def make(*summaries, **more):
        paths = [
            write([event(1), event(2, **more)], summary, directory=f"run{i}")
            for i, summary in enumerate(summaries)
        ]
        return compare_runs(read_runs(select_runs(paths)[0]))

    return make


def test_only_differences_are_told(compared):
    other = {**GUARDED, "guard": {"slots": 3, "max_skips": 9}, "sensors": {"use": [], "share": 0.2}}
    found = compared(GUARDED, GUARDED, other)

    assert found.differences == {
        "guard.max_skips": [6, 6, 9],
        "sensors.use": [["SpectralNorm()"], ["SpectralNorm()"], []],
    }
    assert found.exit_code == 0


def test_results_are_no_settings(compared):
    worked = {**GUARDED, "transforms": [{**GUARDED["transforms"][0], "steps": 1, "changes": 3}]}

    assert compared(GUARDED, worked).differences == {}


def test_what_is_off_has_no_options(compared):
    off = {**GUARDED, "guard": False, "sensors": False}

    assert compared(GUARDED, off).differences == {
        "guard": ["on", False],
        "sensors": ["on", False],
    }


def test_a_run_without_a_summary(compared):
    found = compared(GUARDED, None)

    assert found.differences["optimizer"] == ["AdamW", None]
    assert [status.integrity for status in found.statuses] == ["OK", "UNKNOWN"]


def test_one_bad_run_is_enough(compared):
    assert compared(GUARDED, {**GUARDED, "integrity": "COMPROMISED"}).exit_code == 1


def test_json(compared):
    record = json.loads(encode(compared(GUARDED, None, loss="Infinity").to_dict()))

    assert [run["last_loss"] for run in record["runs"]] == ["Infinity", "Infinity"]
    assert set(record) == {"runs", "differences"}
    assert record["runs"][0]["title"].endswith("run0")


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_table_of_any_width(compared, width):
    console = Console(file=io.StringIO(), width=width)
    show_comparison(console, compared(GUARDED, {**GUARDED, "optimizer": "SGD"}))
    text = console.file.getvalue()

    assert all(len(line) <= width for line in text.splitlines())
    for word in ("run0", "run1", "OK", "loss", "skips", "setting", "optimizer", "SGD"):
        assert word in text.replace("\n", "")


def test_equal_configurations_are_told(compared):
    console = Console(file=io.StringIO(), width=100)
    show_comparison(console, compared(GUARDED, GUARDED))

    assert "The recorded configurations are the same." in console.file.getvalue()


@pytest.mark.parametrize("state", ["failed", "interrupted"])
@pytest.mark.parametrize("width", [40, 120])
def test_a_program_that_did_not_come_to_its_end_is_told(compared, state, width):
    found = compared(GUARDED, {**GUARDED, "status": state})
    console = Console(file=io.StringIO(), width=width)
    show_comparison(console, found)

    assert found.exit_code == 1
    text = " ".join(console.file.getvalue().split())
    assert f"{state.capitalize()}: " in text
    assert "ended the program" in text
