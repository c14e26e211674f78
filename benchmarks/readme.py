"""Put what is generated into README and docs: ``python -m benchmarks.readme``."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.closed_loop import report as closed_loop
from benchmarks.collapse import report as collapse
from benchmarks.common.environment import ROOT
from benchmarks.compatibility import report as compatibility
from benchmarks.compiles import report as compiles
from benchmarks.faults import report as faults
from benchmarks.fixed_cost import report as fixed_cost
from benchmarks.headlines import headlines
from benchmarks.learning_rate import report as learning_rate
from benchmarks.overhead import report as overhead
from benchmarks.ranks import report as ranks
from benchmarks.sensor_cost import report as sensor_cost
from benchmarks.sensors import report as sensors
from benchmarks.snapshots import report as snapshots
from benchmarks.soak import report as soak
from benchmarks.trackers import report as trackers
from benchmarks.zoo import report as zoo
from stableopt.commands.memory.estimate import estimate_memory
from stableopt.guard.responses import CAUSES, ON_RISK

RESULTS = ROOT / "benchmarks" / "results"


def causes() -> str:
    """Return the table of what is done about each cause, from the code that does it."""
    lines = ["| cause | what it is | done about it | may be asked for |", "|---|---|---|---|"]
    for kind, cause in CAUSES.items():
        done = f"`{cause.default.value}`"
        if kind in ON_RISK:
            done += f"; `{ON_RISK[kind].value}` with `act_on_risk=True`"
        allowed = ", ".join(f"`{item.value}`" for item in cause.allowed)
        lines.append(f"| `{kind}` | {cause.meaning} | {done} | {allowed} |")
    return "\n".join(lines)


def memory() -> str:
    """Return what common trainings take in memory, from the code of ``stableopt memory``."""
    lines = [
        "| training | without stableopt | a snapshot | 3 snapshots | 2 snapshots |",
        "|---|---|---|---|---|",
    ]
    for title, options in _TRAININGS.items():
        three, two = estimate_memory(**options), estimate_memory(**options, slots=2)
        sizes = [three.bare, three.slot, three.snapshots, two.snapshots]
        lines.append("| " + " | ".join([title, *(f"{n / 1e9:,.3g} GB" for n in sizes)]) + " |")
    return "\n".join(lines)


_TRAININGS: dict[str, dict[str, Any]] = {
    "ResNet-50, 25.6M, SGD with momentum": {"params": 25.6e6, "optimizer": "sgd-momentum"},
    "GPT-2, 124M, AdamW": {"params": 124e6},
    "1.3B, AdamW": {"params": 1.3e9},
    "7B, AdamW, float32": {"params": 7e9},
    "7B, AdamW, bfloat16": {"params": 7e9, "dtype": "bfloat16"},
    "7B, Lion, bfloat16": {"params": 7e9, "dtype": "bfloat16", "optimizer": "lion"},
    "7B, Adafactor, bfloat16": {"params": 7e9, "dtype": "bfloat16", "optimizer": "adafactor"},
    "7B, LoRA of 20M, AdamW, bfloat16": {"params": 7e9, "trainable": 20e6, "dtype": "bfloat16"},
    "70B, LoRA of 200M, AdamW, bfloat16": {"params": 7e10, "trainable": 2e8, "dtype": "bfloat16"},
}
"""By title, the options of ``estimate_memory``."""


DIGESTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "overhead": overhead.digest,
    "fixed_cost": fixed_cost.digest,
    "ranks": ranks.digest,
    "faults": faults.digest,
    "snapshots": snapshots.digest,
    "zoo": zoo.digest,
    "lr_sensitivity": learning_rate.digest,
    "compatibility": compatibility.digest,
    "sensors": sensors.digest,
    "sensor_cost": sensor_cost.digest,
    "collapse": collapse.digest,
    "soak": soak.digest,
    "closed_loop": closed_loop.digest,
    "compiles": compiles.digest,
    "trackers": trackers.digest,
}
"""What is quoted, by the name of its result file and of its marks in a page."""

TABLES: dict[str, Callable[[], str]] = {
    "causes": causes,
    "headlines": lambda: headlines(RESULTS),
    "memory": memory,
}
"""What pages have from the code itself."""

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
"""Where there may be marks."""

_MARKED = re.compile(
    r"(<!-- (?P<name>\w+): python -m benchmarks\.readme -->\n).*?(\n<!-- /(?P=name) -->)", re.DOTALL
)


def quoted(text: str) -> list[str]:
    """Return the names of the blocks that a page has."""
    return [found["name"] for found in _MARKED.finditer(text)]


def updated(text: str) -> str:
    """Return the text of a page with every block as results and code have it."""
    return _MARKED.sub(lambda found: f"{found[1]}{_block(found['name'])}{found[3]}", text)


def _block(name: str) -> str:
    if name in TABLES:
        return TABLES[name]()
    return DIGESTS[name](json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write what is generated into every page.

    Args:
        arguments: The command line; ``None`` for that of the process.

    Returns:
        The exit status: 0.
    """
    argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__).parse_args(
        arguments
    )
    for path in PAGES:
        path.write_text(updated(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
