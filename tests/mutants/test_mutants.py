"""Every known mutant is killed by the test that is named for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants.catalogue import MUTANTS

ROOT = Path(__file__).parents[2]
SOME_TEST_FAILED = 1


@pytest.mark.parametrize("name", MUTANTS)
def test_the_mutant_is_killed(name):
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "tests.mutants.plugin", "-p", "no:xdist", "-p", "no:benchmark"]
    run = subprocess.run(
        [*command, *MUTANTS[name].tests],
        cwd=ROOT,
        env={**os.environ, "STABLEOPT_MUTANT": name, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    report = run.stdout + run.stderr
    assert run.returncode == SOME_TEST_FAILED, report[-3000:]
    # Killed by an assertion, not by a mutant that cannot even be imported.
    assert "failed" in report.splitlines()[-1], report[-3000:]
    assert "mutant's text occurs" not in report, report[-3000:]
