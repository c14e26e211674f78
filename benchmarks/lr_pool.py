"""Runs many cells of the learning-rate benchmark at once."""

from __future__ import annotations

import logging
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from typing import TYPE_CHECKING

import torch

from benchmarks.command import silent, torch_threads
from benchmarks.lr_runs import run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.lr_plan import Cell
    from benchmarks.lr_runs import Record


def run_all(
    cells: Sequence[Cell], *, jobs: int, quick: bool = False
) -> Iterator[tuple[Cell, Record]]:
    """Yield every cell with its record as soon as it is there.

    Args:
        cells: In the order in which they begin.
        jobs: Worker processes, each of one thread; 0 for none but this one.
        quick: Whether to train the tiny versions of the tasks.
    """
    if jobs == 0:
        with torch_threads(), silent():
            for cell in cells:
                yield cell, run(**asdict(cell), quick=quick)
        return
    context = get_context("spawn")  # a fork would inherit the threads of torch
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_settle)
    try:
        started = {pool.submit(run, **asdict(cell), quick=quick): cell for cell in cells}
        for future in as_completed(started):
            yield started[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _settle() -> None:
    torch.set_num_threads(1)
    # Guards have much to say at these learning rates.
    logging.getLogger("stableopt").setLevel(logging.CRITICAL)
