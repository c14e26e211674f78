"""Plays the trainings of the zoo, several at once."""

from __future__ import annotations

import logging
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import TYPE_CHECKING

import torch

from benchmarks.command import silent, torch_threads
from benchmarks.zoo.catalogue import TRAININGS
from benchmarks.zoo.harness import play

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.zoo.harness import Record

    Pair = tuple[str, int]


def play_all(pairs: Sequence[Pair], *, jobs: int) -> Iterator[tuple[Pair, list[Record]]]:
    """Yield every training and seed with its two records as soon as they are there.

    Args:
        pairs: Names of trainings, and seeds.
        jobs: Worker processes, each of one thread; 0 for none but this one.
    """
    if jobs == 0:
        with torch_threads(), silent():
            for pair in pairs:
                yield pair, play_both(*pair)
        return
    context = get_context("spawn")  # a fork would inherit the threads of torch
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_settle)
    try:
        started = {pool.submit(play_both, *pair): pair for pair in pairs}
        for future in as_completed(started):
            yield started[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def play_both(name: str, seed: int) -> list[Record]:
    """Play a training bare and wrapped, one after the other in this process.

    Args:
        name: Of the training.
        seed: Of both.

    Returns:
        The record of the bare one, and that of the wrapped one.
    """
    return [play(TRAININGS[name], seed, wrapped=wrapped) for wrapped in (False, True)]


def _settle() -> None:
    torch.set_num_threads(1)
    logging.getLogger("stableopt").setLevel(logging.CRITICAL)  # guards have much to say here
