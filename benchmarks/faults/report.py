"""The tables of the fault benchmark, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.common.report import MET, facts, heading, machine, pair, table
from benchmarks.faults.kinds import FAULTS
from benchmarks.faults.rivals import OURS, TITLES
from benchmarks.faults.rows import CLOSE, DIVERGED
from benchmarks.faults.targets import is_fatal, is_fault, targets

Row = dict[str, Any]

_PREFACE = """
Small models, fp32, CPU, {updates} updates a run: this shows what is found, how soon and at what
cost, not how often faults happen. Every run is struck at a random update, at a random moment
of the training step, in a random tensor and element, all drawn from the seed, and is compared
with a run of the same seed without a fault after as many updates. A classifier (embedding,
MLP, BatchNorm) and a transformer; AdamW fused, foreach and for-loop, SGD with momentum in
its row; a learning rate that falls linearly. Each contestant meets the same faults at the same
moment in the same tensor, and in the same element wherever its value there allows it:

- **stableopt**: `StableOptimizer(optimizer, model=model, guard={guard})`{hash}; the scheduler
  is tracked.
- **AdamW + clip**: `clip_grad_norm_({clip:g})` before every step, as in all that follow.
- **+ step if finite**: no step where the gradient norm is not finite.
- **6σ skip**: `SkipStepOptimizer` of OLMo-core: no step where loss or gradient norm is further
  than 6 standard deviations from its last 128.
- **ZClip**: clips a gradient norm that is an outlier among the recent ones (arXiv:2504.02507).
- **stabilityguard** {stabilityguard}: its `GuardedOptimizer(nan_action="rollback")`.
- **checkpoint**: model, optimizer and scheduler are saved to disk every 100 updates, and loaded
  when the loss is not finite; data move on; the sixth time is the end.
"""

_SURVIVAL = """\
## Who survives

All updates applied, no error, and weights, state, buffers and validation loss finite at the
end. Of these "poisoned" are those that end with the fault or with a magnitude above 1e15, and
"diverged" others whose validation loss is more than {diverged:g} nat above that of the clean run. A
run that takes no update in 200 calls in a row, or that needs three times as many calls as
updates, is given up. **Bold** are the faults that AdamW + clip does not always survive, and well.
"""

_DETAIL = """\
## What ours does

- **identical**: runs whose weights, state and buffers at the end are, bit for bit, those of the
  bare optimizer without a fault, trained on the batches that still count.
- **found after**: calls of `step()` from the fault to the first intervention; 0 is the very
  next one that is judged. **silent**: runs in which nothing was found.
- **steps lost**: updates undone and batches skipped. **bound**: I + 1 for what is not finite
  or absurdly large, 2I + 1 where the newest snapshot is damaged, k + 2I for what is finite and
  plausible (I = `every`, k = `confirm`), both for the fault that strikes twice; `max_skips` for
  data that become others.
- **poisoned restores**: rollbacks after which weights, state and buffers were not, bit for
  bit, what they were at that step before the fault, or held it.
"""

_DISTANCE = """\
## How far from the run without a fault

The largest difference to its validation loss, in nats, among the runs that survived; that run is
each contestant's own, and where data become others that of the bare optimizer. The control
shows how far other batches alone go.
"""

_LOST = """\
## Steps lost

Updates undone and steps refused, median / max, among the runs that survived.
"""


def render(result: Row) -> str:
    """Return the Markdown of a result, what ``faults.json`` holds."""
    known = result["guard_hash"]
    preface = _PREFACE.format(
        updates=result["updates"],
        guard=result["guard"],
        hash=f", hash {known}" if known else "",
        clip=result["clip_bound"],
        stabilityguard=result["environment"]["stabilityguard"] or "(not installed)",
    )
    rows = result["rows"]
    parts = [
        heading("Faults in training runs", "faults") + preface,
        facts(result, machine(result), "one thread a run", f"{result['seconds'] / 60:.1f} minutes"),
        "## Targets\n",
        table(_TARGET, targets(result)),
        _SURVIVAL.format(diverged=DIVERGED),
        _contestants(rows, survival),
        _DETAIL,
        table(_OURS, rows),
        _DISTANCE,
        _contestants(rows, lambda score: signed(score["delta"])),
        _LOST,
        _contestants(rows, lambda score: pair(score["steps_lost"])),
        "## What is not as it should be\n",
        *(f"- {miss}" for miss in _misses(rows, result["clean_interventions"])),
    ]
    return "\n".join([*parts, ""])


def digest(result: Row) -> str:
    """Return one row per fault: how many runs of each contestant survive it, and what ours lose."""
    rows = result["rows"]
    columns: dict[str, Callable[[Any], str]] = {"fault": lambda row: row["title"]}
    for name in rows[0]["contestants"]:
        columns[TITLES[name]] = lambda row, name=name: survival(row["contestants"][name])
    columns["found after"] = lambda row: _range(row["latency"])
    columns["steps lost"] = lambda row: _range(row["steps_lost"])
    columns["worst Δval"] = lambda row: signed(row["contestants"][OURS]["delta"])
    restores = sum(row["poisoned_restores"] for row in rows)
    return (
        f"{table(columns, rows)}\n"
        f"`{result['guard']}`, hash {result['guard_hash']}. Restores of a copy with a fault in "
        f"it: {restores}. Interventions in {result['clean_runs']} runs without a fault: "
        f"{result['clean_interventions']}."
    )


def _range(figures: dict[str, float] | None) -> str:
    return pair(figures, ", at most ")


def survival(score: Row) -> str:
    """Return how many runs survived, and how many of them not well."""
    notes = [f"{score[kind]} {kind}" for kind in ("poisoned", "diverged") if score[kind]]
    cell = f"{score['survived']}/{score['runs']}"
    return f"{cell} ({', '.join(notes)})" if notes else cell


def signed(value: float | None) -> str:
    """Return a difference with its sign; a dash for none."""
    if value is None:
        return "-"
    return f"{value:+.3f}" if abs(value) < 1000 else f"{value:+.1e}"


def _contestants(rows: Sequence[Row], cell: Callable[[Row], str]) -> str:
    """Return one row per fault and one column per contestant."""
    columns: dict[str, Callable[[Any], str]] = {
        "fault": lambda row: f"**{row['title']}**" if is_fatal(row) else row["title"]
    }
    for name in rows[0]["contestants"]:
        columns[TITLES[name]] = lambda row, name=name: cell(row["contestants"][name])
    return table(columns, rows)


def _misses(rows: Sequence[Row], clean_interventions: int) -> list[str]:
    """Return a sentence for everything that is not as it should be."""
    faults = [row for row in rows if is_fault(row)]
    shifts = [row for row in rows if FAULTS[row["fault"]].shift]
    ours = {row["fault"]: row["contestants"][OURS] for row in rows}
    lines = [
        _miss("died", rows, lambda row: _dead(ours[row["fault"]])),
        _miss("nothing found", faults, lambda row: row["silent"]),
        _miss("more steps lost than the bound", rows, lambda row: row["beyond_bound"]),
        _miss(f"further than {CLOSE} from the clean run", rows, lambda row: row["not_close"]),
        _miss("not identical", rows, lambda row: _runs(row) - row["identical"]),
        _miss("poisoned restores", rows, lambda row: row["poisoned_restores"]),
        _miss("poisoned at the end", rows, lambda row: ours[row["fault"]]["poisoned"]),
        _miss("diverged", rows, lambda row: ours[row["fault"]]["diverged"]),
        _miss("rollbacks though nothing was wrong", shifts, lambda row: row["rollbacks"]),
        _miss("interventions before the fault", rows, lambda row: row["false_alarms"]),
    ]
    return [*lines, f"interventions in the clean runs: {clean_interventions}"]


def _miss(what: str, rows: Sequence[Row], count: Callable[[Row], int]) -> str:
    """Return how often something happened, fault by fault."""
    found = [f"{row['title']} ({count(row)} of {_runs(row)})" for row in rows if count(row)]
    return f"{what}: {'; '.join(found) or 'none'}"


def _dead(score: Row) -> int:
    return int(score["runs"] - score["survived"])


def _runs(row: Row) -> int:
    return int(row["contestants"][OURS]["runs"])


_TARGET: dict[str, Callable[[Any], str]] = {
    "target": lambda row: row["target"],
    "": lambda row: MET[row["met"]],
    "missed in": lambda row: "; ".join(row["missed"]) or "-",
}

_OURS: dict[str, Callable[[Any], str]] = {
    "fault": lambda row: row["title"],
    "Δval": lambda row: signed(row["contestants"][OURS]["delta"]),
    "identical": lambda row: f"{row['identical']}/{_runs(row)}",
    "found after, median / max": lambda row: pair(row["latency"]),
    "silent": lambda row: str(row["silent"]) if is_fault(row) else "-",
    "rollbacks": lambda row: str(row["rollbacks"]),
    "steps lost, median / max": lambda row: pair(row["steps_lost"]),
    "bound": lambda row: str(row["bound"]),
    "poisoned restores": lambda row: str(row["poisoned_restores"]),
}
