"""The table of the zoo, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.common.report import MET, facts, heading, machine, table

Row = dict[str, Any]

_PREFACE = """
{trainings} small trainings that are healthy but unusual, of seeds {seeds}, each bare and as
`StableOptimizer(optimizer, model=model)` in the same process: nothing is wrong with any of them,
and the guard is to harm none. Every one learns something, which its metric shows.
"""

_EXPLANATION = """\
- **bare**, **wrapped**: the median of the metric over the seeds, and in brackets its spread.
- **apart**: the largest difference between the bare and the wrapped run of a seed.
- **left out**: batches that were skipped, or that a rollback undid; **tamed**: batches whose
  gradients were made smaller; of all calls of `step()` of all seeds.
- **interventions**: entries of the ledger that were more than a word.
- **identical**: pairs of runs with the same weights and buffers at the end, bit for bit.
- **time**: wall time of the wrapped run by that of the bare one, the median over the seeds. Models
  so small show the fixed costs of a step, and a shared machine its noise.

A training in **bold** misses a target.
"""

_MISSES = ("unlearned", "failed", "much_left_out", "much_tamed", "outside", "shifted")

_MOST_SAID = 3
"""Errors and reasons of a training that are shown; ``zoo.json`` has more."""


def render(result: Mapping[str, Any]) -> str:
    """Return the Markdown of a result, what ``zoo.json`` holds."""
    rows, seeds = result["rows"], ", ".join(str(seed) for seed in result["seeds"])
    jobs, took = f"{result['jobs']} at a time", f"{result['seconds']:.0f} s"
    preface = _PREFACE.format(trainings=len(rows), seeds=seeds)
    lines = [
        heading("The quiet zoo", "zoo") + preface,
        facts(result, machine(result), "one thread a run", jobs, took),
        f"`{result['guard']}`, hash {result['guard_hash']}.\n",
        table(_TARGET, result["targets"]),
        table(_TRAINING, rows),
        _EXPLANATION,
    ]
    said = [_quotes(row) for row in rows if row["said"]]
    return "\n".join([*lines, *(["## What was said", "", *said] if said else [])])


def digest(result: Mapping[str, Any]) -> str:
    """Return what the documentation quotes: a row for each training, and what misses a target."""
    rows, missed = result["rows"], [t for t in result["targets"] if not t["met"]]
    lines = [table(_BRIEF, rows)]
    same, runs = sum(row["identical"] for row in rows), sum(row["runs"] for row in rows)
    said = "; ".join(f"{t['target']}: missed by {', '.join(t['missed'])}" for t in missed)
    lines += [f"{same} of {runs} wrapped runs end with the bits of the bare one. "]
    lines[-1] += f"Of {len(result['targets'])} targets missed: {said or 'none'}."
    return "\n".join(lines)


def _misses(row: Row) -> bool:
    return any(row[kind] for kind in _MISSES)


def _goal(row: Row) -> str:
    """Return what a bare run has to reach."""
    if row["at_most"] is not None:
        return f", below {row['at_most']:g}"
    return "" if row["at_least"] is None else f", above {row['at_least']:g}"


def _metric(spread: Mapping[str, float] | None) -> str:
    if spread is None:
        return "failed"
    return f"{spread['median']:.3g} ({spread['min']:.3g} to {spread['max']:.3g})"


def _count(row: Row, count: str) -> str:
    if not row[count]:
        return "0"
    return f"{row[count]:,} of {row['calls']:,} ({row[count] / row['calls']:.1%})"


def _quotes(row: Row) -> str:
    lines = [f"- {row['name']}"]
    lines += [f"    - {_plain(text)}" for text in row["said"][:_MOST_SAID]]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Return a text in one line that no Markdown is read in."""
    return " ".join(text.split()).replace("`", "'").replace("|", "/").replace("<", "&lt;")


_TARGET: dict[str, Callable[[Any], str]] = {
    "target": lambda row: row["target"],
    "": lambda row: MET[row["met"]],
    "missed by": lambda row: ", ".join(row["missed"]) or "-",
}

_TRAINING: dict[str, Callable[[Any], str]] = {
    "training": lambda row: f"**{row['name']}**" if _misses(row) else row["name"],
    "what it is": lambda row: row["title"],
    "metric": lambda row: row["metric"] + _goal(row),
    "bare": lambda row: _metric(row["bare"]),
    "wrapped": lambda row: _metric(row["wrapped"]),
    "apart": lambda row: "-" if row["difference"] is None else f"{row['difference']:.2g}",
    "left out": lambda row: _count(row, "left_out"),
    "tamed": lambda row: _count(row, "tamed"),
    "interventions": lambda row: str(row["interventions"]),
    "identical": lambda row: f"{row['identical']}/{row['runs']}",
    "time": lambda row: f"x{row['time']:.2f}",
}

_BRIEF: dict[str, Callable[[Any], str]] = {
    "training": lambda row: row["title"],
    "metric": lambda row: row["metric"],
    **{name: _TRAINING[name] for name in ("bare", "wrapped", "left out", "tamed")},
}
