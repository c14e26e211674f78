"""One run of torch's tests, in a process of its own: ``inner.py RESULT bare|wrapped ARGUMENTS``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from torch.optim import Optimizer

if TYPE_CHECKING:
    from collections.abc import Sequence


class Wrapping:
    """Gives a wrapper to whoever constructs an optimizer of any class.

    ``Optimizer.__new__`` constructs and wraps it. The classes stay what they are, whatever a test
    does with their names; and the wrapper is no instance of the class that was called, so that
    Python does not initialise it again. Copies and unpickled objects (no arguments) stay bare, for
    they are the inside of a wrapper; so does ``differentiable=True``, which the wrapper refuses.
    Sensors get all the time they need: what is in a state dict depends on no clock then.

    Attributes:
        counts: How many were constructed, ``wrapped`` and ``bare``.
    """

    def __init__(self) -> None:
        self.counts = {"wrapped": 0, "bare": 0}

    def install(self) -> None:
        """Begin to wrap; there is no way back."""
        from stableopt import StableOptimizer
        from stableopt.sensors import Sensors

        def construct(cls: type[Optimizer], *args: Any, **kwargs: Any) -> Optimizer:
            made: Optimizer = object.__new__(cls)
            if issubclass(cls, StableOptimizer) or not (args or kwargs):
                return made
            if kwargs.get("differentiable"):
                self.counts["bare"] += 1
                return made
            made.__init__(*args, **kwargs)
            self.counts["wrapped"] += 1
            return StableOptimizer(made, sensors=Sensors(budget=None))

        Optimizer.__new__ = construct


class Outcomes:
    """A plugin of pytest that notes what became of every test.

    Attributes:
        tests: ``passed``, ``skipped`` or ``failed``, by name.
        errors: What the error says first, by the name of a test that failed.
    """

    def __init__(self) -> None:
        self.tests: dict[str, str] = {}
        self.errors: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the outcome; a failure of any phase counts."""
        name = report.nodeid.partition("::")[2]
        if report.failed:
            self.tests[name] = "failed"
            self.errors.setdefault(name, _headline(report))
        elif report.when == "call" or report.skipped:
            self.tests.setdefault(name, report.outcome)


def _headline(report: pytest.TestReport) -> str:
    """Return the first line of an error, and the next one where that only announces it."""
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = str(report.longrepr if crash is None else crash.message).splitlines()
    said = [line.strip() for line in lines if line.strip()] or ["no message"]
    return " ".join(said[:2] if said[0].endswith((":", "!")) else said[:1])


def main(result: str, how: str, arguments: Sequence[str]) -> int:
    """Run pytest with ``arguments``, write what happened to ``result``, and return its status."""
    wrapping, outcomes = Wrapping(), Outcomes()
    if how == "wrapped":
        wrapping.install()
    status = int(pytest.main([*arguments], plugins=[outcomes]))
    happened = {
        "tests": outcomes.tests,
        "errors": outcomes.errors,
        "constructed": wrapping.counts,
    }
    Path(result).write_text(json.dumps(happened))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
