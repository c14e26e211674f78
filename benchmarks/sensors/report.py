"""The tables of the sensor benchmark, as Markdown, and what the documentation quotes of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.common.report import facts, heading, machine, table
from benchmarks.sensors.matrices import CLUSTER_NOISE, KINDS
from benchmarks.sensors.track import COVERAGE, EVERY, SPIKE, STEP
from benchmarks.sensors.verdicts import limits, misleading, number, seed_of
from stableopt.functional.spectral_norm import WARM_STEPS

_PREFACE = """
float32, CPU, one thread. Exact values are decompositions in float64; exact **times** are those
of the same decomposition in float32, which is what the published recipes run. The machine is
shared: ratios of interleaved runs are quoted, medians of repeats (one run at 2048 and 4096).
"""


def render(result: dict[str, Any]) -> str:
    """Return the Markdown of a result, what ``sensors.json`` holds."""
    title = "Sensors against exact values, and against the published formulas"
    took = f"1 thread used, {result['seconds'] / 60:.1f} minutes"
    parts = [heading(title, "sensors") + _PREFACE, facts(result, machine(result), took)]
    parts += [digest(result)]
    parts += ["\n## Every reading\n", _LEGEND]
    for row in result["matrices"]:
        origin = f" ({row['source']})" if row["source"] else ""
        title = KINDS[row["kind"]].title
        parts.append(f"### {title}, {row['rows']} x {row['columns']}{origin}\n")
        parts.append(table(_ENTRY, [*row["entries"], *row["seeds"]]))
        parts.append(_said(row))
    return "\n".join(parts)


def digest(result: dict[str, Any]) -> str:
    """Return what the documentation quotes."""
    parts = [
        "## Targets\n",
        table(_TARGET, result["targets"]),
        "## Who complains about what\n",
        _kinds(result),
        _verdicts(result["matrices"]),
        _counts(result["matrices"]),
        "### What a sample of the rows cannot see\n",
        limits(result["matrices"]),
        "## Where a published formula misleads\n",
        misleading(result),
        table(_END, result["ends"]),
        "## Error\n",
        _errors(result["matrices"]),
        "## Time\n",
        _times(result["matrices"]),
        "## The warm spectral norm\n",
        _tracking(result),
    ]
    return "\n".join(parts).rstrip()


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
    readings = ", ".join(f"{name} {number(value)}" for name, value in ours["values"].items())
    return (
        f"Ours: {ours['standing']}{by} ({readings}): {_right(ours)}. ASSR: {theirs}: "
        f"{_right(assr)}. κ̃: no verdict. Relative rank of all rows: "
        f"{number(row['relative']['relative_rank'])}.\n"
    )


def _right(verdict: dict[str, Any]) -> str:
    return {True: "right", False: "**wrong**", None: "see below"}[verdict["right"]]


def _verdicts(rows: Sequence[dict[str, Any]]) -> str:
    columns: dict[str, Callable[[Any], str]] = {
        "matrix": lambda row: KINDS[row["kind"]].title,
        "shape": lambda row: f"{row['rows']} x {row['columns']}",
        "truth": lambda row: {True: "sick", False: "healthy", None: "see below"}[row["sick"]],
        "relative rank": lambda row: number(row["ours"]["values"]["relative_rank"]),
        "of all rows": lambda row: number(row["relative"]["relative_rank"]),
        "κ_p10": lambda row: number(row["ours"]["values"]["kappa_p10"]),
        "relative Fiedler": lambda row: number(row["ours"]["values"]["relative_fiedler"]),
        "we say": lambda row: f"{row['ours']['standing']}{_mark(row['ours'])}",
        "ASSR κ": lambda row: number(seed_of(row, "assr_condition_number")),
        "ASSR Fiedler": lambda row: number(seed_of(row, "assr_fiedler")),
        "ASSR says": lambda row: (
            f"{'sick' if row['assr']['complains'] else 'healthy'}{_mark(row['assr'])}"
        ),
        "κ̃": lambda row: number(seed_of(row, "kappa_tilde")),
    }
    order = list(KINDS)
    return table(columns, sorted(rows, key=lambda row: order.index(row["kind"])))


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
        table(columns, lines) + "\nSampled metrics are held against the same rows in float64: "
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
    return table(columns, chosen)


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
        + table(columns, rows)
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


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value * 1e3:.3g} ms"


_TARGET: dict[str, Callable[[Any], str]] = {
    "target": lambda row: row["what"],
    "measured": lambda row: _share(row["value"], row["what"]),
    "limit": lambda row: _share(row["limit"], row["what"]),
    " ": lambda row: "met" if row["met"] else "**not met**",
}


def _share(value: float, what: str) -> str:
    return f"1/{1 / value:.0f}" if "time" in what else f"{value:.2g}"


_ENTRY: dict[str, Callable[[Any], str]] = {
    " ": lambda row: f"`{row['metric']}`",
    "exact": lambda row: number(row["exact"]),
    "read": lambda row: number(row["value"]),
    "error": lambda row: "-" if math.isnan(row["error"]) else f"{row['error']:.1e}",
    "time": lambda row: _milliseconds(row["seconds"]),
    "time, exact": lambda row: _milliseconds(row["exact_seconds"]),
    "ratio": lambda row: f"{row['ratio']:.3g}" if "ratio" in row else "",
    "all rows": lambda row: number(row.get("whole")),
}

_END: dict[str, Callable[[Any], str]] = {
    "matrix": lambda row: row["title"],
    "κ": lambda row: number(row["condition"]),
    "ASSR Fiedler": lambda row: number(row["assr_fiedler"]),
    "ASSR κ": lambda row: number(row["assr_condition_number"]),
    "κ̃": lambda row: number(row["kappa_tilde"]),
    "our Fiedler": lambda row: number(row["fiedler"]),
    "our redundancy": lambda row: number(row["redundancy"]),
    "our relative rank": lambda row: number(row["relative_rank"]),
}
