"""Measure what stableopt and a peer add to whole training steps: interleaved, as ratios.

Run as ``python -m benchmarks.overhead``; see ``--help``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.command import results_directory, torch_threads
from benchmarks.environment import describe_environment
from benchmarks.measure import FEWEST_ROUNDS, Cell, run_cell
from benchmarks.report import render
from benchmarks.variants import ESSENTIAL, VARIANTS

if TYPE_CHECKING:
    from collections.abc import Sequence

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write ``overhead.json`` and ``overhead.md``, and print the latter.

    Args:
        arguments: The command line; ``None`` for that of the process.

    Returns:
        The exit status: 0.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments)
    names = options.cells or (QUICK if options.quick else DEFAULT)
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else None)
    with torch_threads(options.threads):
        result = {
            "command": shlex.join(["python", "-m", "benchmarks.overhead", *arguments]),
            "seed": options.seed,
            "complete": _is_complete(options),
            "environment": describe_environment(),
            "cells": _measure([_prepare(CELLS[name], rounds, options) for name in names], options),
        }
    text = render(result, "overhead.json")
    _write(options.output or results_directory(complete=result["complete"]), result, text)
    print(text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    parser.add_argument(
        "--cells",
        type=_cell_names,
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
    parser.add_argument("--quick", action="store_true", help="two cells, few rounds: a minute")
    parser.add_argument(
        "--threads",
        type=_positive(int),
        default=1,
        help="threads of torch (default: %(default)s, the least disturbed by other work)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and data (default: 0)")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where to write (default: benchmarks/results for the complete run, "
        "runs/benchmarks with --quick, --cells or --rounds)",
    )
    return parser


def _cell_names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in CELLS:
            raise argparse.ArgumentTypeError(
                f"no cell is called {name!r}: give some of {', '.join(CELLS)}"
            )
    return names


def _positive(kind: type[int] | type[float]) -> Any:
    def parse(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} must be above 0")
        return value

    parse.__name__ = kind.__name__  # for the message about what is no number
    return parse


def _prepare(cell: Cell, rounds: int | None, options: argparse.Namespace) -> Cell:
    """Return the cell as the options want it, without the variants that cannot run."""
    return replace(
        cell,
        variants=tuple(name for name in cell.variants if VARIANTS[name].available),
        rounds=rounds or cell.rounds,
        steps=min(cell.steps, 2) if options.quick else cell.steps,
    )


def _measure(cells: list[Cell], options: argparse.Namespace) -> list[dict[str, Any]]:
    for package in sorted({v.requires for v in VARIANTS.values() if v.requires}):
        if not any(v.requires == package and v.available for v in VARIANTS.values()):
            _say(f"{package} is not installed and left out: pip install -e '.[bench]'")
    results = []
    for number, cell in enumerate(cells, 1):
        begun = perf_counter()
        with TemporaryDirectory() as directory:
            result = run_cell(
                cell,
                seed=options.seed,
                seconds=cell.share * options.minutes * 60,
                directory=Path(directory),
            )
        results.append(result)
        stable = next(v for v in result["variants"] if v["name"] == "stable")
        _say(
            f"[{number}/{len(cells)}] {cell.name}: {result['rounds']} rounds in "
            f"{perf_counter() - begun:.0f} s, StableOptimizer "
            f"x{stable['to_adamw']['median']:.3f}"
        )
    return results


def _is_complete(options: argparse.Namespace) -> bool:
    return not options.quick and options.cells is None and options.rounds is None


def _write(directory: Path, result: dict[str, Any], text: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "overhead.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (directory / "overhead.md").write_text(text, encoding="utf-8")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
