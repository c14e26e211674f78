"""Strike training runs with faults at random phases: who finds them, survives, and loses what.

Run as ``python -m benchmarks.faults``; see ``--help``.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.common.command import Benchmark, names_of
from benchmarks.common.environment import guard_hash
from benchmarks.faults.kinds import FAULTS, Fault
from benchmarks.faults.pool import Clean, Job, play_all
from benchmarks.faults.report import render
from benchmarks.faults.rivals import BARE, OURS, RIVALS, TITLES
from benchmarks.faults.rows import summarize_runs
from benchmarks.faults.runs import Setting
from benchmarks.learning_rate.rivals import BOUND
from stableopt import Guard

IMPLEMENTATIONS = ("fused", "foreach", "for-loop")

FIRST_SEED = 100
"""Of weights and batches; nothing was tuned on it or on those that follow."""

UPDATES, RUNS = 240, 12
QUICK_UPDATES, QUICK_RUNS = 70, 1
"""Updates of a run, and runs of a fault under each contestant."""

_AFTERWARDS = 45
"""Updates that are left after a fault, so that there is time to find it."""

_LEEWAY = 5
"""Phases, at least, that a fault is drawn from in a quick run."""


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--faults",
        type=names_of("fault", FAULTS),
        metavar="A,B",
        help=f"only these, of: {', '.join(FAULTS)} (default: all)",
    )
    parser.add_argument("--runs", type=int, help=f"runs of a fault (default: {RUNS})")


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    guard = Guard(every=40) if options.quick else Guard()
    plan = _Plan(options, guard)
    clean, records = play_all(plan.jobs, processes=options.jobs)
    shared = {"updates": plan.updates, "clip_bound": BOUND}
    return {**shared, **_under(guard, clean), **plan.summarize(records)}


class _Plan:
    """All runs with a fault: every contestant meets the same ones."""

    def __init__(self, options: argparse.Namespace, guard: Guard) -> None:
        self.updates = QUICK_UPDATES if options.quick else UPDATES
        self._quick: bool = options.quick
        self._seed: int = options.seed
        self._guard = guard
        runs = options.runs or (QUICK_RUNS if options.quick else RUNS)
        names = options.faults or [n for n, f in FAULTS.items() if not (self._quick and f.updates)]
        self._contestants = [n for n in TITLES if n == OURS or RIVALS[n].available]
        self.jobs = [
            self._job(FAULTS[name], index, contestant)
            for name in names
            for contestant in self._contestants
            for index in range(runs)
        ]

    def summarize(self, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return rows and records by fault.

        Args:
            records: Of all jobs, in their order.
        """
        found: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for job, record in zip(self.jobs, records, strict=True):
            found.setdefault(job.fault, {}).setdefault(job.contestant, []).append(record)
        rows = [summarize_runs(FAULTS[name], self._guard, of) for name, of in found.items()]
        return {"rows": rows, "records": found}

    def _job(self, fault: Fault, index: int, contestant: str) -> Job:
        draw = random.Random(f"{self._seed}, {fault.name}, {index}")
        updates = self._updates(fault)
        last = updates - _AFTERWARDS if fault.last is None else fault.last
        phase = draw.randint(fault.first, last)
        return Job(
            fault=fault.name,
            contestant=contestant,
            setting=self._setting(fault, index, contestant, updates, phase),
            phase=phase,
            moment=draw.choice(fault.moments),
            seed=draw.randrange(2**31),
        )

    def _updates(self, fault: Fault) -> int:
        """Return how long a run is: if a quick one, as long as the fault needs."""
        if self._quick:
            last = fault.first + _LEEWAY if fault.last is None else fault.last
            return max(QUICK_UPDATES, last + _AFTERWARDS)
        return fault.updates or UPDATES

    def _setting(
        self, fault: Fault, index: int, contestant: str, updates: int, phase: int
    ) -> Setting:
        """Return the setting of a run: every task with every implementation in turn."""
        turn, place = divmod(index, len(fault.tasks) * len(IMPLEMENTATIONS))
        return Setting(
            task=fault.tasks[place % len(fault.tasks)],
            optimizer=fault.optimizer,
            implementation=IMPLEMENTATIONS[place // len(fault.tasks)],
            seed=FIRST_SEED + turn,
            updates=updates,
            guard=self._guard if contestant == OURS else None,
            rival=BARE if contestant == OURS else contestant,
            shift=phase + 1 if fault.shift else None,
        )


def _under(guard: Guard, clean: Mapping[Setting, Clean]) -> dict[str, Any]:
    """Return what is told of the guard, and what it did while there was no fault."""
    quiet = [known for setting, known in clean.items() if setting.guard is not None]
    return {
        "guard": _differences(guard),
        "guard_hash": guard_hash() if guard == Guard() else None,
        "options": asdict(guard),
        "confirm_steps": guard.confirm_steps,
        "clean_runs": len(quiet),
        "clean_interventions": sum(known.interventions for known in quiet),
    }


def _differences(guard: Guard) -> str:
    """Return how one would write ``guard``: its defaults left out."""
    default = asdict(Guard())
    given = {key: value for key, value in asdict(guard).items() if value != default[key]}
    return f"Guard({', '.join(f'{key}={value!r}' for key, value in given.items())})"


main = Benchmark(
    name="faults",
    about=__doc__,
    measure=_measure,
    render=render,
    options=_options,
    is_complete=lambda options: options.faults is None and options.runs is None,
    quick="one short run of each fault: seconds",
    seed="of the faults",
    jobs=2,
)

if __name__ == "__main__":
    sys.exit(main())
