"""The page of the transforms says what the code has."""

from __future__ import annotations

from pathlib import Path

import pytest

import stableopt
from stableopt.health.spectra.drift import LAWS
from stableopt.sensors.registry import METRICS
from stableopt.transforms.registry import TRANSFORMS

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "how-to" / "transforms.md").read_text(encoding="utf-8")
ROWS = [line.split("|")[1:] for line in PAGE.splitlines() if line.startswith("| `")]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_has_a_row_and_a_reference(name):
    assert sum(f"`{name}(" in row[0] for row in ROWS) == 1
    assert f"::: stableopt.{name}\n" in (DOCS / "reference" / "transforms.md").read_text(
        encoding="utf-8"
    )
    assert getattr(stableopt, name) is TRANSFORMS[name]


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_of_a_trigger_has_a_row_with_its_sensor(metric):
    (row,) = [row for row in ROWS if f"`{metric}`" in row[0]]
    assert f"`{METRICS[metric]}`" in row[2]


def test_the_metrics_whose_course_is_followed_are_listed():
    (line,) = [line for line in PAGE.splitlines() if line.startswith("`drift()` follows")]
    assert all(f"`{metric}`" in line for metric in LAWS)
