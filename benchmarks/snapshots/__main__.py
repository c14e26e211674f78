"""Measure what snapshots and rollbacks cost, in copies of the state and in training steps.

Run as ``python -m benchmarks.snapshots``; see ``--help``.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import torch

from benchmarks.common.command import Benchmark
from benchmarks.common.variants import make_optimizer
from benchmarks.common.workload import GPT, count_parameters, loss_of, make_batches, make_model
from benchmarks.snapshots.report import render
from stableopt import Guard, StableOptimizer

EVERY = Guard().every
"""Steps between two snapshots, as everybody gets them."""

INTERVALS = 3
"""Whole snapshot intervals whose wall time is compared."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One size of model and batch.

    Attributes:
        size: As in :func:`benchmarks.common.workload.make_model`.
        tokens: Per step.
        repeats: How often copies, snapshots and rollbacks are timed.
        whole: Whether whole intervals are trained, bare and guarded in turn.
    """

    size: str
    tokens: int
    repeats: int
    whole: bool

    @property
    def name(self) -> str:
        """What the result calls it."""
        return f"{self.size}-{self.tokens}"


CELLS = (
    Cell(size="1M", tokens=512, repeats=40, whole=True),
    Cell(size="20M", tokens=4096, repeats=12, whole=False),
)
QUICK = (Cell(size="tiny", tokens=64, repeats=3, whole=True),)


def measure(cell: Cell) -> dict[str, Any]:
    """Return the medians of one cell, in seconds, and the ratios that matter.

    A plain copy of the state, a snapshot and a rollback are timed in turn, so that what else
    the machine does hits all three alike.
    """
    trainer = _Trainer(cell, guarded=True)
    for _ in range(3):
        trainer.step()
    trainer.optimizer.snapshot()  # one with state in it, to go back to
    trainer.step()
    copied = _plain_copy(trainer)
    times: dict[str, list[float]] = {"step": [], "copy": [], "snapshot": [], "rollback": []}
    for _ in range(cell.repeats):
        times["copy"].append(_timed(copied))
        times["snapshot"].append(_timed(trainer.snapshot))
        times["rollback"].append(_timed(trainer.roll_back))
    for _ in range(min(cell.repeats, 8)):
        times["step"].append(_timed(trainer.step))
    seconds = {what: median(values) for what, values in times.items()}
    return {
        "name": cell.name,
        "parameters": count_parameters(trainer.model),
        "snapshots": trainer.optimizer.summary()["snapshots"],
        "seconds": seconds,
        "snapshot_in_copies": seconds["snapshot"] / seconds["copy"],
        "rollback_in_copies": seconds["rollback"] / seconds["copy"],
        "snapshots_of_a_step": seconds["snapshot"] / EVERY / seconds["step"],
        "whole": _whole_intervals(cell) if cell.whole else None,
    }


def _whole_intervals(cell: Cell) -> dict[str, Any]:
    """Train whole snapshot intervals, bare and guarded in turn, and compare wall time."""
    trainers = {"bare": _Trainer(cell, guarded=False), "guarded": _Trainer(cell, guarded=True)}
    for trainer in trainers.values():
        trainer.step()
    walls: dict[str, list[float]] = {"bare": [], "guarded": []}
    steps: dict[str, list[float]] = {"bare": [], "guarded": []}
    blocks = 10  # of EVERY / 10 steps, in turn: the machine's moods hit both
    for block in range(INTERVALS * blocks):
        order = ["bare", "guarded"] if block % 2 else ["guarded", "bare"]
        for who in order:
            times = [_timed(trainers[who].step) for _ in range(EVERY // blocks)]
            walls[who].append(sum(times))
            steps[who] += times
    taken = trainers["guarded"].optimizer.summary()["snapshots"]["taken"]
    return {
        "intervals": INTERVALS,
        "snapshots_taken": taken,
        "seconds": {who: sum(values) for who, values in walls.items()},
        "ratio": sum(walls["guarded"]) / sum(walls["bare"]),
        "p99_step": {who: quantiles(values, n=100)[-1] for who, values in steps.items()},
        "median_step": {who: median(values) for who, values in steps.items()},
    }


class _Trainer:
    """A model in training."""

    def __init__(self, cell: Cell, *, guarded: bool) -> None:
        self.model: GPT = make_model(cell.size, seed=0)
        self.inner = make_optimizer(self.model, "fused")
        self.optimizer: Any = self.inner
        if guarded:
            self.optimizer = StableOptimizer(self.inner, model=self.model)
        self._batches = make_batches(8, cell.tokens, seed=0)
        self._number = 0

    def step(self) -> None:
        """Take one whole training step."""
        self._number += 1
        loss = loss_of(self.model, self._batches[self._number % len(self._batches)])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def snapshot(self) -> None:
        """Look at everything and copy it, as is done every so many steps."""
        keeper = self.optimizer._loop.restorer.keeper
        keeper._judge.damage()
        keeper._copy(keeper._snapshots[-1], {})

    def roll_back(self) -> None:
        """Go back through the public door."""
        self.optimizer.rollback("measured")
        self.optimizer.step()


def _plain_copy(trainer: _Trainer) -> Callable[[], None]:
    """Return what copies parameters and state once, as fast as torch can."""
    state = trainer.inner.state
    live = [p.detach() for p in trainer.model.parameters()]
    for key in ("exp_avg", "exp_avg_sq"):
        live += [state[p][key] for p in trainer.model.parameters()]
    memory = [torch.empty_like(tensor) for tensor in live]
    return lambda: torch._foreach_copy_(memory, live)


def _timed(call: Callable[[], object]) -> float:
    begun = perf_counter()
    call()
    return perf_counter() - begun


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    return {"every": EVERY, "cells": [measure(c) for c in (QUICK if options.quick else CELLS)]}


main = Benchmark(
    name="snapshots",
    about=__doc__,
    measure=_measure,
    render=render,
    quick="a tiny model: seconds",
    logged=logging.ERROR,  # every rollback is a warning
)

if __name__ == "__main__":
    sys.exit(main())
