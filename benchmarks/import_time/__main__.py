"""Time what stableopt adds to importing torch: ``python -m benchmarks.import_time``."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.common.command import Benchmark

IMPORTS = {
    "import stableopt": "import stableopt",
    "from stableopt import StableOptimizer": "from stableopt import StableOptimizer",
}
RUNS = 15

_CODE = """
import gc, time
import torch
gc.collect()
begun = time.perf_counter()
{}
print(time.perf_counter() - begun)
"""


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {name: [] for name in IMPORTS}
    with TemporaryDirectory() as compiled:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": compiled}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for i in range(1 + RUNS):
            for name, statement in IMPORTS.items():
                took = _time(statement, environment)
                if i > 0:  # the first run has written the bytecode
                    seconds[name].append(took)
    return {
        "milliseconds": {
            name: {"median": 1e3 * median(times), "min": 1e3 * min(times), "max": 1e3 * max(times)}
            for name, times in seconds.items()
        }
    }


def render(result: dict[str, Any]) -> str:
    """Return a line for each import."""
    return "\n".join(
        f"{name}: {found['median']:.1f} ms ({found['min']:.1f} to {found['max']:.1f})"
        for name, found in result["milliseconds"].items()
    )


def _time(statement: str, environment: dict[str, str]) -> float:
    command = [sys.executable, "-c", _CODE.format(statement)]
    run = subprocess.run(command, capture_output=True, check=True, env=environment)
    return float(run.stdout)


main = Benchmark(name="import_time", about=__doc__, measure=_measure, render=render, is_table=False)

if __name__ == "__main__":
    sys.exit(main())
