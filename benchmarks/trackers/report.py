"""What trackers cost and how soon they know, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.common.report import facts, heading, machine, middle, table

_PREFACE = """
One machine, servers on it as well, and other work beside: delays have no network in them.
"""

_INGESTION = """\
## From the step to an HTTP endpoint

Lifecycle events of a 1M GPT in training, from the record of the step to the request with it
having arrived. Target: 95% within {target:.0f} ms.
"""

_SYNC = """\
## From the step to MLflow's answer

From the end of a step, at a random moment, until a query returns its metrics (`flush_every=0.25`;
a query takes some 10 ms itself), and how long `close()` takes: the last metrics, tags, artifacts,
the end of the run.
Target: {target:.0f} ms.
"""

_COST = """\
## What an event costs

CPU time per event, in µs, median (quartiles) over blocks of the events of a tiny GPT, up to 500 a
second: of the training thread, which hands it over, and of the whole process until it is told
(with the HTTP endpoint, which is in it; not with MLflow's server or W&B's process). To record a
step takes the training thread {recording:.0f} µs beside, once for all writers. By default one step
in ten is recorded.
"""


_DELAYS: dict[str, Callable[[Any], str]] = {
    "median": lambda row: f"{1e3 * row['median']:.1f} ms",
    "p95": lambda row: f"**{1e3 * row['p95']:.1f} ms**",
    "largest": lambda row: f"{1e3 * row['max']:.1f} ms",
}

_EVENTS: dict[str, Callable[[Any], str]] = {
    "one step in": lambda row: str(row["every"]),
    "events": lambda row: str(row["events"]),
    "requests": lambda row: str(row["requests"]),
    **_DELAYS,
    "lost": lambda row: str(row["lost"]),
}

_METRICS: dict[str, Callable[[Any], str]] = {
    "store": lambda row: row["store"],
    "steps": lambda row: str(row["probes"]),
    **_DELAYS,
    "close()": lambda row: f"{1e3 * row['closing']:.0f} ms",
    "lost": lambda row: str(row["lost"]),
}

_COSTS: dict[str, Callable[[Any], str]] = {
    "writer": lambda row: row["writer"],
    "events": lambda row: str(row["events"]),
    "training thread": lambda row: _microseconds(row["loop"]),
    "whole process": lambda row: _microseconds(row["process"]),
    "lost": lambda row: str(row["dropped"]),
}


def render(result: Mapping[str, Any]) -> str:
    """Return the Markdown of a result, what ``trackers.json`` holds."""
    used = f"{result['environment']['threads']} thread(s) used"
    preface = heading("Trackers", "trackers") + _PREFACE
    return "\n".join([preface, facts(result, machine(result), used), digest(result) + "\n"])


def digest(result: Mapping[str, Any]) -> str:
    """Return what the documentation quotes: all tables."""
    targets, recording = result["targets"], result["recording"]
    added = 1e6 * (recording["with"] - recording["without"])
    parts = [
        _INGESTION.format(target=1e3 * targets["ingestion"]),
        table(_EVENTS, result["ingestion"]),
        _SYNC.format(target=1e3 * targets["sync"]),
        table(_METRICS, result["sync"]),
        _COST.format(recording=added),
        table(_COSTS, result["cost"]),
    ]
    return "\n".join(parts).rstrip()


def _microseconds(figures: Mapping[str, float]) -> str:
    return middle({key: 1e6 * value for key, value in figures.items()}, "{:.0f}")
