"""The rows of the tables of a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stableopt.recorded.interventions import Intervention, in_rows
from stableopt.recorded.offenders import top_offenders
from stableopt.recorded.run import Run
from stableopt.recorded.values import dict_of, list_of, number_of, whole_of
from stableopt.runtime.words import natural, spell
from stableopt.types import Standing

MOST_ENTRIES = 400
"""Entries of the ledger on a page; of more, the first and the last half are shown."""

_STANDINGS = {Standing.DANGER: "■ danger", Standing.WARNING: "▲ warning"}
_TABLED = ("relative_rank", "relative_kappa_p10", "relative_fiedler", "spectral_norm")


def ledger_rows(run: Run) -> tuple[list[list[Intervention]], int]:
    """Return the entries of the ledger, and how many were left out in the middle.

    Interventions of one kind at consecutive calls are one entry; an empty one is the gap.
    """
    rows = list(in_rows(run.interventions))
    left_out = max(0, len(rows) - MOST_ENTRIES)
    half = MOST_ENTRIES // 2
    return [*rows[:half], [], *rows[-half:]] if left_out else rows, left_out


def offender_rows(run: Run) -> list[list[object]]:
    """Return the layers that stand out, the worst first."""
    return [
        [name, _STANDINGS.get(standing, "-"), reading or "-", tally.faults, tally.risks, tally.acts]
        for name, tally, standing, reading in top_offenders(run)
    ]


def tabled_metrics(run: Run) -> list[str]:
    """Return the metrics that are shown as numbers, too."""
    metrics = [metric for metric in _TABLED if metric in run.readings]
    return metrics or sorted(run.readings)[: len(_TABLED)]


def layer_rows(run: Run, metrics: Sequence[str]) -> list[list[str]]:
    """Return the newest readings of every layer."""
    names = sorted({name for metric in metrics for name in run.readings[metric]}, key=natural)
    return [[name, *(spell(run.newest(metric, name)) for metric in metrics)] for name in names]


def transform_rows(run: Run) -> list[list[str]]:
    """Return what every transform is and did; without a summary what the records say."""
    listed = filter(dict_of, list_of(run.setting("transforms")))
    return [_summed(entry) for entry in listed] or [
        [name, "-", f"{t.records} recorded steps", "-", _moved(t.metric, t.before, t.after)]
        for name, t in sorted(run.acts.items())
    ]


def _summed(entry: dict[str, Any]) -> list[str]:
    last = dict_of(entry.get("newest"))
    name = last.get("worst")
    what = f"{last.get('metric', '')}{f' of {name}' if isinstance(name, str) else ''}"
    moved = _moved(what, number_of(last.get("before")), number_of(last.get("after")))
    group = f" (group {entry['group']})" if "group" in entry else ""
    parameters, steps, changes = (counted(entry.get(k)) for k in ("parameters", "steps", "changes"))
    title = f"{entry.get('transform', '')}{group}"
    return [title, parameters, f"{steps} steps", changes, moved if last else "-"]


def _moved(what: str, before: float | None, after: float | None) -> str:
    return f"{what}: {spell(before)} → {spell(after)}"


def counted(value: Any) -> str:
    """Return a count from a summary, and a dash for what is none."""
    number = whole_of(value)
    return "-" if number is None else f"{number:,}"
