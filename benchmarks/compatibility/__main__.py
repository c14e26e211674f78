"""Run the tests of integrations, and note what works: ``python -m benchmarks.compatibility``."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import pytest

from benchmarks.common.command import Benchmark
from benchmarks.common.environment import ROOT, version_of
from benchmarks.compatibility.report import PACKAGES, digest


class Outcomes:
    """A plugin of pytest that notes what became of tests with the mark ``compatibility``.

    Attributes:
        works: By place and feature, whether every test of it passed.
    """

    def __init__(self) -> None:
        self.works: dict[tuple[str, str], bool] = {}
        self._pairs: dict[str, list[tuple[str, str]]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Note which test stands for what."""
        for item in items:
            marks = item.iter_markers("compatibility")
            self._pairs[item.nodeid] = [(mark.args[0], mark.args[1]) for mark in marks]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what became of it; what was skipped has shown nothing."""
        for pair in self._pairs.get(report.nodeid, ()):
            if report.failed or report.skipped or report.when == "call":
                self.works[pair] = self.works.get(pair, True) and report.passed


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    outcomes = Outcomes()
    where = str(ROOT / "tests" / "integrations")
    status = pytest.main(["-q", "-p", "no:xdist", where], plugins=[outcomes])
    places: dict[str, dict[str, bool]] = {}
    for (place, feature), works in sorted(outcomes.works.items()):
        places.setdefault(place, {})[feature] = works
    return {
        "complete": int(status) == 0,
        "versions": {place: version_of(PACKAGES[place]) or "not installed" for place in places},
        "places": places,
    }


main = Benchmark(
    name="compatibility",
    about=__doc__,
    measure=_measure,
    render=digest,
    is_table=False,
    threads=None,
    is_good=lambda result: result["complete"],
)

if __name__ == "__main__":
    sys.exit(main())
