"""Measure what the sensors add to training, over whole sensor intervals: totals, no medians.

Run as ``python -m benchmarks.sensor_cost``; see ``--help``.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.command import Benchmark
from benchmarks.common.runner import in_turn, track
from benchmarks.common.variants import BASELINE, Learner, make_learners
from benchmarks.common.workload import count_parameters, loss_of, make_batches
from benchmarks.sensor_cost.report import render
from stableopt.health.spectra.drift import LEARNED
from stableopt.sensors import Sampler

EVERY = Sampler().every
DENSE = LEARNED * Sampler().spacing
"""Steps in which weights are visited out of turn as well, until their courses are known."""

GUARD = "stable-sensors"
TARGET = 0.005
"""Of a training step of 20M at 4096 tokens, which the default sensors may add."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One size of model, trained by everybody in turn, ten steps at a time.

    Attributes:
        size: As in :func:`benchmarks.common.workload.make_model`.
        whole: Tokens of whole training steps; ``None`` to time the updates alone, with gradients
            computed beforehand.
        tokens: Of the training steps that the cost is a share of, with how many are timed.
        steady: Steps after the first :data:`DENSE`; whole rounds over all weights.
    """

    size: str
    whole: int | None
    tokens: dict[int, int]
    steady: int

    @property
    def names(self) -> tuple[str, ...]:
        """Who takes part."""
        # Updates alone take no time of which the sensors could have their share.
        stable = "stable-unlimited" if self.whole is None else "stable"
        return (BASELINE, GUARD, stable, "assr")


PHASES = (
    Phase(size="20M", whole=None, tokens={4096: 3, 512: 7}, steady=3 * Sampler().coverage),
    Phase(size="1M", whole=512, tokens={512: 0}, steady=3 * Sampler().coverage),
)
QUICK = (
    Phase(size="tiny", whole=None, tokens={64: 3}, steady=EVERY),
    Phase(size="tiny", whole=64, tokens={64: 0}, steady=EVERY),
)


def measure(phase: Phase, seed: int) -> list[dict[str, Any]]:
    """Return one cell per number of tokens.

    Args:
        phase: What runs.
        seed: Of weights and data.
    """
    with (
        TemporaryDirectory() as directory,
        make_learners(
            phase.names,
            size=phase.size,
            implementation="fused",
            seed=seed,
            directory=Path(directory),
        ) as learners,
    ):
        return _measure(phase, learners, seed)


def _measure(phase: Phase, learners: dict[str, Learner], seed: int) -> list[dict[str, Any]]:
    work = _Work(phase, learners, seed)
    intervals = (DENSE + phase.steady) // EVERY
    times: dict[str, list[float]] = {name: [] for name in learners}
    wholes: dict[str, list[float]] = {name: [] for name in learners}
    spent = [0.0]
    stable = phase.names[2]
    governor = learners[stable].optimizer._loop.sensing._governor
    for interval in track(range(intervals), f"{phase.size}, {phase.whole or 'updates'}"):
        gc.collect()
        for name in in_turn(learners, interval):
            governor._last = perf_counter()  # the time of the others is not that of its training
            whole, updating = work.interval(name)
            wholes[name].append(whole)
            times[name].append(updating)
        spent.append(governor.spent)
    dense = DENSE // EVERY
    summary = learners[stable].optimizer.summary()["sensors"]
    cells = []
    for tokens, count in phase.tokens.items():
        step = work.bare_step(tokens, count) if count else _per_step(wholes[BASELINE])
        cells.append(
            {
                "size": phase.size,
                "parameters": count_parameters(learners[BASELINE].model),
                "tokens": tokens,
                "whole_steps": phase.whole is not None,
                "bare_step_seconds": step,
                "steps": {"dense": DENSE, "steady": phase.steady},
                "variants": [
                    {
                        "name": name,
                        "dense": _added(times, name, BASELINE, slice(None, dense), step),
                        "steady": _added(times, name, BASELINE, slice(dense, None), step),
                        "update_seconds": times[name],
                        "interval_seconds": wholes[name],
                    }
                    for name in learners
                ],
                "sensors": {
                    "dense": _added(times, stable, GUARD, slice(None, dense), step),
                    "steady": _added(times, stable, GUARD, slice(dense, None), step),
                    "own_account": {
                        "dense": spent[dense] / DENSE / step,
                        "steady": (spent[-1] - spent[dense]) / phase.steady / step,
                    },
                    "postponed": summary["postponed"],
                    "weights": summary["weights"],
                    "risk": summary["risk"],
                },
            }
        )
    return cells


class _Work:
    """What one interval is, for everybody alike."""

    def __init__(self, phase: Phase, learners: dict[str, Learner], seed: int) -> None:
        self._phase = phase
        self._learners = learners
        self._seed = seed
        tokens = phase.whole or min(phase.tokens)
        self._batches = make_batches(EVERY, tokens, seed)
        self._gradients: list[list[Tensor]] = []
        if phase.whole is None:
            model = learners[BASELINE].model
            for batch in self._batches[:4]:
                model.zero_grad()
                loss_of(model, batch).backward()
                self._gradients.append([p.grad for p in model.parameters() if p.grad is not None])

    def interval(self, name: str) -> tuple[float, float]:
        """Take ten steps, or ten updates; return the seconds of all, and those of the updates."""
        learner = self._learners[name]
        seconds = 0.0
        if self._phase.whole is not None:
            begun = perf_counter()
            for batch in self._batches:
                seconds += _step(learner, batch)
            return perf_counter() - begun, seconds
        loss = torch.zeros(())
        for number in range(EVERY):
            gradients = self._gradients[number % len(self._gradients)]
            for parameter, gradient in zip(learner.model.parameters(), gradients, strict=True):
                parameter.grad = gradient
            begun = perf_counter()
            learner.update(loss)
            seconds += perf_counter() - begun
        return seconds, seconds

    def bare_step(self, tokens: int, count: int) -> float:
        """Return the seconds of a whole training step of the bare optimizer: a median."""
        learner = self._learners[BASELINE]
        seconds = []
        for batch in make_batches(count, tokens, self._seed):
            begun = perf_counter()
            _step(learner, batch)
            seconds.append(perf_counter() - begun)
        return median(seconds)


def _step(learner: Learner, batch: Tensor) -> float:
    """Take a training step and return the seconds of its update."""
    learner.optimizer.zero_grad()
    loss = loss_of(learner.model, batch)
    loss.backward()
    begun = perf_counter()
    learner.update(loss)
    return perf_counter() - begun


def _per_step(intervals: Sequence[float]) -> float:
    return sum(intervals) / len(intervals) / EVERY


def _added(times: dict[str, list[float]], name: str, to: str, where: slice, step: float) -> float:
    """Return what a variant adds to another, as a share of a bare step."""
    return (_per_step(times[name][where]) - _per_step(times[to][where])) / step


def _run(options: argparse.Namespace) -> dict[str, Any]:
    phases = QUICK if options.quick else PHASES
    cells = [cell for phase in phases for cell in measure(phase, options.seed)]
    return {"every": EVERY, "dense_steps": DENSE, "target": TARGET, "cells": cells}


main = Benchmark(
    name="sensor_cost",
    about=__doc__,
    measure=_run,
    render=render,
    quick="a tiny model: seconds",
    seed="of weights and data",
)

if __name__ == "__main__":
    sys.exit(main())
