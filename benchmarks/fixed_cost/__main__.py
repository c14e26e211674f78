"""Measure what a step costs when there is next to nothing to update: in µs, interleaved.

Run as ``python -m benchmarks.fixed_cost``; see ``--help``. There is no forward and no backward
pass: the gradients are tensors that are there from the beginning.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import pstats
import sys
from time import perf_counter
from typing import Any

import torch
from torch import nn

from benchmarks.common.command import Benchmark
from benchmarks.common.figures import quartiles
from benchmarks.common.runner import in_turn, track
from benchmarks.fixed_cost.report import VARIANTS, render
from stableopt import StableOptimizer

WIDTH, LAYERS = 32, 4
STEPS, ROUNDS, QUICK_ROUNDS = 200, 40, 3
"""A round of 200 steps has two intervals of snapshots and twenty of sensors in it."""

SHOWN = 25
"""Functions that ``--profile`` prints."""


class Stepper:
    """A model with gradients, and an optimizer of it.

    Args:
        implementation: ``"fused"`` or ``"foreach"``.
        variant: A key of :data:`~benchmarks.fixed_cost.report.VARIANTS`.
    """

    def __init__(self, implementation: str, variant: str) -> None:
        draw = torch.Generator().manual_seed(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self._model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
        for parameter in self._model.parameters():
            parameter.grad = 1e-2 * torch.randn(parameter.shape, generator=draw)
        fused = {"fused": True} if implementation == "fused" else {"foreach": True}
        # The gradients are always the same: a small rate keeps the weights what they are.
        inner = torch.optim.AdamW(self._model.parameters(), lr=1e-6, **fused)
        options = VARIANTS[variant][1]
        self.optimizer: torch.optim.Optimizer = inner
        if options is not None:
            self.optimizer = StableOptimizer(inner, model=self._model, **options)

    def run(self, steps: int) -> float:
        """Take some steps, and return the microseconds of one."""
        step = self.optimizer.step
        begun = perf_counter()
        for _ in range(steps):
            step()
        return 1e6 * (perf_counter() - begun) / steps

    def interventions(self) -> int:
        """Return how often the guard intervened: none of it is fixed cost."""
        if not isinstance(self.optimizer, StableOptimizer):
            return 0
        return sum(event.intervened for event in self.optimizer.ledger)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, help=f"of {STEPS} steps each (default: {ROUNDS})")
    parser.add_argument(
        "--profile", action="store_true", help="print where the time of a step goes, and end"
    )


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    if options.profile:
        profile()
        sys.exit(0)
    cells = [(kind, variant) for kind in ("fused", "foreach") for variant in VARIANTS]
    steppers = {cell: Stepper(*cell) for cell in cells}
    for stepper in steppers.values():
        stepper.run(STEPS)
    times: dict[tuple[str, str], list[float]] = {cell: [] for cell in cells}
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    for round_ in track(range(rounds), "rounds"):
        for cell in in_turn(cells, round_):
            gc.collect()
            times[cell].append(steppers[cell].run(STEPS))
    return {
        "parameters": LAYERS * (WIDTH + 1) * WIDTH,
        "tensors": 2 * LAYERS,
        "rounds": rounds,
        "steps": STEPS,
        "rows": [
            {
                "implementation": kind,
                "variant": variant,
                "microseconds": quartiles(times[kind, variant]),
                "added": quartiles(
                    mine - bare
                    for mine, bare in zip(times[kind, variant], times[kind, "bare"], strict=True)
                ),
                "interventions": steppers[kind, variant].interventions(),
            }
            for kind, variant in cells
        ],
    }


def profile(steps: int = 10 * STEPS) -> None:
    """Print in which functions the time of wrapped steps goes.

    Args:
        steps: How many are profiled, with the fused AdamW inside.
    """
    stepper, profiler = Stepper("fused", "wrapped"), cProfile.Profile()
    stepper.run(STEPS)
    profiler.runcall(stepper.run, steps)
    pstats.Stats(profiler).strip_dirs().sort_stats("tottime").print_stats(SHOWN)


main = Benchmark(
    name="fixed_cost",
    about=__doc__,
    measure=_measure,
    render=render,
    options=_options,
    is_complete=lambda options: options.rounds is None or options.rounds >= ROUNDS,
    quick="few rounds: seconds",
)

if __name__ == "__main__":
    sys.exit(main())
