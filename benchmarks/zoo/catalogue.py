"""All trainings of the zoo, in the order of their table."""

from __future__ import annotations

from benchmarks.zoo import (
    adapters,
    compression,
    generative,
    loops,
    meta,
    optimizers,
    rl,
    sequences,
    similarity,
    tasks,
)
from benchmarks.zoo.harness import TRAININGS

KINDS = (
    adapters,
    compression,
    generative,
    loops,
    meta,
    optimizers,
    rl,
    sequences,
    similarity,
    tasks,
)
"""Modules of trainings: each has entered its own when it was imported."""

__all__ = ["KINDS", "TRAININGS"]
