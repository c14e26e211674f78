"""Put what is generated into README and docs: ``python -m benchmarks.readme``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.closed_loop import report as closed_loop
from benchmarks.collapse import report as collapse
from benchmarks.common.environment import ROOT
from benchmarks.compatibility import report as compatibility
from benchmarks.faults import report as faults
from benchmarks.learning_rate import report as learning_rate
from benchmarks.overhead import report as overhead
from benchmarks.sensor_cost import report as sensor_cost
from benchmarks.sensors import report as sensors
from benchmarks.snapshots import report as snapshots
from benchmarks.soak import report as soak
from benchmarks.zoo import report as zoo
from stableopt.guard.responses import CAUSES, ON_RISK

README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"


BLOCKS: dict[str, Callable[[dict[str, Any]], str]] = {
    "overhead": overhead.digest,
    "faults": faults.digest,
    "snapshots": snapshots.digest,
    "zoo": zoo.digest,
    "lr_sensitivity": learning_rate.digest,
    "compatibility": compatibility.digest,
}
"""What is quoted, by the name of its result file and of its marks in the README."""

PAGES: dict[Path, dict[str, Callable[[dict[str, Any]], str]]] = {
    README: BLOCKS,
    ROOT / "docs" / "sensors.md": {
        "sensors": sensors.digest,
        "sensor_cost": sensor_cost.digest,
        "collapse": collapse.digest,
    },
    ROOT / "docs" / "judgement.md": {"soak": soak.digest},
    ROOT / "docs" / "transforms.md": {"closed_loop": closed_loop.digest},
}
"""What every page quotes."""


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


TABLES: dict[Path, dict[str, Callable[[], str]]] = {
    ROOT / "docs" / "judgement.md": {"causes": causes},
}
"""What pages have from the code itself."""


def updated(text: str, page: Path = README) -> str:
    """Return the ``text`` of a page with every block as results and code have it."""
    found = {name: table() for name, table in TABLES.get(page, {}).items()}
    for name, digest in PAGES.get(page, {}).items():
        found[name] = digest(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))
    for name, block in found.items():
        begin, end = f"<!-- {name}: python -m benchmarks.readme -->", f"<!-- /{name} -->"
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = f"{before}{begin}\n{block}\n{end}{after}"
    return text


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
    for path in dict.fromkeys((*PAGES, *TABLES)):
        path.write_text(updated(path.read_text(encoding="utf-8"), path), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
