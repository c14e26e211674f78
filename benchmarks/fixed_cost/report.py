"""The fixed cost of a step, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.common.report import facts, grid, heading, machine, middle, table

VARIANTS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "bare": ("AdamW", None),
    "wrapped": ("`StableOptimizer(AdamW)`", {}),
    "off": ("`StableOptimizer(AdamW, guard=False, sensors=())`", {"guard": False, "sensors": ()}),
}
"""By name, the label, and the options of the wrapper; ``None`` for none."""

_PREFACE = """
{parameters:,} parameters in {tensors} tensors (linear layers of 32 x 32 with biases), fp32, CPU, \
with gradients that are there from the beginning: what a step costs however small the model is. \
Medians of {rounds} rounds of {steps} steps, with quartiles; in each round every row takes its \
turn. Snapshots and sensors are part of the steps in which they are due.
"""

_COLUMNS: dict[str, Callable[[Any], str]] = {
    "": lambda row: f"{VARIANTS[row['variant']][0]}, {row['implementation']}",
    "µs per step": lambda row: middle(row["microseconds"], "{:.1f}"),
    "added to AdamW": lambda row: "0" if _is_bare(row) else middle(row["added"], "{:+.1f}"),
    "interventions": lambda row: str(row["interventions"]),
}


def render(result: Mapping[str, Any]) -> str:
    """Return the Markdown of a result, what ``fixed_cost.json`` holds."""
    preface = heading("The fixed cost of a step", "fixed_cost") + _PREFACE.format(**result)
    used = f"{result['environment']['threads']} thread(s) used"
    return "\n".join(
        [preface, facts(result, machine(result), used), table(_COLUMNS, result["rows"])]
    )


def digest(result: Mapping[str, Any]) -> str:
    """Return what the documentation quotes: a row for each variant, in µs per step."""
    rows = {(row["implementation"], row["variant"]): row for row in result["rows"]}
    kinds = list(dict.fromkeys(kind for kind, _ in rows))
    head = ["µs per step", *(f"AdamW, {kind}" for kind in kinds)]
    cells = (
        [label, *(_brief(rows[k, name]) for k in kinds)] for name, (label, _) in VARIANTS.items()
    )
    return "\n".join(grid(head, cells))


def _brief(row: Mapping[str, Any]) -> str:
    added = "" if _is_bare(row) else f" ({row['added']['median']:+.0f})"
    return f"{row['microseconds']['median']:.0f}{added}"


def _is_bare(row: Mapping[str, Any]) -> bool:
    return bool(row["variant"] == "bare")
