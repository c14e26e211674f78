"""Measure what stableopt and a peer add to whole training steps: interleaved, as ratios.

Run as ``python -m benchmarks.overhead``; see ``--help``.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.common.command import Benchmark, names_of
from benchmarks.common.runner import track
from benchmarks.common.variants import ESSENTIAL, VARIANTS
from benchmarks.overhead.measure import FEWEST_ROUNDS, Cell, run_cell
from benchmarks.overhead.report import render

_ALL = tuple(VARIANTS)

CELLS = {
    cell.name: cell
    for cell in (
        Cell(name="1M-512", size="1M", tokens=512, steps=10, share=0.09, variants=_ALL),
        Cell(name="1M-4096", size="1M", tokens=4096, steps=2, share=0.11, variants=_ALL),
        Cell(name="20M-512", size="20M", tokens=512, steps=1, share=0.16, variants=_ALL),
        Cell(name="20M-4096", size="20M", tokens=4096, steps=1, share=0.56, variants=_ALL),
        Cell(
            name="1M-512-foreach",
            size="1M",
            tokens=512,
            implementation="foreach",
            steps=10,
            share=0.04,
            variants=ESSENTIAL,
        ),
        Cell(
            name="1M-512-for-loop",
            size="1M",
            tokens=512,
            implementation="for-loop",
            steps=10,
            share=0.04,
            variants=ESSENTIAL,
        ),
        Cell(name="tiny", size="tiny", tokens=64, steps=2, share=0.01, variants=_ALL),
    )
}
"""Every cell by its name; ``tiny`` only shows that the harness works."""

DEFAULT = [name for name in CELLS if name != "tiny"]
QUICK = ["1M-512", "20M-512"]
"""The cells of ``--quick``, which runs :data:`QUICK_ROUNDS` of blocks of two steps at most."""

QUICK_ROUNDS = 2


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cells",
        type=names_of("cell", CELLS),
        metavar="A,B",
        help=f"measure only these, of: {', '.join(CELLS)} (default: all but tiny)",
    )
    parser.add_argument("--rounds", type=_positive(int), help="rounds of a cell, at most")
    parser.add_argument(
        "--minutes",
        type=_positive(float),
        default=11.5,
        help="time of all cells together (default: %(default)s); every cell runs at least "
        f"{FEWEST_ROUNDS} rounds, unless --rounds is less, however long they take",
    )
    parser.add_argument(
        "--threads",
        type=_positive(int),
        default=1,
        help="threads of torch (default: %(default)s, the least disturbed by other work)",
    )


def _positive(kind: type[int] | type[float]) -> Any:
    def parse(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} must be above 0")
        return value

    parse.__name__ = kind.__name__  # for the message about what is no number
    return parse


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    for package in sorted(
        {v.requires for v in VARIANTS.values() if v.requires and not v.available}
    ):
        missing = f"{package} is not installed and left out: pip install -e '.[bench]'"
        print(missing, file=sys.stderr)
    names = options.cells or (QUICK if options.quick else DEFAULT)
    results = []
    for cell in track([_prepare(CELLS[name], options) for name in names], "cells"):
        seconds = cell.share * options.minutes * 60
        with TemporaryDirectory() as directory:
            found = run_cell(cell, seed=options.seed, seconds=seconds, directory=Path(directory))
        results.append(found)
    return {"cells": results}


def _prepare(cell: Cell, options: argparse.Namespace) -> Cell:
    """Return the cell as the options want it, without the variants that cannot run."""
    return replace(
        cell,
        variants=tuple(name for name in cell.variants if VARIANTS[name].available),
        rounds=options.rounds or (QUICK_ROUNDS if options.quick else cell.rounds),
        steps=min(cell.steps, 2) if options.quick else cell.steps,
    )


main = Benchmark(
    name="overhead",
    about=__doc__,
    measure=_measure,
    render=render,
    options=_options,
    is_complete=lambda options: options.cells is None and options.rounds is None,
    quick="two cells, few rounds: a minute",
    seed="of weights and data",
)

if __name__ == "__main__":
    sys.exit(main())
