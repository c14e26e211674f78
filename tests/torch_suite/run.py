"""Run torch's own optimizer tests over the wrapper: ``python -m tests.torch_suite.run DIRECTORY``.

The files are in no wheel of torch: ``DIRECTORY`` is the ``test`` folder of a source tree of the
release that is installed, or one that holds it. They need the package ``expecttest`` as well.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import stableopt
from tests.torch_suite.artefacts import reason_for

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ENTRY = "test_optim.py"
FILES = (ENTRY, *(f"optim/test_{name}.py" for name in ("lrscheduler", "optim", "swa_utils")))
"""What is run; the first imports the others."""

FINISHED = (0, 1)
"""What pytest returns when it has run every test."""


class SuiteError(Exception):
    """The tests cannot be run, or did not run to their end."""


@dataclass(frozen=True)
class Run:
    """What became of the tests in one run.

    Attributes:
        tests: ``passed``, ``skipped`` or ``failed``, by name.
        errors: What the error of every test that failed says first.
        constructed: How many optimizers were ``wrapped``, and how many left ``bare``.
    """

    tests: Mapping[str, str]
    errors: Mapping[str, str]
    constructed: Mapping[str, int]

    def __str__(self) -> str:
        """Count the outcomes."""
        outcomes = list(self.tests.values())
        counts = [f"{outcomes.count(what)} {what}" for what in ("passed", "skipped", "failed")]
        return f"{len(outcomes)} tests: {', '.join(counts)}"


@dataclass(frozen=True)
class Difference:
    """What the wrapper changed.

    Attributes:
        failures: The error of every test that fails over the wrapper alone.
        artefacts: Those of them that a wrapper may fail, with the reason.
        uneven: Tests that ran in one of the runs, and were skipped or missing in the other.
    """

    failures: Mapping[str, str]
    artefacts: Mapping[str, str]
    uneven: Sequence[str]

    @property
    def faults(self) -> dict[str, str]:
        """The failures that nothing excuses."""
        return {test: why for test, why in self.failures.items() if test not in self.artefacts}


def missing(directory: Path | None) -> str | None:
    """Return why the tests in ``directory`` cannot be run, or ``None`` if they can."""
    if directory is None:
        return "no directory with the tests of torch's optimizers is given"
    absent = [name for name in FILES if not (_tests_in(directory) / name).is_file()]
    if absent:
        return f"{directory} has no {', no '.join(absent)}"
    if importlib.util.find_spec("expecttest") is None:
        return "torch's tests need the package expecttest"
    return None


def run(directory: Path, how: str, keyword: str = "") -> Run:
    """Run the tests once, in a process that knows nothing of this project's settings.

    Args:
        directory: Where they are.
        how: ``bare``, or ``wrapped`` to have every optimizer wrapped.
        keyword: What ``-k`` of pytest selects; everything if it is empty.

    Raises:
        SuiteError: The run was broken off.
    """
    tests = _tests_in(directory).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch, "result.json")
        options = ["-c", os.devnull, f"--rootdir={tests}", "-p", "no:cacheprovider", "-q"]
        selected = ["-k", keyword] if keyword else []
        inner = [sys.executable, str(Path(__file__).with_name("inner.py")), str(result), how]
        ended = subprocess.run(
            [*inner, *options, "--tb=short", "--disable-warnings", *selected, str(tests / ENTRY)],
            cwd=tests,
            env=_environment(),
            capture_output=True,
            text=True,
        )
        if ended.returncode not in FINISHED or not result.is_file():
            raise SuiteError(f"{how} run: status {ended.returncode}\n{ended.stdout}{ended.stderr}")
        return Run(**json.loads(result.read_text()))


def compare(bare: Run, wrapped: Run) -> Difference:
    """Return what is different over the wrapper."""
    failures = {
        test: wrapped.errors[test]
        for test, outcome in wrapped.tests.items()
        if outcome == "failed" and bare.tests.get(test) != "failed"
    }
    reasons = {test: reason_for(test) for test in failures}
    ran = [{test for test, how in run.tests.items() if how != "skipped"} for run in (bare, wrapped)]
    return Difference(
        failures,
        {test: why for test, why in reasons.items() if why is not None},
        sorted(ran[0] ^ ran[1]),
    )


def _tests_in(directory: Path) -> Path:
    return directory if (directory / ENTRY).is_file() else directory / "test"


def _environment() -> dict[str, str]:
    """Return the environment of an inner run: this package, and pytest without its plugins."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    paths = [Path(stableopt.__file__).parents[1], *map(Path, given)]
    found = os.pathsep.join(str(path.resolve()) for path in paths)
    return {**kept, "PYTHONPATH": found, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def _tell(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tests bare and wrapped, and tell which of them fail over the wrapper alone.

    Returns:
        The exit code: 1 if one does that is no artefact, or did not run; 2 if they cannot be run.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.torch_suite.run", description=__doc__)
    parser.add_argument("directory", type=Path, help="where the tests of torch are")
    parser.add_argument("--bare", action="store_true", help="without the wrapper only")
    parser.add_argument("-k", dest="keyword", default="", help="which tests, as pytest has it")
    options = parser.parse_args(arguments)
    obstacle = missing(options.directory)
    if obstacle is not None:
        _tell(obstacle)
        return 2
    try:
        return _run_both(options.directory, options.keyword, bare_only=options.bare)
    except SuiteError as error:
        _tell(str(error))
        return 2


def _run_both(directory: Path, keyword: str, *, bare_only: bool) -> int:
    bare = run(directory, "bare", keyword)
    _tell(f"torch {torch.__version__}, bare: {bare}")
    _tell(*(f"  {test}\n    {why}" for test, why in bare.errors.items()))
    if bare_only:
        return 0
    wrapped = run(directory, "wrapped", keyword)
    counts, difference = wrapped.constructed, compare(bare, wrapped)
    _tell(f"wrapped: {wrapped}")
    _tell(f"{counts['wrapped']} optimizers were wrapped, {counts['bare']} differentiable left bare")
    _tell(f"{len(difference.faults)} tests fail over the wrapper alone")
    _tell(*(f"  {test}\n    {why}" for test, why in difference.faults.items()))
    _tell(f"{len(difference.artefacts)} more do for a known reason")
    _tell(*(f"  {test}\n    {why}" for test, why in difference.artefacts.items()))
    _tell(*(f"ran in one of the runs only: {test}" for test in difference.uneven))
    return 1 if difference.faults or difference.uneven else 0


if __name__ == "__main__":
    sys.exit(main())
