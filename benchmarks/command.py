"""What every benchmark command does around what it measures."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from benchmarks.environment import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def torch_threads(count: int = 1) -> Iterator[None]:
    """Have torch use ``count`` threads, and as many as before afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def silent(least: int = logging.CRITICAL) -> Iterator[None]:
    """Keep what stableopt logs below ``least`` from the terminal: runs warn a lot."""
    logger = logging.getLogger("stableopt")
    level = logger.level
    logger.setLevel(least)
    try:
        yield
    finally:
        logger.setLevel(level)


def results_directory(*, complete: bool) -> Path:
    """Return where results go: what is complete may be quoted, and is kept with the code."""
    return ROOT / ("benchmarks/results" if complete else "runs/benchmarks")
