"""Train at learning rates from good to absurd: what it costs to be wrong about them.

Run as ``python -m benchmarks.learning_rate``; see ``--help``. An interrupted run continues.
"""

from __future__ import annotations

import argparse
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common.command import Benchmark
from benchmarks.common.environment import ROOT
from benchmarks.common.runner import Journal, play
from benchmarks.learning_rate.methods import METHODS, frozen
from benchmarks.learning_rate.plan import QUICK_LRS, SEEDS, Cell, plan
from benchmarks.learning_rate.plot import draw
from benchmarks.learning_rate.report import render
from benchmarks.learning_rate.runs import run_cell, version_of
from benchmarks.learning_rate.scores import scores
from benchmarks.learning_rate.targets import targets
from benchmarks.learning_rate.tasks import TASKS

JOURNAL = ROOT / "runs" / "benchmarks" / "learning_rate.jsonl"


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), help="default: all")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), help="default: all")
    parser.add_argument("--lrs", type=float, nargs="+", help="default: the grid of each method")
    parser.add_argument(
        "--journal", type=Path, default=JOURNAL, metavar="FILE", help="what is done already"
    )


def _cells(options: argparse.Namespace) -> list[Cell]:
    lrs = QUICK_LRS if options.quick and options.lrs is None else options.lrs
    return plan(options.seeds, tasks=options.tasks, methods=options.methods, lrs=lrs)


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    cells = _cells(options)
    if not cells:
        raise argparse.ArgumentError(None, "no run is planned of these methods on these tasks")
    # What is in force now: files may be edited while it runs.
    robust, robust_hash = frozen()
    journal = Journal(options.journal, version_of(quick=options.quick), Cell)
    done = play(partial(run_cell, quick=options.quick), cells, jobs=options.jobs, journal=journal)
    tasks, methods = list(TASKS), list(METHODS)
    cells.sort(key=lambda c: (tasks.index(c.task), methods.index(c.method), c.lr, c.seed))
    records = [done[cell] for cell in cells]
    rows = scores(records)
    return {
        "version": journal.version,
        "robust": robust,
        "robust_hash": robust_hash,
        "targets": targets(rows, records),
        "rows": rows,
        "records": records,
    }


main = Benchmark(
    name="learning_rate",
    about=__doc__,
    measure=_measure,
    render=render,
    results="lr_sensitivity",
    draw=lambda result, path: draw(result["records"], path),
    options=_options,
    is_complete=lambda options: set(_cells(options)) == set(plan(options.seeds)),
    quick="tiny models, short runs: seconds",
    seeds=SEEDS,
    jobs=2,
)

if __name__ == "__main__":
    # As from the keyboard, so that no worker is left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
