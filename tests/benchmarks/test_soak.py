"""The soak: what it runs is healthy, and what it would not forgive."""

from __future__ import annotations

import json

import pytest

from benchmarks.soak import __main__ as command
from benchmarks.soak import runs as soak
from benchmarks.soak.report import digest


@pytest.mark.parametrize("model", soak.MODELS)
def test_a_run_is_quiet(model):
    run = soak.soak(model, "AdamW, 1e-3", 0, 60)
    assert (run["interventions"], run["skips"], run["rollbacks"]) == (0, 0, 0)
    assert run["loss"][1] < run["loss"][0]
    assert run["snapshots"] >= 1


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    assert command.main(["--steps", "36", "--output", str(tmp_path)]) in (0, 1)
    result = json.loads((tmp_path / "soak.json").read_text(encoding="utf-8"))
    assert not result["complete"]
    assert len(result["runs"]) == 36
    assert "not to be quoted" in capsys.readouterr().out


def test_the_digest_counts_what_was_told():
    run = {
        "model": "GPT",
        "optimizer": "AdamW",
        "steps": 5_000,
        "interventions": 0,
        "growth": 0.012,
        "handles": 5,
        "findings": {"risk_warning": 3},
    }
    result = {"guard_hash": "abc", "runs": [run, {**run, "interventions": 1, "findings": {}}]}
    text = digest(result)
    assert "10,000 healthy steps of 1 models" in text
    assert "**1 interventions**" in text
    assert "| `risk_warning` | 3 | 3.0 |" in text
    assert "`loss_spike`" in text.split("95% confidence")[0]
    assert "at most 1.2% from a tenth of a run to its end, 0 files" in text
    assert "below 3.0 in 10,000" in text


def test_what_is_not_quiet():
    run = {"interventions": 0, "growth": 0.0, "handles": 9}
    assert soak.is_quiet([run, run])
    assert not soak.is_quiet([run, {**run, "interventions": 1}])
    assert not soak.is_quiet([run, {**run, "growth": 0.2}])
    assert not soak.is_quiet([run, {**run, "handles": 10}])
    assert soak.is_quiet([{**run, "growth": None, "handles": None}])
