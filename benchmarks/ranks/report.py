"""What several ranks cost, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.common.report import facts, grid, heading, machine, middle, table

VARIANTS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "bare": ("DDP, AdamW", None),
    "clip": ("DDP, AdamW + `clip_grad_norm_`", None),
    "off": ("`StableOptimizer(AdamW, guard=False, sensors=())`", {"guard": False, "sensors": ()}),
    "guard": ("`StableOptimizer(AdamW, sensors=())`: the guard only", {"sensors": ()}),
    "wrapped": ("`StableOptimizer(AdamW)`", {}),
}
"""By name, the label, and the options of the wrapper; ``None`` for none."""

_PREFACE = """
Processes of one machine, which has fewer cores than they would like: gloo, fp32, one thread each. \
Medians of {rounds} rounds of {steps} steps, with quartiles; in each round every row takes its \
turn, and of every step the slowest rank counts.

- **step**: by that of DDP with AdamW.
- **added**: between the end of backward and the end of the step, as a share of the whole bare \
step. It holds the wait for the slowest rank, which without it comes in the next backward pass.
- **calls**: sums and gathers over all ranks, by step.
"""

_COLUMNS: dict[str, Callable[[Any], str]] = {
    "": lambda row: VARIANTS[row["variant"]][0],
    "ms": lambda row: middle(row["milliseconds"], "{:.0f}"),
    "step": lambda row: "1" if row["variant"] == "bare" else middle(row["ratio"], "{:.3f}"),
    "added": lambda row: "0" if row["variant"] == "bare" else _share(row),
    "sums": lambda row: _by_step(row, "sums"),
    "gathers": lambda row: _by_step(row, "gathers"),
    "interventions": lambda row: str(row.get("interventions", "-")),
}


def _share(row: Mapping[str, Any]) -> str:
    return middle({key: 100 * value for key, value in row["added"].items()}, "{:+.2f}%")


def _by_step(row: Mapping[str, Any], what: str) -> str:
    return f"{row[what] / row['calls']:.2f}" if what in row else "0"


def _title(cell: Mapping[str, Any]) -> str:
    return f"{cell['size']}, {cell['tokens']} tokens a rank, {cell['ranks']} ranks"


def render(result: Mapping[str, Any]) -> str:
    """Return the Markdown of a result, what ``ranks.json`` holds."""
    parts = [heading("What several ranks cost", "ranks") + _PREFACE.format(**result)]
    parts.append(facts(result, machine(result)))
    for cell in result["cells"]:
        parts.append(f"## {_title(cell)}\n")
        parts.append(table(_COLUMNS, cell["rows"]))
    return "\n".join(parts)


def digest(result: Mapping[str, Any]) -> str:
    """Return what the documentation quotes: added and, in brackets, the whole step."""
    cells = result["cells"]
    rows = (
        [label, *(_brief(cell["rows"][number]) for cell in cells)]
        for number, (label, _) in enumerate(VARIANTS.values())
    )
    return "\n".join(grid(["", *map(_title, cells)], rows))


def _brief(row: Mapping[str, Any]) -> str:
    if row["variant"] == "bare":
        return f"{row['milliseconds']['median']:.0f} ms"
    return f"{100 * row['added']['median']:+.2f}% (x{row['ratio']['median']:.2f})"
