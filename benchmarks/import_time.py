"""Time what stableopt adds to importing torch: ``python -m benchmarks.import_time``."""

from __future__ import annotations

import json
import subprocess
import sys
from statistics import median

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
    for _ in range(RUNS):
        for name, statement in IMPORTS.items():
            code = _CODE.format(statement)
            run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
            seconds[name].append(float(run.stdout))
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


if __name__ == "__main__":
    sys.exit(main())
