"""What trackers cost and how soon they know, as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_PREFACE = """\
# Trackers

<!-- Generated from `trackers.json` by `python -m benchmarks.trackers`; do not edit. -->

One machine, servers on it as well, and other work beside: delays have no network in them.
"""

_INGESTION = """\
## From the step to an HTTP endpoint

Lifecycle events of a 1M GPT in training, from the record of the step to the request with it
having arrived. Target: 95% within {target:.0f} ms.

| one step in | events | requests | median | p95 | largest | lost |
|---|---|---|---|---|---|---|"""

_SYNC = """\
## From the step to MLflow's answer

From the end of a step, at a random moment, until a query returns its metrics (`flush_every=0.25`;
a query takes some 10 ms itself), and how long `close()` takes: the last metrics, tags, artifacts,
the end of the run.
Target: {target:.0f} ms.

| store | steps | median | p95 | largest | close() | lost |
|---|---|---|---|---|---|---|"""

_COST = """\
## What an event costs

CPU time per event, in µs, median (quartiles) over blocks of the events of a tiny GPT, up to 500 a
second: of the training thread, which hands it over, and of the whole process until it is told
(with the HTTP endpoint, which is in it; not with MLflow's server or W&B's process). To record a
step takes the training thread {recording:.0f} µs beside, once for all writers. By default one step
in ten is recorded.

| writer | events | training thread | whole process | lost |
|---|---|---|---|---|"""


def render(result: Mapping[str, Any]) -> str:
    """Return the Markdown of a result.

    Args:
        result: What ``trackers.json`` holds.
    """
    facts, targets = result["environment"], result["targets"]
    lines = [
        _PREFACE,
        f"`{result['command']}`, {facts['date']}: stableopt {facts['stableopt']} "
        f"({facts['commit'] or 'no commit'}), torch {facts['torch']}, Python {facts['python']}, "
        f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} thread(s) used.",
        "",
    ]
    if not result["complete"]:
        lines += ["**Not the complete run: these figures are not to be quoted.**", ""]
    lines.append(_INGESTION.format(target=1e3 * targets["ingestion"]))
    for row in result["ingestion"]:
        lines.append(
            f"| {row['every']} | {row['events']} | {row['requests']} | {_delays(row)} | "
            f"{row['lost']} |"
        )
    lines += ["", _SYNC.format(target=1e3 * targets["sync"])]
    for row in result["sync"]:
        lines.append(
            f"| {row['store']} | {row['probes']} | {_delays(row)} | {1e3 * row['closing']:.0f} ms "
            f"| {row['lost']} |"
        )
    recording = result["recording"]
    added = 1e6 * (recording["with"] - recording["without"])
    lines += ["", _COST.format(recording=added)]
    for row in result["cost"]:
        figures = " | ".join(_microseconds(row[what]) for what in ("loop", "process"))
        lines.append(f"| {row['writer']} | {row['events']} | {figures} | {row['dropped']} |")
    return "\n".join([*lines, ""])


def _delays(row: Mapping[str, float]) -> str:
    shown = [f"{1e3 * row[what]:.1f} ms" for what in ("median", "p95", "max")]
    return f"{shown[0]} | **{shown[1]}** | {shown[2]}"


def _microseconds(figure: Mapping[str, float]) -> str:
    low, middle, high = (f"{1e6 * figure[key]:.0f}" for key in ("p25", "median", "p75"))
    return f"**{middle}** ({low} … {high})"
