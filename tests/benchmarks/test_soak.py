"""The soak: what it runs is healthy, and what it would not forgive."""

from __future__ import annotations

import json

import pytest

from benchmarks import soak


@pytest.mark.parametrize("model", soak.MODELS)
def test_a_run_is_quiet(model):
    run = soak.soak(model, "AdamW, 1e-3", 0, 60)
    assert (run["interventions"], run["skips"], run["rollbacks"]) == (0, 0, 0)
    assert run["loss"][1] < run["loss"][0]
    assert run["snapshots"] >= 1


def test_the_command(tmp_path, capsys):
    assert soak.main(["--steps", "36", "--output", str(tmp_path)]) in (0, 1)
    result = json.loads((tmp_path / "soak.json").read_text(encoding="utf-8"))
    assert not result["complete"]
    assert len(result["runs"]) == 36
    assert "not to be quoted" in capsys.readouterr().out


def test_what_is_not_quiet():
    run = {"interventions": 0, "growth": 0.0, "handles": 9}
    assert soak.is_quiet([run, run])
    assert not soak.is_quiet([run, {**run, "interventions": 1}])
    assert not soak.is_quiet([run, {**run, "growth": 0.2}])
    assert not soak.is_quiet([run, {**run, "handles": 10}])
    assert soak.is_quiet([{**run, "growth": None, "handles": None}])
