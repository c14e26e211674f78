"""Put the short table of the overhead results into the README: ``python -m benchmarks.readme``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.variants import VARIANTS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results" / "overhead.json"
BEGIN, END = "<!-- overhead: python -m benchmarks.readme -->", "<!-- /overhead -->"


def digest(result: dict[str, Any]) -> str:
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


def replaced(text: str, table: str) -> str:
    """Return ``text`` with ``table`` between the two marks."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def _entry(variant: dict[str, Any]) -> str:
    added = variant["added_by_update"]["median"]
    whole = variant["to_adamw"]["median"]
    return f"{added:+.2%} (x{whole:.2f})"


if __name__ == "__main__":
    table = digest(json.loads(RESULTS.read_text(encoding="utf-8")))
    README.write_text(replaced(README.read_text(encoding="utf-8"), table), encoding="utf-8")
