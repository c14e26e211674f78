"""The benchmark of trackers runs, and measures what it says."""

from __future__ import annotations

import json

import pytest

from benchmarks.trackers import __main__ as trackers

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.slow
def test_a_quick_run(tmp_path, capsys):
    assert trackers.main(["--quick", "--output", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "trackers.json").read_text())
    assert not result["complete"]
    assert [row["events"] for row in result["ingestion"]] == [20]
    assert [row["store"] for row in result["sync"]] == ["server", "sqlite here"]
    assert all(0 < row["median"] <= row["p95"] <= row["max"] for row in result["sync"])
    rows = [*result["ingestion"], *result["sync"]]
    assert sum(row["lost"] for row in rows) == 0
    assert all(row["dropped"] == row["failed"] == 0 for row in result["cost"])
    assert (tmp_path / "trackers.md").read_text().strip() in capsys.readouterr().out
