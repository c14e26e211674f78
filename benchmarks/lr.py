"""Train at learning rates from good to absurd: what it costs to be wrong about them.

Run as ``python -m benchmarks.lr``; see ``--help``. An interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.command import results_directory
from benchmarks.environment import ROOT, describe_environment
from benchmarks.lr_journal import Journal, version_of
from benchmarks.lr_methods import METHODS, frozen
from benchmarks.lr_plan import QUICK_LRS, SEEDS, Cell, plan
from benchmarks.lr_plot import draw
from benchmarks.lr_pool import run_all
from benchmarks.lr_report import render
from benchmarks.lr_scores import scores
from benchmarks.lr_targets import targets
from benchmarks.lr_tasks import TASKS
from benchmarks.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.lr_runs import Record

NAME = "lr_sensitivity"
JOURNAL = ROOT / "runs" / "benchmarks" / "lr.jsonl"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, write ``lr_sensitivity.json``, ``.md`` and ``.svg``, and print the second.

    Args:
        arguments: The command line; ``None`` for that of the process.

    Returns:
        The exit status: 0.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parse(arguments)
    cells = _cells(options)
    # What is in force now: files may be edited while it runs.
    facts, (robust, robust_hash) = describe_environment(), frozen()
    journal = Journal(options.journal, version_of(quick=options.quick))
    records = _run(cells, journal, options)
    rows = scores(records)
    result = {
        "command": shlex.join(["python", "-m", "benchmarks.lr", *arguments]),
        "seeds": options.seeds,
        "complete": _is_complete(options, cells),
        "version": journal.version,
        "environment": facts,
        "robust": robust,
        "robust_hash": robust_hash,
        "targets": targets(rows, records),
        "rows": rows,
        "records": records,
    }
    text = render(result, f"{NAME}.json")
    _write(options.out or results_directory(complete=result["complete"]), result, text)
    print(text)
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lr", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", help=f"default: {_listed(SEEDS)}")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), help="default: all")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), help="default: all")
    parser.add_argument("--lrs", type=float, nargs="+", help="default: the grid of each method")
    parser.add_argument(
        "--jobs", type=int, default=2, help="processes; 0 for this one (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="tiny models, short runs: seconds")
    parser.add_argument(
        "--journal", type=Path, default=JOURNAL, metavar="FILE", help="what is done already"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where to write (default: benchmarks/results for the complete run, else "
        "runs/benchmarks)",
    )
    options = parser.parse_args(arguments)
    if options.seeds is None:
        options.seeds = list(SEEDS[:1] if options.quick else SEEDS)
    if not _cells(options):
        parser.error("no run is planned of these methods on these tasks")
    return options


def _listed(values: Sequence[Any]) -> str:
    return " ".join(str(value) for value in values)


def _cells(options: argparse.Namespace) -> list[Cell]:
    lrs = QUICK_LRS if options.quick and options.lrs is None else options.lrs
    return plan(options.seeds, tasks=options.tasks, methods=options.methods, lrs=lrs)


def _run(cells: Sequence[Cell], journal: Journal, options: argparse.Namespace) -> list[Record]:
    """Return a record for every cell, in the order of tasks and methods."""
    done = journal.load()
    left = [cell for cell in cells if cell not in done]
    with progress_bar() as progress:
        bar = progress.add_task("runs", total=len(cells), completed=len(cells) - len(left))
        for cell, record in run_all(left, jobs=options.jobs, quick=options.quick):
            journal.append(cell, record)
            done[cell] = record
            progress.advance(bar)
    tasks, methods = list(TASKS), list(METHODS)
    ordered = sorted(
        cells, key=lambda c: (tasks.index(c.task), methods.index(c.method), c.lr, c.seed)
    )
    return [done[cell] for cell in ordered]


def _is_complete(options: argparse.Namespace, cells: Sequence[Cell]) -> bool:
    """Return whether everything was run that is planned, on enough seeds."""
    enough = len(options.seeds) >= len(SEEDS)
    return enough and not options.quick and set(cells) == set(plan(options.seeds))


def _write(directory: Path, result: dict[str, Any], text: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    content = json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    (directory / f"{NAME}.json").write_text(content, encoding="utf-8")
    (directory / f"{NAME}.md").write_text(text, encoding="utf-8")
    draw(result["records"], directory / f"{NAME}.svg")


if __name__ == "__main__":
    # As from the keyboard, so that no worker is left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
