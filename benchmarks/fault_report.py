"""The tables of the fault benchmark, as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.fault_rows import CLOSE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_PREFACE = """\
# Faults in training runs

<!-- Generated from {source} by `python -m benchmarks.faults`; do not edit. -->

Small models, fp32, CPU, {updates} updates a run: this shows what is found, how soon and at what
cost, not how often faults happen. Every run is struck at a random update, at a random moment
of the training step, in a random tensor and element, all drawn from the seed, and is compared
with a run of the same seed without a fault after as many updates. A classifier (embedding,
MLP, BatchNorm) and a transformer; AdamW fused, foreach and for-loop, SGD with momentum in
its row; a learning rate that falls linearly, by a scheduler that is tracked.

- **survived**: all updates applied, no `DivergenceError`, weights, state, buffers and
  validation loss finite. **bare + clip** is the bare optimizer with `clip_grad_norm_({clip:g})`;
  "poisoned" counts those of its survivors that end with the fault.
- **Δval**: the largest difference to the validation loss of the clean run, in nats, among the
  runs that survived; the control shows how far other batches alone go.
- **identical**: runs whose weights, state and buffers at the end are, bit for bit, those of the
  bare optimizer without a fault, trained on the batches that still count.
- **found after**: calls of `step()` from the fault to the first intervention; 0 is the very
  next one that is judged. **silent**: runs in which nothing was found.
- **steps lost**: updates undone and batches skipped. **bound**: I + 1 for what is not finite
  or absurdly large, k + 2I for spikes (I = `every`, k = `confirm`), both for the fault that
  strikes twice.
- **poisoned restores**: rollbacks after which weights, state and buffers were not, bit for
  bit, what they were at that step before the fault, or held it. **at the end**: runs that end
  with the fault, anything that is not finite or any magnitude above 1e15.
"""

_HEADER = (
    "| fault | runs | survived | bare + clip | worst Δval | bare worst Δval | identical | "
    "found after, median / max | silent | "
    "steps lost, median / max | bound | poisoned restores / at the end |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def render(result: dict[str, Any], source: str) -> str:
    """Return the Markdown of a result.

    Args:
        result: What ``faults.json`` holds.
        source: The name of that file.
    """
    preface = _PREFACE.format(
        source=f"`{source}`", updates=result["updates"], clip=result["clip_bound"]
    )
    sections = [_section(block) for block in result["blocks"]]
    return "\n".join([preface, _facts(result), *sections])


def _facts(result: dict[str, Any]) -> str:
    facts = result["environment"]
    lines = [
        f"`{result['command']}`, seed {result['seed']}, {facts['date']}: "
        f"stableopt {facts['stableopt']} ({facts['commit'] or 'no commit'}), "
        f"torch {facts['torch']}, Python {facts['python']}, {facts['system']}, {facts['cpu']}, "
        f"{facts['cores']} cores, {facts['threads']} thread(s) used, "
        f"{result['seconds'] / 60:.1f} minutes."
    ]
    if not result["complete"]:
        lines.append("\n**Not the complete run: these figures are not to be quoted.**")
    return "\n".join(lines) + "\n"


def _section(block: dict[str, Any]) -> str:
    rows = block["rows"]
    lines = [f"## `{block['guard']}`\n", _HEADER, *(_row(row) for row in rows), ""]
    lines += [f"- {miss}" for miss in _misses(rows, block["clean_interventions"])]
    return "\n".join([*lines, ""])


def _row(row: dict[str, Any]) -> str:
    bare = f"{row['bare_survived']}/{row['bare_runs']}" if row["bare_runs"] else "-"
    if row["bare_poisoned"]:
        bare += f" ({row['bare_poisoned']} poisoned)"
    cells = [
        row["title"],
        str(row["runs"]),
        f"{row['survived']}/{row['runs']}",
        bare,
        _signed(row["delta"]),
        _signed(row["bare_delta"]),
        f"{row['identical']}/{row['runs']}",
        _pair(row["latency"]),
        str(row["silent"]),
        _pair(row["steps_lost"]),
        str(row["bound"]),
        f"{row['poisoned_restores']} / {row['poisoned_at_end']}",
    ]
    return f"| {' | '.join(cells)} |"


def _misses(rows: Sequence[dict[str, Any]], clean_interventions: int) -> list[str]:
    """Return a sentence for everything that is not as it should be."""
    faults = [row for row in rows if row["fault"] != "none"]
    lines = [
        _miss("died", faults, lambda row: row["runs"] - row["survived"]),
        _miss("nothing found", faults, lambda row: row["silent"]),
        _miss("more steps lost than the bound", faults, lambda row: row["beyond_bound"]),
        _miss(f"further than {CLOSE} from the clean run", rows, lambda row: row["not_close"]),
        _miss("not identical", rows, lambda row: row["runs"] - row["identical"]),
        _miss("poisoned restores", rows, lambda row: row["poisoned_restores"]),
        _miss("poisoned at the end", rows, lambda row: row["poisoned_at_end"]),
        _miss("interventions before the fault", rows, lambda row: row["false_alarms"]),
    ]
    return [*lines, f"interventions in the clean runs: {clean_interventions}"]


def _miss(what: str, rows: Sequence[dict[str, Any]], count: Callable[[dict[str, Any]], int]) -> str:
    """Return how often something happened, fault by fault."""
    found = [f"{row['title']} ({count(row)} of {row['runs']})" for row in rows if count(row)]
    return f"{what}: {'; '.join(found) or 'none'}"


def _signed(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:+.3f}" if abs(value) < 1000 else f"{value:+.1e}"


def _pair(figures: dict[str, float] | None) -> str:
    return "-" if figures is None else f"{figures['median']:g} / {figures['max']:g}"
