"""What the sensor benchmark shows about samples of rows, and about the published formulas."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.common.report import table
from benchmarks.sensors.matrices import KINDS


def limits(rows: Sequence[dict[str, Any]]) -> str:
    """Return what a sample of the rows cannot see."""
    lines = []
    missed = [row for row in rows if row["sick"] and not row["ours"]["right"]]
    if missed:
        columns: dict[str, Callable[[Any], str]] = {
            "missed": lambda row: f"{KINDS[row['kind']].title}, {row['rows']} x {row['columns']}",
            "relative rank": lambda row: number(row["ours"]["values"]["relative_rank"]),
            "of all rows": lambda row: number(row["relative"]["relative_rank"]),
            "redundancy (independent: 1)": lambda row: number(_entry(row, "redundancy")["value"]),
            "seen with a sample of": lambda row: (
                f"{row['rows_needed']} rows" if row["rows_needed"] else "none up to 2048"
            ),
            "ASSR": lambda row: "sees it" if row["assr"]["complains"] else "misses it, too",
        }
        lines += [
            table(columns, missed),
            "128 rows are nearly independent as long as the whole has some hundreds of directions "
            "left, and of many pairs of copies the sample rarely holds both: there the default is "
            "blind, and a full decomposition, or a larger sample (`SampledSpectrum(rows=...)`), "
            "is not. The redundancy, which has no limit of its own, does move.\n",
        ]
    lost = [row for row in rows if row["kind"] == "near-singular"]
    found = " / ".join(number(_entry(row, "condition_number")["value"]) for row in lost)
    lines.append(
        "One lost direction: the layer computes what it did before in all directions but "
        "one, and only what inverts it suffers. The sampled spectrum, and any method that only "
        "multiplies, cannot see it and calls it "
        f"{' or '.join(dict.fromkeys(row['ours']['standing'] for row in lost))}. ASSR's "
        "condition number does see it, though where the healthy square is above 1000 as well its "
        f"alarm tells nothing apart. Our `ConditionNumber` reads {found}, and it runs on "
        "suspicion or with `always=True`: not in the default set."
    )
    return "\n".join(lines) + "\n"


def misleading(result: dict[str, Any]) -> str:
    """Return where a published formula misleads."""
    squares = "; ".join(f"{s['size']}²: {s['above_1000']:.0%}" for s in result["gaussian_squares"])
    measured = "; ".join(
        f"{row['rows']} x {row['columns']}: {number(seed_of(row, 'assr_condition_number'))}"
        for row in result["matrices"]
        if not row["sick"] and row["sick"] is not None
    )
    end = {entry["title"]: entry for entry in result["ends"]}
    orthogonal, same = end["orthogonal rows (κ = 1)"], end["all rows identical"]
    plain, small, large = (end[t] for t in ("Gaussian", "the same, x 0.01", "the same, x 100"))
    damaged = end["Gaussian with a NaN"]
    pairs = [
        (
            seed_of(row, "kappa_tilde"),
            seed_of(
                next(
                    r
                    for r in result["matrices"]
                    if (r["kind"], r["rows"], r["columns"])
                    == ("gaussian", row["rows"], row["columns"])
                ),
                "kappa_tilde",
            ),
        )
        for row in result["matrices"]
        if row["kind"] == "near-singular"
    ]
    apart = max(abs(a / b - 1) for a, b in pairs)
    return (
        "ASSR and Gradience were first to watch a run through its spectra, and we owe them the "
        "idea; all three of their formulas are here under their own names, exactly as published.\n"
        "\n- **ASSR's condition number is computed right**; it is the fixed ceiling of 1000 that "
        "does not fit squares. A Gaussian square of size n has about 3.7 n, so the chance that a "
        f"fresh, healthy one is above 1000 is {squares}. Read here on healthy weights: {measured}."
        + _rectangles(result["matrices"])
        + "\n"
        "- **ASSR's Fiedler value** is that of D - G with the signs left in, which is not a graph: "
        f"orthogonal rows, the healthiest there are, read {number(orthogonal['assr_fiedler'])} "
        f"(an alarm), rows that are all identical {number(same['assr_fiedler'])} (no alarm). It "
        f"goes with the square of the scale: one and the same matrix reads "
        f"{number(small['assr_fiedler'])}, {number(plain['assr_fiedler'])} and "
        f"{number(large['assr_fiedler'])} at 0.01, 1 and 100 times its size. A NaN reads "
        f"{number(damaged['assr_fiedler'])}, which passes for healthy (its condition number "
        f"reads {number(damaged['assr_condition_number'])}).\n"
        "- **Gradience's κ̃** is 10 √(min(m, n) / stable rank): a fine measure of how much one "
        "direction dominates, and no condition number. Between a Gaussian matrix and the same "
        f"kind with one singular value of 1e-7 it differs by at most {apart:.1%}, and orthogonal "
        f"rows read {number(orthogonal['kappa_tilde'])}, its minimum, as they should.\n"
    )


def _rectangles(rows: Sequence[dict[str, Any]]) -> str:
    found = [row for row in rows if row["rows"] != row["columns"]]
    if not found:
        return ""
    false = sum(row["assr"]["complains"] for row in found if row["sick"] is False)
    seen = [row for row in found if row["sick"]]
    right = sum(row["assr"]["complains"] for row in seen)
    return (
        f" On rectangles it is another matter: {false} false alarms here, and {right} of "
        f"{len(seen)} sick ones seen."
    )


def _entry(row: dict[str, Any], metric: str) -> dict[str, Any]:
    return next(entry for entry in row["entries"] if entry["metric"] == metric)


def seed_of(row: dict[str, Any], metric: str) -> float:
    """Return what a published formula reads."""
    return next(entry["value"] for entry in row["seeds"] if entry["metric"] == metric)


def number(value: float | None) -> str:
    """Return a reading with three digits; a dash for none."""
    if value is None or math.isnan(value):
        return "-"
    if math.isinf(value):
        return "∞"
    return f"{value:.3g}" if abs(value) < 1e16 else "∞ (rounding)"
