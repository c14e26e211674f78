"""The figures that the README leads with, from the committed results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.faults.rivals import BASELINE, OURS
from benchmarks.faults.targets import is_fault


def headlines(results: Path) -> str:
    """Return one line for each question, with the page that has the table.

    Args:
        results: The directory of the result files.
    """
    answers = (_faults, _healthy, _time, _fixed, _snapshots, _learning_rate)
    return "\n".join(f"- {answer(_Results(results))}" for answer in answers)


class _Results:
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __getitem__(self, name: str) -> Any:
        return json.loads((self._directory / f"{name}.json").read_text(encoding="utf-8"))


def _faults(results: _Results) -> str:
    rows = [row for row in results["faults"]["rows"] if is_fault(row)]
    scores = [row["contestants"] for row in rows]

    def sound(name: str) -> int:
        kinds = ("poisoned", "diverged")
        return sum(s[name]["survived"] - sum(s[name][kind] for kind in kinds) for s in scores)

    names = {BASELINE: "AdamW with clipping", "checkpoint": "a checkpoint every 100 updates"}
    runs = sum(score[OURS]["runs"] for score in scores)
    rivals = "; ".join(f"{sound(name)} with {title}" for name, title in names.items())
    return (
        f"**Faults.** {runs} runs, each hit by one of {len(rows)} kinds of fault: {sound(OURS)} "
        f"end sound with stableopt; {rivals} ([table](docs/evidence/faults.md))."
    )


def _healthy(results: _Results) -> str:
    runs = results["soak"]["runs"]
    steps, acts = (sum(run[key] for run in runs) for key in ("steps", "interventions"))
    zoo = results["zoo"]["rows"]
    moved = sum(bool(row["outside"] or row["shifted"]) for row in zoo)
    return (
        f"**False alarms.** {acts} interventions in {steps:,} healthy steps. Of {len(zoo)} healthy "
        f"but unusual trainings {moved} end outside the range of their bare runs "
        "([table](docs/evidence/healthy-runs.md))."
    )


def _time(results: _Results) -> str:
    cells = [c for c in results["overhead"]["cells"] if c["implementation"] == "fused"]
    small, large = (_added(cells, name) for name in ("1M-512", "20M-4096"))
    return (
        f"**Time.** {small:+.1%} of a step of 1M parameters and 512 tokens on a CPU, {large:+.1%} "
        "at 20M and 4,096 ([table](docs/evidence/cost.md))."
    )


def _added(cells: Any, name: str) -> float:
    (cell,) = [cell for cell in cells if cell["name"] == name]
    (found,) = [v for v in cell["variants"] if v["name"] == "stable"]
    return float(found["added_by_update"]["median"])


def _fixed(results: _Results) -> str:
    rows = results["fixed_cost"]["rows"]
    (row,) = [r for r in rows if (r["implementation"], r["variant"]) == ("fused", "wrapped")]
    return (
        f"**Tiny models.** Some {row['added']['median'] / 1000:.1f} ms a step, however small the "
        "model ([table](docs/evidence/cost.md#the-fixed-cost-of-a-step))."
    )


def _snapshots(results: _Results) -> str:
    shares = [cell["snapshots_of_a_step"] for cell in results["snapshots"]["cells"]]
    return (
        "**Memory.** Three snapshots of parameters, optimizer state and buffers: with AdamW, nine "
        "times the size of the weights more ([calculator](docs/reference/memory.md)). Taking "
        f"them is {min(shares):.3%} to {max(shares):.3%} of training."
    )


def _learning_rate(results: _Results) -> str:
    rows = results["lr_sensitivity"]["rows"]
    found = {row["method"]: row["lrs_plus"]["mean"] for row in rows if row["task"] == "pre-LN"}
    return (
        f"**Learning rate.** With `presets.robust()` a small transformer loses "
        f"{found['robust']:.3f} nats on average at learning rates above the best one, AdamW with "
        f"clipping {found['AdamW + clip']:.3f} ([table](docs/evidence/learning-rate.md))."
    )
