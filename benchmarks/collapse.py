"""Watch healthy runs and collapsing weights: false positives, detections and delays.

Run as ``python -m benchmarks.collapse``; see ``--help``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.collapse_kinds import COLLAPSES
from benchmarks.collapse_report import render
from benchmarks.collapse_rows import collapse_row, healthy_row, tiers
from benchmarks.collapse_runs import (
    QUICK_STEPS,
    STEPS,
    STRUCK,
    collapsible,
    strike,
    train,
    watch,
)
from benchmarks.collapse_tasks import HEALTHY, TASKS
from benchmarks.command import results_directory, silent, torch_threads
from benchmarks.environment import describe_environment

if TYPE_CHECKING:
    from collections.abc import Sequence

SEEDS = (110, 111, 112)
"""Those of the comparison. The limits were set on seeds 0 to 5, and on 100 to 102 one rule fell."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, watch, strike, write ``collapse.json`` and ``collapse.md``, and print the latter.

    Args:
        arguments: The command line; ``None`` for that of the process.

    Returns:
        The exit status: 0.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments)
    begun = perf_counter()
    with torch_threads(), silent():
        healthy, records = _run(options)
        result = {
            "command": shlex.join(["python", "-m", "benchmarks.collapse", *arguments]),
            "seeds": options.seeds,
            "complete": _is_complete(options),
            "steps": QUICK_STEPS if options.quick else STEPS,
            "struck": STRUCK,
            "tiers": tiers(),
            "environment": describe_environment(),
            "seconds": perf_counter() - begun,
            "healthy": healthy,
            "collapses": [
                collapse_row(collapse, records[name])
                for name, collapse in COLLAPSES.items()
                if records[name]
            ],
            "records": records,
        }
    text = render(result, "collapse.json")
    _write(options.out or results_directory(complete=result["complete"]), result, text)
    print(text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.collapse", description=__doc__)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=list(SEEDS), help="default: %(default)s"
    )
    parser.add_argument(
        "--kinds", nargs="+", choices=list(TASKS), default=list(TASKS), help="default: all"
    )
    parser.add_argument("--quick", action="store_true", help="tiny models, short runs: seconds")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where to write (default: benchmarks/results for the complete run, "
        "runs/benchmarks with --quick or --kinds)",
    )
    return parser


def _run(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return a row of every run, and by collapse a record of every weight."""
    healthy: list[dict[str, Any]] = []
    records: dict[str, list[dict[str, Any]]] = {name: [] for name in COLLAPSES}
    for kind in options.kinds:
        for seed in options.seeds:
            begun = perf_counter()
            trajectory = train(kind, seed, quick=options.quick)
            seen, state = watch(trajectory)
            healthy.append(healthy_row(trajectory, seen))
            struck = collapsible(trajectory) if kind in HEALTHY else []
            for name, collapse in COLLAPSES.items():
                records[name] += [
                    {"kind": kind, "seed": seed, **strike(trajectory, state, weight, collapse)}
                    for weight in struck
                ]
            _say(
                f"{kind} {seed}: {len(seen.visits)} visits, {len(struck)} weights struck "
                f"in {len(COLLAPSES)} ways, {perf_counter() - begun:.0f} s"
            )
    return healthy, records


def _is_complete(options: argparse.Namespace) -> bool:
    return not options.quick and options.kinds == list(TASKS) and len(options.seeds) >= len(SEEDS)


def _write(directory: Path, result: dict[str, Any], text: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    content = json.dumps(result, indent=1, allow_nan=False) + "\n"
    (directory / "collapse.json").write_text(content, encoding="utf-8")
    (directory / "collapse.md").write_text(text, encoding="utf-8")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
