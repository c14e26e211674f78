"""The benchmark of the fixed cost runs, and measures what it says."""

from __future__ import annotations

import json

import pytest

from benchmarks.fixed_cost.__main__ import Stepper, main
from benchmarks.fixed_cost.report import VARIANTS, digest, render


def test_a_quick_run(tmp_path, capsys):
    assert main(["--rounds", "2", "--output", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "fixed_cost.json").read_text())
    assert not result["complete"]
    assert len(result["rows"]) == 2 * len(VARIANTS)
    for row in result["rows"]:
        assert row["microseconds"]["median"] > 0
        assert row["interventions"] == 0
        assert (row["added"]["median"] == 0) == (row["variant"] == "bare")
    assert (tmp_path / "fixed_cost.md").read_text() == render(result)
    assert "not to be quoted" in capsys.readouterr().out
    assert len(digest(result).splitlines()) == 2 + len(VARIANTS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_takes_the_same_steps(variant):
    steppers = [Stepper("fused", name) for name in ("bare", variant)]
    for stepper in steppers:
        stepper.run(20)
    bare, other = (stepper.optimizer.param_groups[0]["params"] for stepper in steppers)
    assert all(mine.equal(theirs) for mine, theirs in zip(other, bare, strict=True))


def test_the_profile_is_printed(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--profile"])
    assert "tottime" in capsys.readouterr().out
