"""Threads of torch, and messages of stableopt, while something is measured."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_threads(count: int | None = 1) -> Iterator[None]:
    """Have torch use ``count`` threads (``None``: as many as now); restored afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(count or threads)
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


def settle_worker() -> None:
    """Do both for good: for worker processes."""
    torch.set_num_threads(1)
    logging.getLogger("stableopt").setLevel(logging.CRITICAL)
