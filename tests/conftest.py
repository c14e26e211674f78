"""What every test may ask for."""

from __future__ import annotations

import pytest


class Collector:
    """A telemetry writer that keeps what it gets."""

    every = 1

    def __init__(self) -> None:
        self.seen = []
        self.summaries = []
        self.closed = 0

    def write(self, event):
        self.seen.append(event)

    def write_summary(self, summary):
        self.summaries.append(summary)

    def close(self):
        self.closed += 1


@pytest.fixture
def events():
    """A telemetry writer that keeps what it gets."""
    return Collector()
