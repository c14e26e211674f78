"""The tables of the fault benchmark, as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.fault_kinds import FAULTS
from benchmarks.fault_rivals import OURS, TITLES
from benchmarks.fault_rows import CLOSE, DIVERGED
from benchmarks.fault_targets import is_fatal, is_fault, targets

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Row = dict[str, Any]

_PREFACE = """\
# Faults in training runs

<!-- Generated from {source} by `python -m benchmarks.faults`; do not edit. -->

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

_HEADER = (
    "| fault | Δval | identical | found after, median / max | silent | rollbacks | "
    "steps lost, median / max | bound | poisoned restores |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def render(result: Row, source: str) -> str:
    """Return the Markdown of a result.

    Args:
        result: What ``faults.json`` holds.
        source: The name of that file.
    """
    known = result["guard_hash"]
    preface = _PREFACE.format(
        source=f"`{source}`",
        updates=result["updates"],
        guard=result["guard"],
        hash=f", hash {known}" if known else "",
        clip=result["clip_bound"],
        stabilityguard=result["environment"]["stabilityguard"] or "(not installed)",
    )
    rows = result["rows"]
    parts = [
        preface,
        _facts(result),
        "## Targets\n",
        *_targets(result),
        f"\n{_SURVIVAL.format(diverged=DIVERGED)}",
        _table(rows, survival),
        f"\n{_DETAIL}",
        _HEADER,
        *(_detail(row) for row in rows),
        f"\n{_DISTANCE}",
        _table(rows, lambda score: signed(score["delta"])),
        f"\n{_LOST}",
        _table(rows, lambda score: _pair(score["steps_lost"])),
        "\n## What is not as it should be\n",
        *(f"- {miss}" for miss in _misses(rows, result["clean_interventions"])),
    ]
    return "\n".join([*parts, ""])


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


def _facts(result: Row) -> str:
    facts = result["environment"]
    lines = [
        f"`{result['command']}`, seed {result['seed']}, {facts['date']}: "
        f"stableopt {facts['stableopt']} ({facts['commit'] or 'no commit'}), "
        f"torch {facts['torch']}, Python {facts['python']}, {facts['system']}, {facts['cpu']}, "
        f"{facts['cores']} cores, one thread a run, {result['seconds'] / 60:.1f} minutes."
    ]
    if not result["complete"]:
        lines.append("\n**Not the complete run: these figures are not to be quoted.**")
    return "\n".join(lines) + "\n"


def _targets(result: Row) -> list[str]:
    words = {True: "met", False: "**missed**", None: "not measured"}
    lines = ["| target | | missed in |", "|---|---|---|"]
    for found in targets(result):
        missed = "; ".join(found["missed"]) or "-"
        lines.append(f"| {found['target']} | {words[found['met']]} | {missed} |")
    return lines


def _table(rows: Sequence[Row], cell: Callable[[Row], str]) -> str:
    """Return one row per fault and one column per contestant."""
    names = list(rows[0]["contestants"])
    lines = [f"| fault | {' | '.join(TITLES[n] for n in names)} |", "|---" * (len(names) + 1) + "|"]
    for row in rows:
        title = f"**{row['title']}**" if is_fatal(row) else row["title"]
        cells = [cell(row["contestants"][name]) for name in names]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _detail(row: Row) -> str:
    cells = [
        row["title"],
        signed(row["contestants"][OURS]["delta"]),
        f"{row['identical']}/{row['contestants'][OURS]['runs']}",
        _pair(row["latency"]),
        str(row["silent"]) if is_fault(row) else "-",
        str(row["rollbacks"]),
        _pair(row["steps_lost"]),
        str(row["bound"]),
        str(row["poisoned_restores"]),
    ]
    return f"| {' | '.join(cells)} |"


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


def _pair(figures: dict[str, float] | None) -> str:
    return "-" if figures is None else f"{figures['median']:g} / {figures['max']:g}"
