"""Run the tests of integrations, and note what works: ``python -m benchmarks.compatibility``."""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.command import results_directory
from benchmarks.environment import ROOT, describe_environment

if TYPE_CHECKING:
    from collections.abc import Mapping

PACKAGES = {
    "HF Trainer": "transformers",
    "Lightning": "lightning",
    "Accelerate": "accelerate",
    "PEFT": "peft",
    "Optuna": "optuna",
    "TensorBoard": "tensorboard",
    "MLflow": "mlflow-skinny",
    "Weights & Biases": "wandb",
}
"""The package behind every place that tests name."""

TRAINERS = ("HF Trainer", "Lightning", "Accelerate")


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


def main() -> int:
    """Run the tests, write ``compatibility.json``, and say how many features work.

    Returns:
        The exit status of pytest.
    """
    outcomes = Outcomes()
    where = str(ROOT / "tests" / "integrations")
    status = pytest.main(["-q", "-p", "no:xdist", where], plugins=[outcomes])
    places: dict[str, dict[str, bool]] = {}
    for (place, feature), works in sorted(outcomes.works.items()):
        places.setdefault(place, {})[feature] = works
    result = {
        "command": "python -m benchmarks.compatibility",
        "complete": int(status) == 0,
        "environment": describe_environment(),
        "versions": {place: _version(PACKAGES[place]) for place in places},
        "places": places,
    }
    path = results_directory(complete=True) / "compatibility.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{sum(outcomes.works.values())} of {len(outcomes.works)} work: {path}")
    return int(status)


def table(result: Mapping[str, Any]) -> str:
    """Return what works as Markdown: a table for the trainers, a line for every other place.

    Args:
        result: What ``compatibility.json`` holds.
    """
    places, versions = result["places"], result["versions"]
    trainers = [place for place in TRAINERS if place in places]
    head = " | ".join(f"{place} ({PACKAGES[place]} {versions[place]})" for place in trainers)
    lines = [f"| | {head} |", "|---" * (len(trainers) + 1) + "|"]
    features = sorted({feature for place in trainers for feature in places[place]}, key=str.lower)
    for feature in features:
        cells = " | ".join(_cell(places[place].get(feature)) for place in trainers)
        lines.append(f"| {feature} | {cells} |")
    lines += ["", "| | tested |", "|---|---|"]
    for place in (place for place in PACKAGES if place in places and place not in trainers):
        told = ", ".join(
            feature if works else f"**not {feature}**" for feature, works in places[place].items()
        )
        lines.append(f"| {place} ({PACKAGES[place]} {versions[place]}) | {told} |")
    return "\n".join(lines)


def _cell(works: bool | None) -> str:
    return "" if works is None else "yes" if works else "**no**"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(main())
