"""Train what is healthy but unusual, bare and wrapped: the guard is to harm none of it.

Run as ``python -m benchmarks.zoo``; see ``--help``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.command import results_directory
from benchmarks.environment import describe_environment
from benchmarks.progress import progress_bar
from benchmarks.soak import guard_hash
from benchmarks.zoo.catalogue import TRAININGS
from benchmarks.zoo.pool import play_all
from benchmarks.zoo.report import render
from benchmarks.zoo.rows import row_of
from benchmarks.zoo.targets import SEEDS, targets
from stableopt import Guard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.zoo.harness import Record


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, write ``zoo.json`` and ``zoo.md``, and print the latter.

    Args:
        arguments: The command line; ``None`` for that of the process.

    Returns:
        The exit status: 0 if all targets are met, 1 if one is missed.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments)
    if options.list:
        print("\n".join(f"{name}: {t.title}" for name, t in TRAININGS.items()))
        return 0
    begun, environment = perf_counter(), describe_environment()
    names = [name for name in TRAININGS if not options.only or name in options.only]
    seeds = sorted(set(options.seeds))
    records = _play(names, seeds, options.jobs)
    rows = [row_of(TRAININGS[name], records[name]) for name in names]
    complete = names == list(TRAININGS) and seeds == sorted(SEEDS)
    result: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.zoo", *arguments]),
        "seeds": seeds,
        "jobs": options.jobs or 1,
        "complete": complete,
        "guard": repr(Guard()),
        "guard_hash": guard_hash(),
        "environment": environment,
        "seconds": round(perf_counter() - begun, 1),
        "targets": targets(rows),
        "rows": rows,
        "records": records,
    }
    text = render(result)
    _write(options.output or results_directory(complete=complete), result, text)
    print(text)
    return 0 if all(target["met"] for target in result["targets"]) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=list(SEEDS),
        metavar="SEED",
        help=f"default: {' '.join(str(seed) for seed in SEEDS)}",
    )
    parser.add_argument(
        "--only", nargs="+", choices=list(TRAININGS), metavar="NAME", help="default: all"
    )
    parser.add_argument(
        "--jobs", type=int, default=2, help="processes; 0 for this one (default: %(default)s)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where to write (default: benchmarks/results for the complete run, else "
        "runs/benchmarks)",
    )
    parser.add_argument("--list", action="store_true", help="say what there is, and train nothing")
    return parser


def _play(names: Sequence[str], seeds: Sequence[int], jobs: int) -> dict[str, list[Record]]:
    """Return the records of all trainings by name, in the order of the seeds."""
    pairs = [(name, seed) for seed in seeds for name in names]
    found = {}
    with progress_bar() as progress:
        bar = progress.add_task("trainings", total=len(pairs))
        for pair, records in play_all(pairs, jobs=jobs):
            found[pair] = records
            progress.advance(bar)
    return {name: [r for seed in seeds for r in found[name, seed]] for name in names}


def _write(directory: Path, result: dict[str, Any], text: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    content = json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    (directory / "zoo.json").write_text(content, encoding="utf-8")
    (directory / "zoo.md").write_text(text, encoding="utf-8")
