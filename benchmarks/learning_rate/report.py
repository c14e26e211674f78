"""The tables of the learning-rate benchmark, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.common.report import MET, facts, grid, heading, machine, table
from benchmarks.learning_rate.methods import BASELINE, METHODS, ROBUST, SCHEDULED
from benchmarks.learning_rate.scores import curve
from benchmarks.learning_rate.targets import schedule_share
from benchmarks.learning_rate.tasks import LONG, MAIN

Row = Mapping[str, Any]

_PREFACE = """
Byte-level language models on the sources of the standard library, fp32, CPU, hundreds of steps:
this shows what happens beyond the best learning rate, not how often large runs spike. Every method
has one configuration for all tasks. Ours was set on seeds 0 to 9; **deep** and **n-gram** were
never looked at meanwhile. Seeds 100 to 102 had shown that a cap of 1% of the first norm is too
tight for an LSTM and for long runs; they are not used again.

- **LRS**: mean over the learning rates of min(L, L_init) - L*; L is the validation loss, L* the
  best of the sweep. **LRS+**: the same at and above the best learning rate. Means over the seeds,
  with the lowest and the highest.
- **largest logit**: of attention, seen at every tenth step and at the end.
- **not finite**: runs with a loss, or a weight at the end, that is not finite. **stopped**: runs
  that the guard gave up. Both count as L_init where they have no loss at the end.
- **{scheduled}** is {baseline} with the root of the cosine, which is what bounded updates come
  close to. **qk-norm** is another model.

![Validation loss over learning rate](lr_sensitivity.svg)
"""


def render(result: Mapping[str, Any]) -> str:
    """Return the Markdown of a result, what ``lr_sensitivity.json`` holds."""
    runs = f"{len(result['records'])} runs"
    hours = f"{sum(record['seconds'] for record in result['records']) / 3600:.1f} hours of them"
    title = heading("Sensitivity to the learning rate", "learning_rate", "lr_sensitivity")
    parts = [title + _PREFACE.format(scheduled=SCHEDULED, baseline=BASELINE)]
    parts += [facts(result, machine(result), "one thread a run", runs, hours)]
    parts += ["## Targets\n", table(_TARGET, result["targets"])]
    parts += ["## How much of it is schedule\n", _schedule(result["rows"])]
    for task in _tasks(result["rows"]):
        rows = [row for row in result["rows"] if row["task"] == task]
        records = [record for record in result["records"] if record["task"] == task]
        parts += [f"## {task}\n", table(_SCORE, rows), _losses(records)]
    parts += ["## What the guard did\n", table(_GUARDED, _guarded(result["records"]))]
    parts += ["## Configuration\n", f"`{result['robust']}` ({result['robust_hash']})\n"]
    return "\n".join(parts)


def digest(result: Mapping[str, Any]) -> str:
    """Return what the documentation quotes: the main tasks side by side, and the picture."""
    rows = {(row["task"], row["method"]): row for row in result["rows"]}
    methods = dict.fromkeys(row["method"] for row in result["rows"] if row["task"] == MAIN[1])
    head = [f"{task}: {what}" for task in MAIN for what in ("LRS", "LRS+", "best", "logit")]
    cells = (
        [_emphasised(method), *(cell for task in MAIN for cell in _brief(rows[task, method]))]
        for method in methods
    )
    lines = grid([" ", *head], cells)
    lines += ["", _schedule(result["rows"]).strip(), ""]
    lines += ["![Validation loss over learning rate](../gallery/learning-rate.svg)"]
    return "\n".join(lines)


def _brief(row: Row) -> list[str]:
    sensitivities = [f"{row[key]['mean']:.3f}" for key in ("lrs", "lrs_plus")]
    return [*sensitivities, f"{row['best']['mean']:.3f}", _logit(row["logit"])]


def _schedule(rows: Sequence[Row]) -> str:
    lines = [_schedule_of(rows, task) for task in MAIN]
    return "\n".join(f"- {line}" for line in lines if line) + "\n"


def _schedule_of(rows: Sequence[Row], task: str) -> str:
    found = schedule_share(rows, task)
    if found is None:
        return ""
    losses = (
        f"{task}: best loss {found['baseline']:.3f} with {BASELINE}, {found['scheduled']:.3f} "
        f"with {SCHEDULED}, {found['ours']:.3f} with {ROBUST}"
    )
    if found["share"] is None:
        return f"{losses}: no gain at the best learning rate."
    return (
        f"{losses}: {found['share']:.0%} of the gain at the best learning rate comes with the "
        "schedule alone."
    )


def _losses(records: Sequence[Row]) -> str:
    """Return the mean loss by learning rate and method."""
    lrs = sorted({record["lr"] for record in records})
    by_method = {m: curve(record for record in records if record["method"] == m) for m in METHODS}
    cells = (
        [_emphasised(m), *(f"{fmean(losses[lr]):.3f}" if lr in losses else "-" for lr in lrs)]
        for m, losses in by_method.items()
        if losses
    )
    return "\n".join(grid(["lr", *(f"{lr:g}" for lr in lrs)], cells)) + "\n"


def _guarded(records: Sequence[Row]) -> list[dict[str, Any]]:
    """Return what ours did, by task, method and learning rate."""
    groups: dict[tuple[str, str, float], list[Row]] = {}
    for record in records:
        if METHODS[record["method"]].robust:
            key = (record["task"], record["method"], record["lr"])
            groups.setdefault(key, []).append(record)
    return [
        {"task": task, "method": method, "lr": lr, "records": groups[task, method, lr]}
        for task, method, lr in groups
    ]


def _tasks(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["task"] for row in rows))


def _emphasised(method: str) -> str:
    return f"**{method}**" if METHODS[method].robust else method


def _spread(figures: Mapping[str, Any]) -> str:
    mean = f"{figures['mean']:.3f}"
    if len(figures["by_seed"]) == 1:
        return mean
    return f"{mean} ({figures['low']:.3f} … {figures['high']:.3f})"


def _sensitivity(row: Row, key: str) -> str:
    # The methods are run at learning rates of their own there.
    return "-" if row["task"] == LONG else _spread(row[key])


def _logit(logit: float | str | None) -> str:
    if logit is None:
        return "-"
    value = float(logit)
    return f"{value:,.0f}" if value < _LARGE else f"{value:.0e}"


def _share(records: Sequence[Row]) -> str:
    shares = [record["capped"] for record in records if record["capped"] is not None]
    return f"{fmean(shares):.1%}" if shares else "-"


def _total(row: Row, key: str) -> str:
    return str(sum(record[key] for record in row["records"]))


_LARGE = 1e6
"""A logit from which on its digits tell nothing."""

_TARGET: dict[str, Callable[[Any], str]] = {
    "target": lambda row: row["target"],
    "found": lambda row: row["found"],
    " ": lambda row: MET[row["met"]],
}

_SCORE: dict[str, Callable[[Any], str]] = {
    "method": lambda row: _emphasised(row["method"]),
    "learning rates": lambda row: f"{min(row['grid']):g} … {max(row['grid']):g}",
    "seeds": lambda row: str(len(row["seeds"])),
    "LRS": lambda row: _sensitivity(row, "lrs"),
    "LRS+": lambda row: _sensitivity(row, "lrs_plus"),
    "best": lambda row: _spread(row["best"]),
    "at": lambda row: f"{row['best_lr']:g}",
    "largest logit": lambda row: _logit(row["logit"]),
    "not finite": lambda row: f"{row['non_finite']} of {row['runs']}",
    "stopped": lambda row: str(row["stopped"]),
}

_GUARDED: dict[str, Callable[[Any], str]] = {
    "task": lambda row: row["task"],
    "method": lambda row: row["method"],
    "lr": lambda row: f"{row['lr']:g}",
    "runs": lambda row: str(len(row["records"])),
    "skipped batches": lambda row: _total(row, "skips"),
    "rollbacks": lambda row: _total(row, "rollbacks"),
    "steps lost": lambda row: _total(row, "steps_lost"),
    "updates cut short": lambda row: _share(row["records"]),
}
