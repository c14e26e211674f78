"""Time what stableopt adds to importing torch: ``python -m benchmarks.import_time``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.command import results_directory
from benchmarks.environment import describe_environment

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


def main() -> int:
    """Time each import in new interpreters, write ``import_time.json``, and print it.

    Returns:
        The exit status: 0.
    """
    seconds: dict[str, list[float]] = {name: [] for name in IMPORTS}
    with TemporaryDirectory() as compiled:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": compiled}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for i in range(1 + RUNS):
            for name, statement in IMPORTS.items():
                took = _time(statement, environment)
                if i > 0:  # the first run has written the bytecode
                    seconds[name].append(took)
    result = {
        "command": "python -m benchmarks.import_time",
        "environment": describe_environment(),
        "milliseconds": {
            name: {"median": 1e3 * median(times), "min": 1e3 * min(times), "max": 1e3 * max(times)}
            for name, times in seconds.items()
        },
    }
    path = results_directory(complete=True) / "import_time.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, found in result["milliseconds"].items():
        print(f"{name}: {found['median']:.1f} ms ({found['min']:.1f} to {found['max']:.1f})")
    return 0


def _time(statement: str, environment: dict[str, str]) -> float:
    command = [sys.executable, "-c", _CODE.format(statement)]
    run = subprocess.run(command, capture_output=True, check=True, env=environment)
    return float(run.stdout)


if __name__ == "__main__":
    sys.exit(main())
