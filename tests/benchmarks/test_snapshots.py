"""The benchmark of snapshots runs, and measures what it says."""

from __future__ import annotations

import json

from benchmarks.snapshots import __main__ as snapshots


def test_a_quick_run(tmp_path, capsys):
    assert snapshots.main(["--quick", "--output", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "snapshots.json").read_text())
    assert not result["complete"]
    (cell,) = result["cells"]
    assert cell["whole"]["snapshots_taken"] >= snapshots.INTERVALS
    assert all(seconds > 0 for seconds in cell["seconds"].values())
    assert (tmp_path / "snapshots.md").read_text().strip() in capsys.readouterr().out
