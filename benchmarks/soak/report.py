"""What is told of a long healthy training, as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.common.report import facts, grid, heading, table
from stableopt.guard.responses import CAUSES

NONE_SEEN = 3.0
"""Of something that was never seen in n trials, 3 / n is the upper end of a 95% interval."""


_COLUMNS: dict[str, Callable[[Any], str]] = {
    "model": lambda run: run["model"],
    "optimizer": lambda run: run["optimizer"],
    "seed": lambda run: str(run["seed"]),
    "steps": lambda run: f"{run['steps']:,}",
    "loss": lambda run: f"{run['loss'][0]:.3g} to {run['loss'][1]:.3g}",
    "interventions": lambda run: str(run["interventions"]),
    "notices": lambda run: str(sum(run["findings"].values())),
    "snapshots": lambda run: str(run["snapshots"]),
    "grown": lambda run: "-" if run["growth"] is None else f"{run['growth']:+.1%}",
}


def render(result: Mapping[str, Any]) -> str:
    """Return the Markdown of a result."""
    runs = result["runs"]
    steps = sum(run["steps"] for run in runs)
    interventions = sum(run["interventions"] for run in runs)
    risks = sum(n for run in runs for kind, n in run["findings"].items() if kind.startswith("risk"))
    lines = [
        heading("Healthy training", "soak"),
        f"{steps:,} healthy steps in {len(runs)} runs, with the default guard "
        f"({result['guard_hash']}), sensors, snapshots and telemetry: **{interventions} "
        f"interventions**, {risks} notices of a risk.",
        "",
        facts(result, result["environment"]["cpu"], "one thread", f"{result['seconds']:.0f} s"),
        table(_COLUMNS, runs).rstrip(),
    ]
    reasons = [
        f"- {run['model']}, {run['optimizer']}: {reason}"
        for run in runs
        for reason in run["reasons"]
    ]
    return "\n".join([*lines, *(["", *reasons] if reasons else []), ""])


def digest(result: Mapping[str, Any]) -> str:
    """Return how often each cause was found though nothing was wrong."""
    runs = result["runs"]
    steps = sum(run["steps"] for run in runs)
    found: Counter[str] = Counter()
    for run in runs:
        found.update(run["findings"])
    grown = [run["growth"] for run in runs if run["growth"] is not None]
    handles = [run["handles"] for run in runs if run["handles"] is not None] or [0]
    left = max(handles) - handles[0]
    # On one rank there are no replicas that could part.
    never = [f"`{k}`" for k in CAUSES if not found[k] and k != "diverged_replicas"]
    lines = [
        f"{steps:,} healthy steps of {len({run['model'] for run in runs})} models under "
        f"{len({run['optimizer'] for run in runs})} optimizers (learning rates up to 3e-3), with "
        f"the default guard (hash {result['guard_hash']}), sensors, snapshots and telemetry: "
        f"**{sum(run['interventions'] for run in runs)} interventions**; memory grew by at most "
        f"{max(grown, default=0):.1%} from a tenth of a run to its end, {left} files stayed open. "
        f"Never found: {', '.join(never)} (below {NONE_SEEN / steps * 1e4:.1f} in 10,000 steps, "
        "with 95% confidence)."
    ]
    told = [kind for kind in CAUSES if found[kind]]
    if told:
        head = ("found", "times", "in 10,000 steps")
        rows = ((f"`{k}`", str(found[k]), f"{found[k] / steps * 1e4:.1f}") for k in told)
        lines += ["", *grid(head, rows)]
    return "\n".join(lines)
