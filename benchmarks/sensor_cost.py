"""Measure what the sensors add to training, over whole sensor intervals: totals, no medians.

Run as ``python -m benchmarks.sensor_cost``; see ``--help``.
"""

from __future__ import annotations

import argparse
import gc
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.command import results_directory, torch_threads
from benchmarks.environment import describe_environment
from benchmarks.variants import BASELINE, PERIODIC, VARIANTS, make_learner
from benchmarks.workload import count_parameters, loss_of, make_batches
from stableopt.health.spectra.drift import LEARNED
from stableopt.sensors import Sampler, Sensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from benchmarks.variants import Learner

EVERY = Sampler().every
DENSE = LEARNED * Sampler().spacing
"""Steps in which weights are visited out of turn as well, until their courses are known."""

GUARD = "stable-sensors"
TARGET = 0.005
"""Of a training step of 20M at 4096 tokens, which the default sensors may add."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One size of model, trained by everybody in turn, ten steps at a time.

    Attributes:
        size: As in :func:`benchmarks.workload.make_model`.
        whole: Tokens of whole training steps; ``None`` to time the updates alone, with gradients
            computed beforehand.
        tokens: Of the training steps that the cost is a share of, with how many are timed.
        steady: Steps after the first :data:`DENSE`; whole rounds over all weights.
    """

    size: str
    whole: int | None
    tokens: dict[int, int]
    steady: int

    @property
    def names(self) -> tuple[str, ...]:
        """Who takes part."""
        # Updates alone take no time of which the sensors could have their share.
        stable = "stable-unlimited" if self.whole is None else "stable"
        return (BASELINE, GUARD, stable, "assr")


PHASES = (
    Phase(size="20M", whole=None, tokens={4096: 3, 512: 7}, steady=3 * Sampler().coverage),
    Phase(size="1M", whole=512, tokens={512: 0}, steady=3 * Sampler().coverage),
)
QUICK = (
    Phase(size="tiny", whole=None, tokens={64: 3}, steady=EVERY),
    Phase(size="tiny", whole=64, tokens={64: 0}, steady=EVERY),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write ``sensor_cost.json`` and ``sensor_cost.md``, and print the latter.

    Args:
        arguments: The command line; ``None`` for that of the process.

    Returns:
        The exit status: 0.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sensor_cost", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny model: seconds")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data (default: 0)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write")
    options = parser.parse_args(arguments)
    with torch_threads():
        phases = QUICK if options.quick else PHASES
        result = {
            "command": shlex.join(["python", "-m", "benchmarks.sensor_cost", *arguments]),
            "seed": options.seed,
            "complete": not options.quick,
            "environment": describe_environment(),
            "every": EVERY,
            "dense_steps": DENSE,
            "target": TARGET,
            "cells": [cell for phase in phases for cell in measure(phase, options.seed)],
        }
    text = render(result)
    default = results_directory(complete=not options.quick)
    directory = options.out or default
    directory.mkdir(parents=True, exist_ok=True)
    written = json.dumps(result, indent=1) + "\n"
    (directory / "sensor_cost.json").write_text(written, encoding="utf-8")
    (directory / "sensor_cost.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def measure(phase: Phase, seed: int) -> list[dict[str, Any]]:
    """Return one cell per number of tokens.

    Args:
        phase: What runs.
        seed: Of weights and data.
    """
    with TemporaryDirectory() as directory:
        learners = {
            name: make_learner(
                name,
                size=phase.size,
                implementation="fused",
                seed=seed,
                directory=Path(directory) / name,
            )
            for name in phase.names
        }
        try:
            return _measure(phase, learners, seed)
        finally:
            for learner in learners.values():
                learner.close()


def _measure(phase: Phase, learners: dict[str, Learner], seed: int) -> list[dict[str, Any]]:
    work = _Work(phase, learners, seed)
    intervals = (DENSE + phase.steady) // EVERY
    times: dict[str, list[float]] = {name: [] for name in learners}
    wholes: dict[str, list[float]] = {name: [] for name in learners}
    spent = [0.0]
    stable = phase.names[2]
    governor = learners[stable].optimizer._loop.sensing._governor
    for interval in _progress(intervals, f"{phase.size}, {phase.whole or 'updates'}"):
        names = list(learners)
        turn = interval % len(names)
        order = names[turn:] + names[:turn]
        gc.collect()
        for name in reversed(order) if interval % 2 else order:
            governor._last = perf_counter()  # the time of the others is not that of its training
            whole, updating = work.interval(name)
            wholes[name].append(whole)
            times[name].append(updating)
        spent.append(governor.spent)
    dense = DENSE // EVERY
    summary = learners[stable].optimizer.summary()["sensors"]
    cells = []
    for tokens, count in phase.tokens.items():
        step = work.bare_step(tokens, count) if count else _per_step(wholes[BASELINE])
        cells.append(
            {
                "size": phase.size,
                "parameters": count_parameters(learners[BASELINE].model),
                "tokens": tokens,
                "whole_steps": phase.whole is not None,
                "bare_step_seconds": step,
                "steps": {"dense": DENSE, "steady": phase.steady},
                "variants": [
                    {
                        "name": name,
                        "dense": _share(times, name, slice(None, dense), step),
                        "steady": _share(times, name, slice(dense, None), step),
                        "update_seconds": times[name],
                        "interval_seconds": wholes[name],
                    }
                    for name in learners
                ],
                "sensors": {
                    "dense": _added(times, stable, slice(None, dense), step),
                    "steady": _added(times, stable, slice(dense, None), step),
                    "own_account": {
                        "dense": spent[dense] / DENSE / step,
                        "steady": (spent[-1] - spent[dense]) / phase.steady / step,
                    },
                    "postponed": summary["postponed"],
                    "weights": summary["weights"],
                    "risk": summary["risk"],
                },
            }
        )
    return cells


class _Work:
    """What one interval is, for everybody alike."""

    def __init__(self, phase: Phase, learners: dict[str, Learner], seed: int) -> None:
        self._phase = phase
        self._learners = learners
        self._seed = seed
        tokens = phase.whole or min(phase.tokens)
        self._batches = make_batches(EVERY, tokens, seed)
        self._gradients: list[list[Tensor]] = []
        if phase.whole is None:
            model = learners[BASELINE].model
            for batch in self._batches[:4]:
                model.zero_grad()
                loss_of(model, batch).backward()
                self._gradients.append([p.grad for p in model.parameters() if p.grad is not None])

    def interval(self, name: str) -> tuple[float, float]:
        """Take ten steps, or ten updates; return the seconds of all, and those of the updates."""
        learner = self._learners[name]
        seconds = 0.0
        if self._phase.whole is not None:
            begun = perf_counter()
            for batch in self._batches:
                seconds += _step(learner, batch)
            return perf_counter() - begun, seconds
        loss = torch.zeros(())
        for number in range(EVERY):
            gradients = self._gradients[number % len(self._gradients)]
            for parameter, gradient in zip(learner.model.parameters(), gradients, strict=True):
                parameter.grad = gradient
            begun = perf_counter()
            learner.update(loss)
            seconds += perf_counter() - begun
        return seconds, seconds

    def bare_step(self, tokens: int, count: int) -> float:
        """Return the seconds of a whole training step of the bare optimizer: a median."""
        learner = self._learners[BASELINE]
        seconds = []
        for batch in make_batches(count, tokens, self._seed):
            begun = perf_counter()
            _step(learner, batch)
            seconds.append(perf_counter() - begun)
        return median(seconds)


def _step(learner: Learner, batch: Tensor) -> float:
    """Take a training step and return the seconds of its update."""
    learner.optimizer.zero_grad()
    loss = loss_of(learner.model, batch)
    loss.backward()
    begun = perf_counter()
    learner.update(loss)
    return perf_counter() - begun


def _per_step(intervals: Sequence[float]) -> float:
    return sum(intervals) / len(intervals) / EVERY


def _share(times: dict[str, list[float]], name: str, where: slice, step: float) -> float:
    """Return what a variant adds to the bare optimizer, as a share of a bare step."""
    return (_per_step(times[name][where]) - _per_step(times[BASELINE][where])) / step


def _added(times: dict[str, list[float]], stable: str, where: slice, step: float) -> float:
    """Return what the sensors add to the guard, as a share of a bare step."""
    return (_per_step(times[stable][where]) - _per_step(times[GUARD][where])) / step


def _progress(count: int, title: str) -> Iterator[int]:
    """Count with a bar on stderr: on one line if it is a terminal."""
    end = "\r" if sys.stderr.isatty() else "\n"
    for number in range(count):
        if end == "\r" or number % 8 == 0:
            done = "#" * round(20 * number / count)
            print(f"{title} [{done:<20}] {number}/{count}", end=end, file=sys.stderr, flush=True)
        yield number
    if end == "\r":
        print(file=sys.stderr)


def render(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    facts = result["environment"]
    lines = [
        "# What the sensors add to training",
        "",
        "<!-- Generated from `sensor_cost.json` by `python -m benchmarks.sensor_cost`; do not edit."
        " -->",
        "",
        f"`{result['command']}`, seed {result['seed']}, {facts['date']}: stableopt "
        f"{facts['stableopt']} ({facts['commit'] or 'no commit'}), torch {facts['torch']}, "
        f"{facts['cpu']}, {facts['cores']} cores, 1 thread used.",
        "",
    ]
    if not result["complete"]:
        lines += ["**Not the complete run: these figures are not to be quoted.**", ""]
    return "\n".join([*lines, digest(result)]) + "\n"


def digest(result: dict[str, Any]) -> str:
    """Return what the documentation quotes."""
    dense = result["dense_steps"]
    lines = [
        f"Sensors run after every {result['every']}th step, so what counts is the total time of "
        "whole intervals, everybody in turn; a median of steps would hide it. In percent of a bare "
        "training step (forward, backward, fused AdamW; CPU, one thread, fp32): what is added "
        "between the end of backward and the end of the update, where all of them run; the noise "
        "of forward and backward is larger than that. At 20M the gradients are computed "
        "beforehand, and the sensors have no budget; at 1M whole steps are taken, with the "
        f"default budget of {Sensors().budget:.1%}.",
        "",
        f"| model, tokens | | first {dense} steps: courses are learned | after that |",
        "|---|---|---|---|",
    ]
    labels = {**VARIANTS, **PERIODIC}
    for cell in result["cells"]:
        title = f"{cell['parameters'] / 1e6:.0f}M, {cell['tokens']:,}"
        for variant in cell["variants"][1:]:
            label = labels[variant["name"]].label
            lines.append(
                f"| {title} | {label} | {variant['dense']:+.3%} | {variant['steady']:+.3%} |"
            )
        sensors = cell["sensors"]
        account = sensors["own_account"]
        lines.append(
            f"| {title} | **the default sensors**: the difference | {sensors['dense']:+.3%} | "
            f"**{sensors['steady']:+.3%}** |"
        )
        lines.append(
            f"| {title} | the same by their own account | {account['dense']:+.3%} | "
            f"{account['steady']:+.3%} |"
        )
    lines.append("")
    for cell in result["cells"]:
        if (cell["size"], cell["tokens"]) == ("20M", 4096):
            added = cell["sensors"]["steady"]
            met = "met" if added <= result["target"] else "**not met**"
            lines.append(
                f"Target: at most {result['target']:.1%} of a step of 20M parameters at 4,096 "
                f"tokens: {added:.3%}, {met}."
            )
        if cell["whole_steps"]:
            lines.append(
                f"At {cell['parameters'] / 1e6:.0f}M and {cell['tokens']} tokens the sensors would "
                "take more than their budget, and visits are postponed (their own counter: "
                f"{cell['sensors']['postponed']})."
                if cell["sensors"]["postponed"]
                else f"At {cell['parameters'] / 1e6:.0f}M and {cell['tokens']} tokens nothing was "
                "postponed."
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
