"""The tables of the collapse benchmark, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.collapse.rows import rates
from benchmarks.collapse.tasks import HEALTHY
from benchmarks.common.report import facts, heading, machine, pair, table
from stableopt.types import RiskLevel

_PREFACE = """
Small models, fp32, CPU, {steps} updates a run, trained with a bare optimizer; `Sensors` as they
are by default, without a limit on their time. This shows what is found and how soon, and how
often healthy weights are complained about; the models are small and the runs short.

- **visits**: of one weight each. **warning**, **act**: visits after which the weight was at
  `WARNING` or above, and at `DANGER`. **assessments**: after every round of visits, how often
  the run was at each level.
- **hot** is the transformer at twenty times the learning rate, without clipping: it is sick, and
  what is said about it is no false positive.
"""

_COLLAPSES = """
One weight of a healthy run at a time collapses from {struck:.0%} of the updates on, a bit further
at every visit, while training goes on as if nothing had happened; all weights of at least 32 x 32.
**found**: a confirmed drift, or a reading beyond a limit; weights about which there was a
complaint before (**already**) do not count. **delay**: from the begin of the collapse, median /
max, in visits of the weight (while it changes) and in updates. **published**: weights and delay
in visits of the design study, in which every weight was visited every time.
"""


def render(result: Mapping[str, Any]) -> str:
    """Return the Markdown of a result, what ``collapse.json`` holds."""
    title = "Collapses, and what healthy training looks like beside them"
    used = f"{result['environment']['threads']} thread(s) used"
    took = f"{result['seconds'] / 60:.1f} minutes"
    parts = [heading(title, "collapse") + _PREFACE.format(steps=result["steps"])]
    parts += [facts(result, machine(result), used, took)]
    parts += ["## False positives\n", _rates(result["healthy"])]
    parts += ["## By run\n", table(_RUN, result["healthy"])]
    parts += ["## Extreme readings of weights that are judged\n", _extremes(result["healthy"])]
    if result["collapses"]:
        parts += ["## Collapses", _COLLAPSES.format(struck=result["struck"])]
        parts += [table(_COLLAPSE, result["collapses"])]
    parts += ["## Complaints in healthy runs\n", _complaints(result["healthy"])]
    return "\n".join(parts)


def digest(result: Mapping[str, Any]) -> str:
    """Return what the documentation quotes: the rates of false alarms, and what was found."""
    seeds = ", ".join(str(seed) for seed in result["seeds"])
    lines = [
        f"Healthy runs of small models, {result['steps']} updates each, seeds {seeds}, visited as "
        "they are by default. **hot** is the transformer at twenty times the learning rate: it is "
        "sick. The limits were set on seeds 0 to 5. A first comparison, on 100 to 102, had one "
        "false alarm at `DANGER`, of a rule that two drifts at once are a danger. It was given up, "
        "because one growing direction moves σ₁ and redundancy alike.\n",
        _rates(result["healthy"]),
    ]
    if result["collapses"]:
        lines += [
            "",
            "One weight at a time collapses, a bit further at every visit. The delays are counted "
            "from the first visit after the collapse began; **missed** are output layers where "
            "their name is `head.weight` or `7.weight`, to which no limit applies. **published**: "
            "weights and visits of the design study, which visited every weight every time.\n",
        ]
        lines += [table(_COLLAPSE, result["collapses"])]
    return "\n".join(lines)


def _rates(rows: Sequence[Any]) -> str:
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    summed = [(kind, [row for row in rows if row["kind"] == kind]) for kind in kinds]
    healthy = [row for row in rows if row["kind"] in HEALTHY]
    if healthy:
        summed.append(("**all healthy**", healthy))
    return table(_RATE, [(title, len(runs), rates(runs)) for title, runs in summed])


def _shares(counts: Mapping[str, int]) -> str:
    total = max(1, sum(counts.values()))
    return " / ".join(f"{counts.get(level.value, 0) / total:.1%}" for level in RiskLevel)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "-"


_LEVELS = " / ".join(level.value for level in RiskLevel)

_RATE: dict[str, Callable[[Any], str]] = {
    "kind": lambda row: row[0],
    "runs": lambda row: str(row[1]),
    "weights": lambda row: str(row[2]["weights"]),
    "visits": lambda row: str(row[2]["visits"]),
    "confirmed drifts per 10,000 visits": lambda row: f"{row[2]['confirmed_drifts']:.0f}",
    "warning per 10,000": lambda row: f"{row[2]['warning']:.0f}",
    "act per 10,000": lambda row: f"{row[2]['act']:.0f}",
    f"assessments: {_LEVELS}": lambda row: _shares(row[2]["assessments"]),
}

_RUN: dict[str, Callable[[Any], str]] = {
    "kind, seed": lambda row: f"{row['kind']} {row['seed']}",
    "loss, first and last": lambda row: f"{row['first_loss']:.3f} → {row['last_loss']:.3f}",
    "weights": lambda row: str(row["weights"]),
    "visits": lambda row: str(row["visits"]),
    "visits at warning": lambda row: str(row["levels"].get("warning", 0)),
    "at danger": lambda row: str(row["levels"].get("danger", 0)),
    "beyond the warning limit": lambda row: _counts(row["warning"]),
    "beyond the danger limit": lambda row: _counts(row["danger"]),
    "unconfirmed drifts": lambda row: _counts(row["unconfirmed"]),
    "confirmed drifts": lambda row: _counts(row["confirmed"]),
    f"assessments: {_LEVELS}": lambda row: _shares(row["assessments"]),
}

_COLLAPSE: dict[str, Callable[[Any], str]] = {
    "collapse": lambda row: row["title"],
    "found": lambda row: f"{row['found']}/{row['weights']}",
    "already": lambda row: str(row["already"]),
    "missed": lambda row: _counts(row["missed"]),
    "delay, visits": lambda row: pair(row["visits"]),
    "delay, updates": lambda row: pair(row["steps"]),
    "found first by": lambda row: _counts(row["by"]),
    "danger": lambda row: f"{row['acted']}/{row['weights']}",
    "delay until then, visits": lambda row: pair(row["acted_visits"]),
    "published": lambda row: row["published"],
}


def _extremes(rows: Sequence[Any]) -> str:
    worst: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        group = "hot" if row["kind"] == "hot" else "healthy"
        for role, metrics in row["extremes"].items():
            known = worst.setdefault((group, role), {})
            for metric, (value, _) in metrics.items():
                pick = max if "kappa" in metric else min
                known[metric] = pick(value, known.get(metric, value))
    columns: dict[str, Callable[[Any], str]] = {
        "runs": lambda key: key[0],
        "role": lambda key: key[1],
        "least relative_rank": lambda key: f"{worst[key]['relative_rank']:.3f}",
        "least relative_fiedler": lambda key: f"{worst[key]['relative_fiedler']:.3f}",
        "largest kappa_p10": lambda key: f"{worst[key]['kappa_p10']:.4g}",
        "over that of a Gaussian": lambda key: f"{worst[key]['relative_kappa']:.4g}",
    }
    return table(columns, sorted(worst))


def _complaints(rows: Sequence[Any]) -> str:
    lines = [
        f"- {row['kind']} {row['seed']}, {what}: {count} visits, steps {first} to {last}"
        for row in rows
        if row["kind"] in HEALTHY
        for what, (first, last, count) in row["complaints"].items()
    ]
    return "\n".join(lines or ["none"]) + "\n"
