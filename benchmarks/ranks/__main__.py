"""Measure what stableopt adds to DistributedDataParallel on several ranks of this machine.

Run as ``python -m benchmarks.ranks``; see ``--help``. All ways train on the same processes, and
take turns; a step is timed on every rank, and the slowest counts.
"""

from __future__ import annotations

import argparse
import pickle
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp

from benchmarks.common.command import Benchmark
from benchmarks.common.figures import quartiles, ratios
from benchmarks.ranks.report import VARIANTS, render
from benchmarks.ranks.runs import STEPS, enter

CELLS = [("1M", 512, 2), ("20M", 512, 2), ("20M", 512, 4)]
"""Size of the model, tokens of a rank and step, ranks."""

ROUNDS, QUICK_ROUNDS = 8, 1


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    cells = []
    for size, tokens, ranks in CELLS[:1] if options.quick else CELLS:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(enter, (size, tokens, ranks, rounds, folder), nprocs=ranks)
            times, said = pickle.loads(Path(folder, "found").read_bytes())
        whole = {name: [pair[0] for pair in pairs] for name, pairs in times.items()}
        update = {name: [pair[1] for pair in pairs] for name, pairs in times.items()}
        rows = [
            {
                "variant": name,
                "ratio": ratios(whole[name], whole["bare"]),
                "added": quartiles(
                    (mine - bare) / step
                    for mine, bare, step in zip(
                        update[name], update["bare"], whole["bare"], strict=True
                    )
                ),
                "milliseconds": quartiles(1e3 * seconds for seconds in whole[name]),
                **said[name],
            }
            for name in VARIANTS
        ]
        cells.append({"size": size, "tokens": tokens, "ranks": ranks, "rows": rows})
    return {"cells": cells, "rounds": rounds, "steps": STEPS}


main = Benchmark(
    name="ranks",
    about=__doc__,
    measure=_measure,
    render=render,
    quick="one cell, one round: half a minute",
)

if __name__ == "__main__":
    sys.exit(main())
