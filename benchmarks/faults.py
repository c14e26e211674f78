"""Strike training runs with faults at random phases: what the guard finds, does and loses.

Run as ``python -m benchmarks.faults``; see ``--help``.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.command import results_directory, silent, torch_threads
from benchmarks.environment import describe_environment
from benchmarks.fault_kinds import FAULTS, Fault
from benchmarks.fault_report import render
from benchmarks.fault_rows import record_of, summarize_runs
from benchmarks.fault_runs import Setting, Strike, run, run_on
from stableopt import Guard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.fault_runs import Outcome

IMPLEMENTATIONS = ("fused", "foreach", "for-loop")

FIRST_SEED = 100
"""Of weights and batches; nothing was tuned on it or on those that follow."""

MAX_NORM = 1.0
"""Bound on the gradient norm of the bare optimizer."""

UPDATES, RUNS = 240, 12
QUICK_UPDATES, QUICK_RUNS = 70, 1
"""Updates of a run, and runs of a fault under each guard."""

_AFTERWARDS = 45
"""Updates that are left after a fault, so that there is time to find it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Strike, write ``faults.json`` and ``faults.md``, and print the latter.

    Args:
        arguments: The command line; ``None`` for that of the process.

    Returns:
        The exit status: 0.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments)
    begun = perf_counter()
    with torch_threads(), silent():
        gauntlet = _Gauntlet(options)
        guards = [Guard(every=40)] if options.quick else [Guard(every=40), Guard()]
        blocks = [gauntlet.block(guard, with_bare=i == 0) for i, guard in enumerate(guards)]
        result = {
            "command": shlex.join(["python", "-m", "benchmarks.faults", *arguments]),
            "seed": options.seed,
            "complete": _is_complete(options),
            "updates": gauntlet.updates,
            "clip_bound": MAX_NORM,
            "environment": describe_environment(),
            "seconds": perf_counter() - begun,
            "blocks": blocks,
        }
    text = render(result, "faults.json")
    _write(options.output or results_directory(complete=_is_complete(options)), result, text)
    print(text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument(
        "--faults",
        type=_fault_names,
        metavar="A,B",
        help=f"only these, of: {', '.join(FAULTS)} (default: all)",
    )
    parser.add_argument("--runs", type=int, help=f"runs of a fault (default: {RUNS})")
    parser.add_argument("--quick", action="store_true", help="one short run of each fault: seconds")
    parser.add_argument("--seed", type=int, default=0, help="of the faults (default: 0)")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where to write (default: benchmarks/results for the complete run, "
        "runs/benchmarks with --quick, --faults or --runs)",
    )
    return parser


def _fault_names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in FAULTS:
            raise argparse.ArgumentTypeError(
                f"no fault is called {name!r}: give some of {', '.join(FAULTS)}"
            )
    return names


class _Gauntlet:
    """Plans the runs, and makes every clean one only once.

    Args:
        options: The command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.updates = QUICK_UPDATES if options.quick else UPDATES
        self._runs = options.runs or (QUICK_RUNS if options.quick else RUNS)
        self._seed = options.seed
        self._faults = [FAULTS[name] for name in options.faults or FAULTS]
        self._clean: dict[Setting, Outcome] = {}

    def block(self, guard: Guard, *, with_bare: bool) -> dict[str, Any]:
        """Return rows and records of all faults under one guard.

        Args:
            guard: Its options.
            with_bare: Whether the bare optimizer is struck as well.
        """
        rows, records, bare_records = [], {}, {}
        for fault in self._faults:
            begun = perf_counter()
            runs = [self._record(fault, i, guard) for i in range(self._runs)]
            bare = [self._record(fault, i, None) for i in range(self._runs)] if with_bare else []
            rows.append(summarize_runs(fault, guard, runs, bare))
            records[fault.name], bare_records[fault.name] = runs, bare
            _say(f"{fault.name}: {len(runs)} runs in {perf_counter() - begun:.0f} s")
        quiet = [outcome for setting, outcome in self._clean.items() if setting.guard == guard]
        return {
            "guard": _differences(guard),
            "options": asdict(guard),
            "confirm_steps": guard.confirm_steps,
            "clean_runs": len(quiet),
            "clean_interventions": sum(len(outcome.events) for outcome in quiet),
            "rows": rows,
            "records": records,
            "bare_records": bare_records,
        }

    def _record(self, fault: Fault, index: int, guard: Guard | None) -> dict[str, Any]:
        setting = self._setting(fault, index, guard)
        strike = self._strike(fault, index)
        if setting not in self._clean:
            self._clean[setting] = run(setting, None)
        outcome, twin = run(setting, strike), None
        if guard is not None:
            twin = run_on(replace(setting, guard=None), outcome.history)
        return record_of(setting, strike, outcome, self._clean[setting], twin)

    def _setting(self, fault: Fault, index: int, guard: Guard | None) -> Setting:
        """Return the setting of a run: every task with every implementation in turn."""
        turn, place = divmod(index, len(fault.tasks) * len(IMPLEMENTATIONS))
        return Setting(
            task=fault.tasks[place % len(fault.tasks)],
            optimizer=fault.optimizer,
            implementation=IMPLEMENTATIONS[place // len(fault.tasks)],
            seed=FIRST_SEED + turn,
            updates=self.updates,
            guard=guard,
            clip=MAX_NORM if guard is None else None,
        )

    def _strike(self, fault: Fault, index: int) -> Strike:
        draw = random.Random(f"{self._seed}, {fault.name}, {index}")
        last = self.updates - _AFTERWARDS if fault.last is None else fault.last
        return Strike(
            fault=fault,
            phase=draw.randint(fault.first, last),
            moment=draw.choice(fault.moments),
            seed=draw.randrange(2**31),
        )


def _differences(guard: Guard) -> str:
    """Return how one would write ``guard``: its defaults left out."""
    default = asdict(Guard())
    given = {key: value for key, value in asdict(guard).items() if value != default[key]}
    return f"Guard({', '.join(f'{key}={value!r}' for key, value in given.items())})"


def _is_complete(options: argparse.Namespace) -> bool:
    return not options.quick and options.faults is None and options.runs is None


def _write(directory: Path, result: dict[str, Any], text: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    content = json.dumps(result, indent=1, allow_nan=False) + "\n"
    (directory / "faults.json").write_text(content, encoding="utf-8")
    (directory / "faults.md").write_text(text, encoding="utf-8")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
