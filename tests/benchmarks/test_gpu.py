"""The GPU benchmark, on the CPU: every way trains, and the report says that it was no GPU."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import ways
from benchmarks.gpu.report import render

pytestmark = pytest.mark.filterwarnings("ignore")


SOME = (
    "bare, fused",
    "guard and sensors, fused, sync=lagged",
    "guard and sensors, torch.compile(step)",
)


def test_the_command_on_a_stand_in(tmp_path, capsys, monkeypatch):
    """Some of the ways: tests of their own have the others, on every device."""
    monkeypatch.setattr(gpu, "WAYS", {way: ways.WAYS[way] for way in SOME})
    monkeypatch.setattr(gpu, "OF_THE_LARGEST", SOME[:2])
    arguments = ["--device", "cpu", "--tiny", "--no-tests", "--output", str(tmp_path)]
    assert gpu.main(arguments) == 0
    result = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert not result["complete"]
    assert [way["way"] for way in result["ways"]] == list(SOME)
    assert [way["way"] for way in result["largest"]["ways"]] == list(SOME[:2])
    assert all(way["step_seconds"] > 0 and way["interventions"] == 0 for way in result["ways"])
    text = capsys.readouterr().out
    assert "not to be quoted" in text
    assert (tmp_path / "gpu.md").read_text(encoding="utf-8") == render(result)


def test_it_needs_nothing_that_is_not_at_hand():
    """torch, einops and pytest: whatever else tests need is not imported by these."""
    allowed = {"pytest", "torch", "stableopt", "tests", "benchmarks", "__future__"}
    for path in gpu.TESTS:
        lines = (gpu.ROOT / path).read_text(encoding="utf-8").splitlines()
        for line in lines:
            if line.startswith(("import ", "from ")):
                module = line.split()[1].split(".")[0]
                assert module in allowed | set(sys.stdlib_module_names), (path, line)


def test_how_long_intervals_overlap():
    assert gpu.common([(0, 10), (20, 30)], [(5, 25)]) == 10
    assert gpu.common([(0, 10)], [(10, 20)]) == 0
    assert gpu.common([(0, 10)], [(2, 4), (3, 5)]) == 4


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        gpu.main([])
    assert "no CUDA device" in capsys.readouterr().err
