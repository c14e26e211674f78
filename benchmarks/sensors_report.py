"""The tables of the sensor benchmark, as Markdown, and what the documentation quotes of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from benchmarks.sensors_matrices import CLUSTER_NOISE, KINDS
from benchmarks.sensors_track import COVERAGE, EVERY, SPIKE, STEP
from stableopt.functional.spectral_norm import WARM_STEPS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_PREFACE = """\
# Sensors against exact values, and against the published formulas

<!-- Generated from {source} by `python -m benchmarks.sensors`; do not edit. -->

float32, CPU, one thread. Exact values are decompositions in float64; exact **times** are those
of the same decomposition in float32, which is what the published recipes run. The machine is
shared: ratios of interleaved runs are quoted, medians of repeats (one run at 2048 and 4096).
"""


def render(result: dict[str, Any], source: str) -> str:
    """Return the Markdown of a result.

    Args:
        result: What ``sensors.json`` holds.
        source: The name of that file.
    """
    parts = [_PREFACE.format(source=f"`{source}`"), _facts(result), digest(result)]
    parts += ["\n## Every reading\n", _LEGEND]
    for row in result["matrices"]:
        origin = f" ({row['source']})" if row["source"] else ""
        title = KINDS[row["kind"]].title
        parts.append(f"### {title}, {row['rows']} x {row['columns']}{origin}\n")
        parts.append(_table(_ENTRY, [*row["entries"], *row["seeds"]]))
        parts.append(_said(row))
    return "\n".join(parts)


def digest(result: dict[str, Any]) -> str:
    """Return what the documentation quotes."""
    parts = [
        "## Targets\n",
        _table(_TARGET, result["targets"]),
        "## Who complains about what\n",
        _kinds(result),
        _verdicts(result["matrices"]),
        _counts(result["matrices"]),
        "### What a sample of the rows cannot see\n",
        _limits(result["matrices"]),
        "## Where a published formula misleads\n",
        _misleading(result),
        _table(_END, result["ends"]),
        "## Error\n",
        _errors(result["matrices"]),
        "## Time\n",
        _times(result["matrices"]),
        "## The warm spectral norm\n",
        _tracking(result),
    ]
    return "\n".join(parts).rstrip()


def _facts(result: dict[str, Any]) -> str:
    facts = result["environment"]
    lines = [
        f"`{result['command']}`, seed {result['seed']}, {facts['date']}: "
        f"stableopt {facts['stableopt']} ({facts['commit'] or 'no commit'}), "
        f"torch {facts['torch']}, Python {facts['python']}, {facts['system']}, {facts['cpu']}, "
        f"{facts['cores']} cores, 1 thread used, {result['seconds'] / 60:.1f} minutes."
    ]
    if not result["complete"]:
        lines.append("\n**Not the complete run: these figures are not to be quoted.**")
    return "\n".join(lines) + "\n"


_LEGEND = """\
**error**: relative; `-` where only that the value is large is known. The rows of the sampled
spectrum are held against the same sample in float64; **all rows** is the same quantity of the
whole matrix. One visit of `SampledSpectrum` reads four of them at once.
"""


def _kinds(result: dict[str, Any]) -> str:
    untrained = ", ".join(f"{m} x {n}" for m, n in result["untrained"]) or "none"
    return (
        "`SampledSpectrum` and its limits, against the thresholds of ASSR (Fiedler below 0.05, or "
        "condition number above 1000). Gradience gives κ̃ no absolute limit, only one for its "
        "slope: **no verdict**. Gaussian and trained weights are healthy; clusters (eight, with "
        f"{CLUSTER_NOISE:.0%} noise), copies and a collapsed rank are sick. Trained on Python's "
        "standard library: "
        + "; ".join(
            f"{run['name']}, {run['steps']} steps, loss {run['loss']:.2f}" for run in result["runs"]
        )
        + f". Shapes that no short run has, and that have no trained row: {untrained}.\n"
    )


def _said(row: dict[str, Any]) -> str:
    ours, assr = row["ours"], row["assr"]
    by = f" by {', '.join(ours['by'])}" if ours["by"] else ""
    theirs = f"sick, by {', '.join(assr['by'])}" if assr["by"] else "healthy"
    readings = ", ".join(f"{name} {_number(value)}" for name, value in ours["values"].items())
    return (
        f"Ours: {ours['standing']}{by} ({readings}): {_right(ours)}. ASSR: {theirs}: "
        f"{_right(assr)}. κ̃: no verdict. Relative rank of all rows: "
        f"{_number(row['relative']['relative_rank'])}.\n"
    )


def _right(verdict: dict[str, Any]) -> str:
    return {True: "right", False: "**wrong**", None: "see below"}[verdict["right"]]


def _verdicts(rows: Sequence[dict[str, Any]]) -> str:
    columns: dict[str, Callable[[Any], str]] = {
        "matrix": lambda row: KINDS[row["kind"]].title,
        "shape": lambda row: f"{row['rows']} x {row['columns']}",
        "truth": lambda row: {True: "sick", False: "healthy", None: "see below"}[row["sick"]],
        "relative rank": lambda row: _number(row["ours"]["values"]["relative_rank"]),
        "of all rows": lambda row: _number(row["relative"]["relative_rank"]),
        "κ_p10": lambda row: _number(row["ours"]["values"]["kappa_p10"]),
        "relative Fiedler": lambda row: _number(row["ours"]["values"]["relative_fiedler"]),
        "we say": lambda row: f"{row['ours']['standing']}{_mark(row['ours'])}",
        "ASSR κ": lambda row: _number(_seed(row, "assr_condition_number")),
        "ASSR Fiedler": lambda row: _number(_seed(row, "assr_fiedler")),
        "ASSR says": lambda row: (
            f"{'sick' if row['assr']['complains'] else 'healthy'}{_mark(row['assr'])}"
        ),
        "κ̃": lambda row: _number(_seed(row, "kappa_tilde")),
    }
    order = list(KINDS)
    return _table(columns, sorted(rows, key=lambda row: order.index(row["kind"])))


def _mark(verdict: dict[str, Any]) -> str:
    return {True: ", right", False: ", **wrong**", None: ""}[verdict["right"]]


def _counts(rows: Sequence[dict[str, Any]]) -> str:
    sentences = []
    for sick, what in ((False, "healthy"), (True, "sick")):
        chosen = [row for row in rows if row["sick"] is sick]
        ours = sum(row["ours"]["right"] for row in chosen)
        assr = sum(row["assr"]["right"] for row in chosen)
        sentences.append(
            f"Of {len(chosen)} {what} matrices we are right about {ours}, ASSR about {assr}."
        )
    fired = [row for row in rows if "fiedler" in row["assr"]["by"]]
    about = ", ".join(sorted({KINDS[row["kind"]].title for row in fired})) or "none"
    sentences.append(
        f"ASSR's Fiedler value is below its threshold in {len(fired)} of {len(rows)} ({about}): "
        "its verdicts are those of the condition number."
    )
    return " ".join(sentences) + "\n"


def _limits(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    missed = [row for row in rows if row["sick"] and not row["ours"]["right"]]
    if missed:
        columns: dict[str, Callable[[Any], str]] = {
            "missed": lambda row: f"{KINDS[row['kind']].title}, {row['rows']} x {row['columns']}",
            "relative rank": lambda row: _number(row["ours"]["values"]["relative_rank"]),
            "of all rows": lambda row: _number(row["relative"]["relative_rank"]),
            "redundancy (independent: 1)": lambda row: _number(_entry(row, "redundancy")["value"]),
            "seen with a sample of": lambda row: (
                f"{row['rows_needed']} rows" if row["rows_needed"] else "none up to 2048"
            ),
            "ASSR": lambda row: "sees it" if row["assr"]["complains"] else "misses it, too",
        }
        lines += [
            _table(columns, missed),
            "128 rows are nearly independent as long as the whole has some hundreds of directions "
            "left, and of many pairs of copies the sample rarely holds both: there the default is "
            "blind, and a full decomposition, or a larger sample (`SampledSpectrum(rows=...)`), "
            "is not. The redundancy, which has no limit of its own, does move.\n",
        ]
    lost = [row for row in rows if row["kind"] == "near-singular"]
    found = " / ".join(_number(_entry(row, "condition_number")["value"]) for row in lost)
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


def _misleading(result: dict[str, Any]) -> str:
    squares = "; ".join(f"{s['size']}²: {s['above_1000']:.0%}" for s in result["gaussian_squares"])
    measured = "; ".join(
        f"{row['rows']} x {row['columns']}: {_number(_seed(row, 'assr_condition_number'))}"
        for row in result["matrices"]
        if not row["sick"] and row["sick"] is not None
    )
    end = {entry["title"]: entry for entry in result["ends"]}
    orthogonal, same = end["orthogonal rows (κ = 1)"], end["all rows identical"]
    plain, small, large = (end[t] for t in ("Gaussian", "the same, x 0.01", "the same, x 100"))
    damaged = end["Gaussian with a NaN"]
    pairs = [
        (
            _seed(row, "kappa_tilde"),
            _seed(
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
        f"orthogonal rows, the healthiest there are, read {_number(orthogonal['assr_fiedler'])} "
        f"(an alarm), rows that are all identical {_number(same['assr_fiedler'])} (no alarm). It "
        f"goes with the square of the scale: one and the same matrix reads "
        f"{_number(small['assr_fiedler'])}, {_number(plain['assr_fiedler'])} and "
        f"{_number(large['assr_fiedler'])} at 0.01, 1 and 100 times its size. A NaN reads "
        f"{_number(damaged['assr_fiedler'])}, which passes for healthy (its condition number "
        f"reads {_number(damaged['assr_condition_number'])}).\n"
        "- **Gradience's κ̃** is 10 √(min(m, n) / stable rank): a fine measure of how much one "
        "direction dominates, and no condition number. Between a Gaussian matrix and the same "
        f"kind with one singular value of 1e-7 it differs by at most {apart:.1%}, and orthogonal "
        f"rows read {_number(orthogonal['kappa_tilde'])}, its minimum, as they should.\n"
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


def _errors(rows: Sequence[dict[str, Any]]) -> str:
    metrics = list(dict.fromkeys(entry["metric"] for row in rows for entry in row["entries"]))
    lines = []
    for metric in metrics:
        found = [
            (entry["error"], row)
            for row in rows
            for entry in row["entries"]
            if entry["metric"] == metric and not math.isnan(entry["error"])
        ]
        found.sort(key=lambda pair: pair[0])
        worst, row = found[-1]
        lines.append((metric, found[len(found) // 2][0], worst, row, len(found)))
    columns: dict[str, Callable[[Any], str]] = {
        "metric": lambda line: f"`{line[0]}`" if " " not in line[0] else line[0],
        "matrices": lambda line: str(line[4]),
        "median relative error": lambda line: f"{line[1]:.1e}",
        "largest": lambda line: f"{line[2]:.1e}",
        "on": lambda line: (
            f"{KINDS[line[3]['kind']].title}, {line[3]['rows']} x {line[3]['columns']}"
        ),
    }
    return (
        _table(columns, lines) + "\nSampled metrics are held against the same rows in float64: "
        "this is the error of arithmetic; that of sampling is between the columns *relative rank* "
        "and *of all rows* above.\n"
    )


def _times(rows: Sequence[dict[str, Any]]) -> str:
    chosen = [row for row in rows if row["kind"] == "gaussian"]
    columns: dict[str, Callable[[Any], str]] = {
        "Gaussian": lambda row: f"{row['rows']} x {row['columns']}",
        "warm σ₁ / svdvals": lambda row: _part(row, ("warm",), ("svd",)),
        "sampled spectrum / (eigvalsh + svdvals)": lambda row: _part(
            row, ("sampled",), ("svd", "eigenvalues")
        ),
        "always-on set / (eigvalsh + svdvals)": lambda row: _part(
            row, ("set",), ("svd", "eigenvalues")
        ),
        "`condition_number` / svdvals": lambda row: _part(row, ("condition",), ("svd",)),
        "runs of a decomposition": lambda row: str(row["repeats"]),
    }
    return _table(columns, chosen)


def _part(row: dict[str, Any], ours: Iterable[str], exact: Iterable[str]) -> str:
    seconds = row["seconds"]
    ratio = sum(seconds[name] for name in exact) / sum(seconds[name] for name in ours)
    return f"1/{ratio:.0f}" if ratio > 2 else f"x{1 / ratio:.2f}"


def _tracking(result: dict[str, Any]) -> str:
    lines = [(f"Gaussian, {row['size']}²", row) for row in result["simulated"]]
    lines += [(f"{run['name']}, {run['steps']} real steps", run) for run in result["runs"]]
    rows = [
        (title, every, row[str(every)])
        for title, row in lines
        for every in (EVERY, COVERAGE)
        if row[str(every)]
    ]
    columns: dict[str, Callable[[Any], str]] = {
        "training": lambda row: row[0],
        "steps between visits": lambda row: str(row[1]),
        "visits": lambda row: str(row[2]["visits"]),
        "p50": lambda row: f"{row[2]['p50']:.1e}",
        "p99": lambda row: f"{row[2]['p99']:.1e}",
        "max": lambda row: f"{row[2]['max']:.1e}",
    }
    spikes = "; ".join(
        f"{row['size']}²: {row['median']:g}, at most {row['max']}" for row in result["spikes"]
    )
    return (
        f"Relative error, {WARM_STEPS} Lanczos steps a visit. Simulated: Gaussian increments of "
        f"{STEP:g} of the norm per step. With fewer than 100 visits p99 is the maximum.\n\n"
        + _table(columns, rows)
        + _missed(result["runs"])
        + f"\nVisits until a spike of {SPIKE} σ₁, orthogonal to the vectors that are remembered, "
        f"is within 1%: {spikes}.\n"
    )


def _missed(runs: Sequence[dict[str, Any]]) -> str:
    found = [
        f"{run['name']}, {name}, step {step}: {error:.1%}"
        for run in runs
        for name, step, error in run["above_1%"]
    ]
    visits = sum(run[str(EVERY)]["visits"] for run in runs if run[str(EVERY)])
    if not found:
        return f"\nNone of {visits} visits in real training was off by more than 1%.\n"
    return (
        f"\n{len(found)} of {visits} visits in real training read more than 1% too little "
        f"({'; '.join(found)}): another direction had overtaken the one that is remembered, "
        "and one visit did not tell them apart.\n"
    )


def _entry(row: dict[str, Any], metric: str) -> dict[str, Any]:
    return next(entry for entry in row["entries"] if entry["metric"] == metric)


def _seed(row: dict[str, Any], metric: str) -> float:
    return next(entry["value"] for entry in row["seeds"] if entry["metric"] == metric)


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    if math.isinf(value):
        return "∞"
    return f"{value:.3g}" if abs(value) < 1e16 else "∞ (rounding)"


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value * 1e3:.3g} ms"


def _table(columns: dict[str, Callable[[Any], str]], rows: Iterable[Any]) -> str:
    lines = [_line(columns), "|" + "---|" * len(columns)]
    lines += [_line(tell(row) for tell in columns.values()) for row in rows]
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


_TARGET: dict[str, Callable[[Any], str]] = {
    "target": lambda row: row["what"],
    "measured": lambda row: _share(row["value"], row["what"]),
    "limit": lambda row: _share(row["limit"], row["what"]),
    "": lambda row: "met" if row["met"] else "**not met**",
}


def _share(value: float, what: str) -> str:
    return f"1/{1 / value:.0f}" if "time" in what else f"{value:.2g}"


_ENTRY: dict[str, Callable[[Any], str]] = {
    "": lambda row: f"`{row['metric']}`",
    "exact": lambda row: _number(row["exact"]),
    "read": lambda row: _number(row["value"]),
    "error": lambda row: "-" if math.isnan(row["error"]) else f"{row['error']:.1e}",
    "time": lambda row: _milliseconds(row["seconds"]),
    "time, exact": lambda row: _milliseconds(row["exact_seconds"]),
    "ratio": lambda row: f"{row['ratio']:.3g}" if "ratio" in row else "",
    "all rows": lambda row: _number(row.get("whole")),
}

_END: dict[str, Callable[[Any], str]] = {
    "matrix": lambda row: row["title"],
    "κ": lambda row: _number(row["condition"]),
    "ASSR Fiedler": lambda row: _number(row["assr_fiedler"]),
    "ASSR κ": lambda row: _number(row["assr_condition_number"]),
    "κ̃": lambda row: _number(row["kappa_tilde"]),
    "our Fiedler": lambda row: _number(row["fiedler"]),
    "our redundancy": lambda row: _number(row["redundancy"]),
    "our relative rank": lambda row: _number(row["relative_rank"]),
}
