"""Train for long while nothing is wrong: the guard does nothing, and nothing grows.

Run as ``python -m benchmarks.soak``; see ``--help``.
"""

from __future__ import annotations

import argparse
import sys
from itertools import product
from typing import Any

from benchmarks.common.command import Benchmark
from benchmarks.common.environment import guard_hash
from benchmarks.common.runner import play
from benchmarks.soak.report import render
from benchmarks.soak.runs import MODELS, OPTIMIZERS, is_quiet, soak
from stableopt import Guard

STEPS = 100_000
"""In all runs together."""

SEEDS = (100, 101)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=STEPS, help="in all runs (%(default)s)")


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    cells = [
        (model, optimizer, seed) for seed, model, optimizer in product(SEEDS, MODELS, OPTIMIZERS)
    ]
    steps = -(-options.steps // len(cells))
    runs = play(lambda cell: soak(*cell, steps), cells)
    return {"guard": repr(Guard()), "guard_hash": guard_hash(), "runs": list(runs.values())}


main = Benchmark(
    name="soak",
    about=__doc__,
    measure=_measure,
    render=render,
    options=_options,
    is_complete=lambda options: options.steps >= STEPS,
    is_good=lambda result: is_quiet(result["runs"]),
)

if __name__ == "__main__":
    sys.exit(main())
