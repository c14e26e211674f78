"""Every known mutant is killed by the test that is named for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants.catalogue import MUTANTS

ROOT = Path(__file__).parents[2]
SOME_TEST_FAILED = 1


@pytest.fixture(scope="session")
def ask():
    """Ask for the exit code of a mutant's tests, and for what they printed."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.mutants.server"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def answer(name):
        server.stdin.write(name + "\n")
        server.stdin.flush()
        found = json.loads(server.stdout.readline())
        return found["code"], found["report"]

    yield answer
    server.stdin.close()
    server.wait()
    server.stdout.close()


@pytest.mark.mutant
@pytest.mark.skipif(sys.platform != "linux", reason="needs to fork a process that knows torch")
@pytest.mark.parametrize("name", MUTANTS)
def test_the_mutant_is_killed(name, ask):
    code, report = ask(name)
    assert code == SOME_TEST_FAILED, report[-3000:]
    # Killed by an assertion, not by a mutant that cannot even be imported.
    assert "failed" in report.splitlines()[-1], report[-3000:]
    assert "mutant's text occurs" not in report, report[-3000:]
