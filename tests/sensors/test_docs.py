"""The page of the sensors says what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from stableopt import sensors
from stableopt.health.spectra.drift import LAWS
from stableopt.health.spectra.tiers import SMALLEST, TIERS
from stableopt.types import RiskLevel

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "explanation" / "sensors.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| `")]
ALL = [
    sensors.SpectralNorm(),
    sensors.SampledSpectrum(),
    sensors.ConditionNumber(),
    sensors.AssrFiedler(),
    sensors.AssrConditionNumber(),
    sensors.KappaTilde(),
]


def row_of(name):
    (row,) = [row for row in ROWS if f"`{name}`" in row.split("|")[1]]
    return row


@pytest.mark.parametrize("sensor", ALL, ids=repr)
def test_every_metric_has_a_row(sensor):
    for metric in sensor.metrics:
        assert f"`{type(sensor).__name__}`" in row_of(metric)


@pytest.mark.parametrize("metric", TIERS)
def test_every_limit_is_told(metric):
    assert f"{TIERS[metric].warning:g} |" in row_of(metric)


def test_the_other_numbers():
    assert f"a relative rank below {TIERS['relative_rank'].danger:g}" in PAGE
    assert f"with at least {SMALLEST}\nrows and columns" in PAGE
    options = sensors.Sensors()
    assert f"`Sensors(budget={options.budget:g})`" in PAGE
    assert f"visited once in {options.sampler.coverage} steps" in PAGE
    assert f"visited every {options.sampler.spacing} steps" in PAGE


@pytest.mark.parametrize("metric", LAWS)
def test_every_course_is_told(metric):
    assert "follows its course" in row_of(metric)


@pytest.mark.parametrize("level", RiskLevel)
def test_every_level_has_a_row(level):
    assert any(row.startswith(f"| `{level.name}` |") for row in ROWS)
