"""The overhead benchmark runs and writes a result that its table can be made from."""

from __future__ import annotations

import json

import pytest

from benchmarks.common.environment import describe_environment
from benchmarks.common.figures import nearest_rank, ratios
from benchmarks.common.variants import BASELINE, VARIANTS, Variant
from benchmarks.overhead.__main__ import CELLS, main
from benchmarks.overhead.report import render


def test_writes_a_result_file(tmp_path, capsys):
    assert main(["--cells", "tiny", "--rounds", "2", "--output", str(tmp_path)]) == 0

    result = json.loads((tmp_path / "overhead.json").read_text())
    (cell,) = result["cells"]
    assert set(describe_environment()) == set(result["environment"])
    assert (
        result["command"]
        == f"python -m benchmarks.overhead --cells tiny --rounds 2 --output {tmp_path}"
    )
    assert (cell["rounds"], cell["steps"]) == (2, 4)
    assert [v["name"] for v in cell["variants"]] == [n for n in VARIANTS if VARIANTS[n].available]
    for variant in cell["variants"]:
        assert variant["interventions"] == 0
        assert len(variant["block_seconds"]) == 2
        assert 0 < variant["to_adamw"]["p25"] <= variant["to_adamw"]["p75"]

    table = (tmp_path / "overhead.md").read_text()
    assert table == render(result)
    assert table.strip() in capsys.readouterr().out
    assert all(VARIANTS[v["name"]].label in table for v in cell["variants"])


@pytest.mark.slow
def test_wrapping_does_not_change_what_is_measured(tmp_path):
    main(["--cells", "tiny", "--rounds", "1", "--output", str(tmp_path)])
    (cell,) = json.loads((tmp_path / "overhead.json").read_text())["cells"]
    losses = {v["name"]: v["last_loss"] for v in cell["variants"]}
    assert losses["stable"] == losses["stable+telemetry"] == losses[BASELINE]
    assert losses["stable+clip"] == losses["adamw+clip"]


@pytest.mark.slow
def test_leaves_out_a_peer_that_is_not_installed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Variant, "available", property(lambda self: self.requires is None))
    main(["--cells", "tiny", "--rounds", "1", "--output", str(tmp_path)])
    assert "stabilityguard is not installed and left out: pip install" in capsys.readouterr().err
    (cell,) = json.loads((tmp_path / "overhead.json").read_text())["cells"]
    assert "stable" in [v["name"] for v in cell["variants"]]
    assert "stabilityguard" not in [v["name"] for v in cell["variants"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cells", "1M-513"], "no cell is called '1M-513': give some of 1M-512"),
        (["--rounds", "0"], "0 must be above 0"),
        (["--minutes", "soon"], "invalid float value: 'soon'"),
    ],
)
def test_refuses_what_it_cannot_run(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_cells_share_the_time():
    assert sum(cell.share for cell in CELLS.values()) <= 1.01
    assert all(BASELINE in cell.variants for cell in CELLS.values())


def test_figures():
    assert ratios([2.0, 3.0, 8.0], [1.0, 1.0, 2.0]) == {"p25": 2.5, "median": 3.0, "p75": 3.5}
    assert nearest_rank([3.0, 1.0, 2.0], 0.99) == 3.0
    assert nearest_rank([float(i) for i in range(1, 201)], 0.99) == 198.0
