"""What the sensors were to reach, and whether they do."""

from __future__ import annotations

from typing import Any


def targets(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return every target with what was measured; those of sizes not measured are left out."""
    found: list[dict[str, Any]] = []
    gaussian = {
        row["columns"]: row["seconds"]
        for row in result["matrices"]
        if row["kind"] == "gaussian" and row["rows"] == row["columns"]
    }
    for row in result["simulated"]:
        if row["size"] >= 1024 and row["10"]:
            what = f"σ₁ p99 error, warm, simulated training at {row['size']}²"
            found.append(_target(what, row["10"]["p99"], 0.01))
    for run in result["runs"]:
        if run["10"]:
            what = f"σ₁ p99 error, warm, real training ({run['name']})"
            found.append(_target(what, run["10"]["p99"], 0.01))
    for size, seconds in gaussian.items():
        if size >= 1024:
            what = f"warm σ₁ / svdvals, time at {size}²"
            found.append(_target(what, seconds["warm"] / seconds["svd"], 1 / 50))
    for size, seconds in gaussian.items():
        if size >= 512:
            exact = seconds["svd"] + seconds["eigenvalues"]
            limit = 1 / 50 if size >= 1024 else 1 / 15
            what = f"always-on set / (eigvalsh + svdvals), time at {size}²"
            found.append(_target(what, seconds["set"] / exact, limit))
    return found


def _target(what: str, value: float, limit: float) -> dict[str, Any]:
    return {"what": what, "value": value, "limit": limit, "met": value <= limit}
