"""The table of graphs: its cells as tests, and what the committed one says."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.common.environment import ROOT
from benchmarks.compiles.__main__ import main
from benchmarks.compiles.cells import MODES, OPTIMIZERS, RATES, run_cell
from benchmarks.compiles.report import more_than_bare, render, worse_than_bare

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def fresh_dynamo():
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("mode", ["model", "whole step"])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("name", ["AdamW", "SGD, momentum"])
def test_no_more_than_bare_torch_and_a_nan_is_left_out(name, rate, mode):
    """The other modes have tests of their own, for all optimizers."""
    cells = [run_cell(name, rate, mode, wrapped=w, steps=40).to_dict() for w in (False, True)]
    assert not worse_than_bare(cells)
    assert not more_than_bare(cells)
    assert cells[1]["skips"]
    assert cells[1]["graphs"] >= 1


def test_a_cell_that_is_worse_is_found():
    cells = [run_cell("AdamW", "constant", "model", wrapped=w, steps=24).to_dict() for w in (0, 1)]
    assert not worse_than_bare(cells)
    for what in ("breaks", "recompiled"):
        (found,) = worse_than_bare([cells[0], {**cells[1], what: 1}])
        assert what in found
        both = [{**cells[0], what: 2}, {**cells[1], what: 3}]
        assert not worse_than_bare(both)
        (found,) = more_than_bare(both)
        assert what in found
    (found,) = worse_than_bare([cells[0], {**cells[1], "skips": False}])
    assert "the NaN was taken" in found


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    arguments = ["--steps", "24", "--optimizers", "AdamW", "--output", str(tmp_path)]
    assert main(arguments) == 0
    result = json.loads((tmp_path / "compiles.json").read_text())
    assert len(result["cells"]) == len(RATES) * len(MODES) * 2
    assert not result["complete"]
    assert "not to be quoted" in capsys.readouterr().out


def test_the_committed_table():
    """All cells over 1,000 steps: zeros where bare torch has zeros; the page is that result."""
    results = ROOT / "benchmarks/results"
    result = json.loads((results / "compiles.json").read_text())
    assert result["complete"]
    assert result["steps"] == 1000
    assert len(result["cells"]) == len(OPTIMIZERS) * len(RATES) * len(MODES) * 2
    assert not worse_than_bare(result["cells"])
    assert render(result) == (results / "compiles.md").read_text()
