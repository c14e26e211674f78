"""The benchmark of several ranks runs, and its table can be made."""

from __future__ import annotations

import json

import pytest

from benchmarks.ranks.__main__ import main
from benchmarks.ranks.report import VARIANTS, digest, render


@pytest.mark.slow
def test_a_quick_run(tmp_path, capsys):
    assert main(["--quick", "--output", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "ranks.json").read_text())
    (cell,) = result["cells"]
    assert [row["variant"] for row in cell["rows"]] == list(VARIANTS)
    rows = {row["variant"]: row for row in cell["rows"]}
    assert rows["wrapped"]["interventions"] == 0
    assert "sums" not in rows["off"]
    assert 1 <= rows["guard"]["sums"] / rows["guard"]["calls"] < 2
    assert (tmp_path / "ranks.md").read_text() == render(result)
    assert "not to be quoted" in capsys.readouterr().out
    assert len(digest(result).splitlines()) == 2 + len(VARIANTS)
