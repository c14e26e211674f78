"""Train what is healthy but unusual, bare and wrapped: the guard is to harm none of it.

Run as ``python -m benchmarks.zoo``; see ``--help``.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from benchmarks.common.command import Benchmark
from benchmarks.common.environment import guard_hash
from benchmarks.common.runner import play
from benchmarks.zoo.catalogue import TRAININGS, play_both
from benchmarks.zoo.report import render
from benchmarks.zoo.rows import row_of
from benchmarks.zoo.targets import SEEDS, targets
from stableopt import Guard


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only", nargs="+", choices=list(TRAININGS), metavar="NAME", help="default: all"
    )
    parser.add_argument("--list", action="store_true", help="list the trainings, and train nothing")


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    if options.list:
        print("\n".join(f"{name}: {t.title}" for name, t in TRAININGS.items()))
        sys.exit(0)
    names = [name for name in TRAININGS if not options.only or name in options.only]
    seeds = sorted(set(options.seeds))
    pairs = [(name, seed) for seed in seeds for name in names]
    played = play(play_both, pairs, jobs=options.jobs, title="trainings")
    records = {name: [r for seed in seeds for r in played[name, seed]] for name in names}
    rows = [row_of(TRAININGS[name], records[name]) for name in names]
    return {
        "seeds": seeds,
        "jobs": options.jobs or 1,
        "guard": repr(Guard()),
        "guard_hash": guard_hash(),
        "targets": targets(rows),
        "rows": rows,
        "records": records,
    }


main = Benchmark(
    name="zoo",
    about=__doc__,
    measure=_measure,
    render=render,
    options=_options,
    is_complete=lambda o: not o.only and sorted(set(o.seeds)) == sorted(SEEDS),
    seeds=SEEDS,
    jobs=2,
    is_good=lambda result: all(target["met"] for target in result["targets"]),
)

if __name__ == "__main__":  # workers import this module, too
    sys.exit(main())
