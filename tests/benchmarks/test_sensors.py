"""The sensor benchmarks run, measure what they say, and the page that quotes them is current."""

from __future__ import annotations

import json
import math

import pytest
import torch

from benchmarks.common.environment import ROOT
from benchmarks.sensor_cost import __main__ as sensor_cost
from benchmarks.sensors import __main__ as sensors
from benchmarks.sensors.matrices import COLLAPSED, KINDS, TINY, make_matrix
from benchmarks.sensors.report import render
from benchmarks.sensors.rows import exact_norm, exact_spectrum, measure, rows_needed
from benchmarks.sensors.targets import targets
from stableopt.functional import effective_rank, kappa_tilde

PAGE = ROOT / "docs" / "evidence" / "sensors.md"


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sensors")
    assert sensors.main(["--quick", "--output", str(directory)]) == 0
    found = json.loads((directory / "sensors.json").read_text())
    assert (directory / "sensors.md").read_text() == render(found)
    return found


def test_every_kind_of_matrix_is_measured(result):
    assert not result["complete"]
    shapes = {(row["kind"], row["rows"], row["columns"]) for row in result["matrices"]}
    assert shapes == {(kind, rows, 64) for kind in KINDS for rows in (64, 256)}
    assert result["untrained"] == []
    assert all(row["source"] for row in result["matrices"] if row["kind"] == "trained")


def test_sensors_are_right_where_arithmetic_allows(result):
    for row in result["matrices"]:
        errors = {entry["metric"]: entry["error"] for entry in row["entries"]}
        for metric in ("spectral_norm, warm", "stable_rank", "redundancy", "fiedler"):
            assert errors[metric] < 1e-3, (row["kind"], metric)
        assert math.isnan(errors["condition_number"]) or errors["condition_number"] < 1e-6
        assert all(entry["seconds"] > 0 for entry in row["entries"])


def test_verdicts(result):
    said = {(row["kind"], row["rows"]): row for row in result["matrices"]}
    for kind in ("gaussian", "trained"):
        assert said[kind, 64]["ours"]["right"] is True
    for kind in ("clustered", "duplicated", "collapsed"):
        assert said[kind, 64]["ours"]["right"] is True
        assert said[kind, 64]["assr"]["by"] == ["condition"]
    lost = said["near-singular", 64]
    assert lost["ours"]["right"] is None
    assert not lost["ours"]["complains"]
    assert lost["assr"]["complains"]


def test_the_ends_of_the_scale(result):
    end = {entry["title"]: entry for entry in result["ends"]}
    assert end["orthogonal rows (κ = 1)"]["assr_fiedler"] < 0.05
    assert end["all rows identical"]["assr_fiedler"] > 0.05
    assert end["Gaussian with a NaN"]["assr_fiedler"] == 1.0
    small, large = end["the same, x 0.01"], end["the same, x 100"]
    assert large["assr_fiedler"] / small["assr_fiedler"] == pytest.approx(1e8, rel=1e-2)
    assert large["fiedler"] == pytest.approx(small["fiedler"], rel=1e-4)


def test_the_warm_spectral_norm_is_followed(result):
    (simulated,), (run,), (spike,) = result["simulated"], result["runs"], result["spikes"]
    assert simulated["10"]["visits"] == 16
    assert simulated["10"]["p99"] < 0.01
    assert run["10"]["max"] < 0.01
    assert run["80"] is None  # shorter than one round
    assert spike["max"] <= 5


def test_targets_say_what_was_measured(result):
    assert targets(result) == result["targets"]
    for target in result["targets"]:
        assert target["met"] == (target["value"] <= target["limit"])


def test_matrices_are_what_they_are_called():
    collapsed = make_matrix("collapsed", 96, 64, 0)
    assert effective_rank(collapsed).item() == pytest.approx(COLLAPSED * 64, rel=1e-3)
    values = exact_spectrum(make_matrix("near-singular", 64, 64, 0))
    assert values[-1] / values[0] < 5 * TINY
    assert values[-2] / values[0] > 1e-4
    assert len(make_matrix("duplicated", 64, 32, 0).unique(dim=0)) == 32
    with pytest.raises(ValueError, match="trained, not made"):
        make_matrix("trained", 64, 64, 0)


def test_exact_values():
    basis = torch.linalg.qr(make_matrix("gaussian", 32, 32, 0)).Q
    matrix = basis @ torch.diag(torch.tensor([3.0, 2.0] + [1.0] * 30)) @ basis.T
    assert exact_norm(matrix) == pytest.approx(3.0)
    row = measure(matrix, repeats=1)
    seeds = {entry["metric"]: entry for entry in row["seeds"]}
    assert seeds["assr_condition_number"]["exact"] == pytest.approx(3.0)
    assert seeds["kappa_tilde"]["exact"] == pytest.approx(kappa_tilde(matrix).item(), rel=1e-4)
    assert rows_needed(make_matrix("gaussian", 64, 64, 0)) is None
    assert rows_needed(make_matrix("clustered", 64, 64, 0)) == 64


@pytest.mark.parametrize("size", ["31", "many"])
def test_refuses_a_size(size):
    with pytest.raises(SystemExit):
        sensors.main(["--sizes", size])


@pytest.mark.slow
def test_the_cost_of_sensors(tmp_path, capsys):
    assert sensor_cost.main(["--quick", "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "sensor_cost.json").read_text())
    assert (tmp_path / "sensor_cost.md").read_text().strip() in capsys.readouterr().out
    updates, whole = found["cells"]
    assert (updates["whole_steps"], whole["whole_steps"]) == (False, True)
    for cell in found["cells"]:
        seconds = {v["name"]: v["interval_seconds"] for v in cell["variants"]}
        intervals = (sensor_cost.DENSE + cell["steps"]["steady"]) // sensor_cost.EVERY
        assert all(len(values) == intervals for values in seconds.values())
        assert cell["sensors"]["weights"] > 0
    # Nothing is postponed without a budget, and every visit takes time.
    assert updates["sensors"]["postponed"] == 0
    assert updates["sensors"]["dense"] > 0 < updates["sensors"]["own_account"]["steady"]
