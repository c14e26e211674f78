"""Count graphs, recompilations and graph breaks of every way to compile a training loop.

Run as ``python -m benchmarks.compiles``; see ``--help``.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from itertools import product
from typing import Any

from benchmarks.common.command import Benchmark
from benchmarks.common.runner import play
from benchmarks.compiles.cells import MODES, OPTIMIZERS, RATES, run_cell
from benchmarks.compiles.report import render, worse_than_bare

STEPS = 1000


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of each run")
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, help="default: all of them")


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    cells = list(product(options.optimizers or OPTIMIZERS, RATES, MODES, (False, True)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = play(lambda cell: run_cell(*cell, steps=options.steps).to_dict(), cells)
    return {"steps": options.steps, "cells": list(found.values())}


main = Benchmark(
    name="compiles",
    about=__doc__,
    measure=_measure,
    render=render,
    options=_options,
    is_complete=lambda options: options.steps == STEPS and not options.optimizers,
    is_good=lambda result: not worse_than_bare(result["cells"]),
)

if __name__ == "__main__":
    sys.exit(main())
