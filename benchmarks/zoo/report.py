"""The table of the zoo, as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    Row = dict[str, Any]

_PREFACE = """\
# The quiet zoo

<!-- Generated from `zoo.json` by `python -m benchmarks.zoo`; do not edit. -->

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

_HEADER = (
    "| training | what it is | metric | bare | wrapped | apart | left out | tamed | "
    "interventions | identical | time |\n|---|---|---|---|---|---|---|---|---|---|---|"
)

_MISSES = ("unlearned", "failed", "much_left_out", "much_tamed", "outside", "shifted")

_MOST_SAID = 3
"""Errors and reasons of a training that are shown; ``zoo.json`` has more."""


def render(result: Mapping[str, Any]) -> str:
    """Return the Markdown of a result.

    Args:
        result: What ``zoo.json`` holds.
    """
    rows, environment = result["rows"], result["environment"]
    seeds = ", ".join(str(seed) for seed in result["seeds"])
    lines = [
        _PREFACE.format(trainings=len(rows), seeds=seeds),
        f"`{result['command']}`, {environment['date']}: stableopt {environment['stableopt']} "
        f"({environment['commit'] or 'no commit'}), torch {environment['torch']}, Python "
        f"{environment['python']}, {environment['cpu']}, {environment['cores']} cores, one thread "
        f"a run, {result['jobs']} at a time, {result['seconds']:.0f} s. `{result['guard']}`, hash "
        f"{result['guard_hash']}.",
        "",
    ]
    if not result["complete"]:
        lines += ["**Not the complete run: these figures are not to be quoted.**", ""]
    lines += ["| target | | missed by |", "|---|---|---|"]
    lines += [
        f"| {target['target']} | {'met' if target['met'] else '**missed**'} | "
        f"{', '.join(target['missed']) or '-'} |"
        for target in result["targets"]
    ]
    lines += ["", _HEADER, *(_line(row) for row in rows), "", _EXPLANATION]
    said = [_quotes(row) for row in rows if row["said"]]
    return "\n".join([*lines, *(["## What was said", "", *said] if said else [])])


def digest(result: Mapping[str, Any]) -> str:
    """Return what the README quotes: a row for each training, and what misses a target.

    Args:
        result: What ``zoo.json`` holds.
    """
    rows, missed = result["rows"], [t for t in result["targets"] if not t["met"]]
    lines = ["| training | metric | bare | wrapped | left out | tamed |", "|---" * 6 + "|"]
    for row in rows:
        cells = [row["title"], row["metric"], _metric(row["bare"]), _metric(row["wrapped"])]
        lines.append(f"| {' | '.join([*cells, _count(row, 'left_out'), _count(row, 'tamed')])} |")
    same, runs = sum(row["identical"] for row in rows), sum(row["runs"] for row in rows)
    said = "; ".join(f"{t['target']}: missed by {', '.join(t['missed'])}" for t in missed)
    lines += ["", f"{same} of {runs} wrapped runs end with the bits of the bare one. "]
    lines[-1] += f"Of {len(result['targets'])} targets missed: {said or 'none'}."
    return "\n".join(lines)


def _line(row: Row) -> str:
    missed = any(row[kind] for kind in _MISSES)
    cells = [
        f"**{row['name']}**" if missed else row["name"],
        row["title"],
        row["metric"] + _goal(row),
        _metric(row["bare"]),
        _metric(row["wrapped"]),
        "-" if row["difference"] is None else f"{row['difference']:.2g}",
        _count(row, "left_out"),
        _count(row, "tamed"),
        str(row["interventions"]),
        f"{row['identical']}/{row['runs']}",
        f"x{row['time']:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


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
