"""Put what is generated into README and docs: ``python -m benchmarks.readme``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import (
    closed_loop_report,
    collapse_report,
    compatibility,
    fault_report,
    fault_rivals,
    lr_report,
    sensor_cost,
    sensors_report,
    soak_report,
)
from benchmarks.variants import VARIANTS
from benchmarks.zoo import report as zoo_report
from stableopt.guard.responses import CAUSES, ON_RISK

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"


def overhead(result: dict[str, Any]) -> str:
    """Return one row per variant and one column per cell with the fused optimizer.

    A cell has what the update adds to a bare training step and, in brackets, the wall time
    of the whole step relative to the bare one; medians.
    """
    cells = [cell for cell in result["cells"] if cell["implementation"] == "fused"]
    head = [f"{c['parameters'] / 1e6:.0f}M, {c['tokens']:,} tokens" for c in cells]
    lines = [f"| | {' | '.join(head)} |", "|---" * (len(cells) + 1) + "|"]
    for i, variant in enumerate(cells[0]["variants"]):
        if i > 0:
            entries = [_entry(cell["variants"][i]) for cell in cells]
            lines.append(f"| {VARIANTS[variant['name']].label} | {' | '.join(entries)} |")
    return "\n".join(lines)


def faults(result: dict[str, Any]) -> str:
    """Return one row per fault: how many runs of each contestant survive it, and what ours lose."""
    rows = result["rows"]
    names = list(rows[0]["contestants"])
    head = " | ".join(fault_rivals.TITLES[name] for name in names)
    lines = [
        f"| fault | {head} | found after | steps lost | worst Δval |",
        "|---" * (len(names) + 4) + "|",
    ]
    for row in rows:
        scores = [row["contestants"][name] for name in names]
        delta = row["contestants"][fault_rivals.OURS]["delta"]
        lines.append(
            f"| {row['title']} | {' | '.join(map(fault_report.survival, scores))} | "
            f"{_range(row['latency'])} | {_range(row['steps_lost'])} | "
            f"{fault_report.signed(delta)} |"
        )
    restores = sum(row["poisoned_restores"] for row in rows)
    return "\n".join(
        [
            *lines,
            "",
            f"`{result['guard']}`, hash {result['guard_hash']}. Restores of a copy with a fault in "
            f"it: {restores}. Interventions in {result['clean_runs']} runs without a fault: "
            f"{result['clean_interventions']}.",
        ]
    )


def snapshots(result: dict[str, Any]) -> str:
    """Return what snapshots and rollbacks cost, as sentences."""
    sentences = []
    for cell in result["cells"]:
        sentences.append(
            f"{cell['name'].replace('-', ' at ')} tokens: a snapshot takes as long as "
            f"{cell['snapshot_in_copies']:.1f} plain copies of parameters and moments, a rollback "
            f"as {cell['rollback_in_copies']:.1f}; one snapshot in {result['every']} steps is "
            f"{cell['snapshots_of_a_step']:.3%} of training."
        )
        if cell["whole"]:
            sentences[-1] += (
                f" Wall time of {cell['whole']['intervals']} whole intervals, guarded by bare: "
                f"x{cell['whole']['ratio']:.3f}."
            )
    return "\n".join(f"- {sentence}" for sentence in sentences)


BLOCKS: dict[str, Callable[[dict[str, Any]], str]] = {
    "overhead": overhead,
    "faults": faults,
    "snapshots": snapshots,
    "zoo": zoo_report.digest,
    "lr_sensitivity": lr_report.digest,
    "compatibility": compatibility.table,
}
"""What is quoted, by the name of its result file and of its marks in the README."""

PAGES: dict[Path, dict[str, Callable[[dict[str, Any]], str]]] = {
    README: BLOCKS,
    ROOT / "docs" / "sensors.md": {
        "sensors": sensors_report.digest,
        "sensor_cost": sensor_cost.digest,
        "collapse": collapse_report.digest,
    },
    ROOT / "docs" / "judgement.md": {"soak": soak_report.digest},
    ROOT / "docs" / "transforms.md": {"closed_loop": closed_loop_report.digest},
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


def _entry(variant: dict[str, Any]) -> str:
    added = variant["added_by_update"]["median"]
    whole = variant["to_adamw"]["median"]
    return f"{added:+.2%} (x{whole:.2f})"


def _range(spread: dict[str, float | None] | None) -> str:
    if not spread or spread["median"] is None:
        return "-"
    return f"{spread['median']:g}, at most {spread['max']:g}"


if __name__ == "__main__":
    for path in dict.fromkeys((*PAGES, *TABLES)):
        path.write_text(updated(path.read_text(encoding="utf-8"), path), encoding="utf-8")
