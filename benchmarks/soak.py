"""Train for long while nothing is wrong: the guard does nothing, and nothing grows.

Run as ``python -m benchmarks.soak``; see ``--help``.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import shlex
import sys
import tempfile
from collections import Counter
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.command import results_directory, silent, torch_threads
from benchmarks.environment import describe_environment
from benchmarks.fault_tasks import TASKS as SMALL
from benchmarks.lr_model import Shape
from benchmarks.lr_other_models import GatedConvolutions, Lstm
from benchmarks.lr_tasks import Task
from benchmarks.progress import progress_bar
from benchmarks.soak_report import render
from stableopt import Guard, StableOptimizer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn
    from torch.optim import Optimizer

STEPS = 100_000
"""In all runs together."""

FIRST_SEED = 100
SEEDS = 2
WARMUP = 100
"""Steps of a run in which the learning rate rises."""

MOST_GROWTH = 0.05
"""Of the resident memory, from a tenth of a run to its end."""

_BYTES = Task(shape=Shape(width=32, layers=2, heads=2, context=32), batch=8)
_OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "AdamW, 1e-3": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    "AdamW, 3e-3": lambda parameters: torch.optim.AdamW(parameters, lr=3e-3, betas=(0.9, 0.95)),
    "SGD, 3e-3": lambda parameters: torch.optim.SGD(parameters, lr=3e-3, momentum=0.9),
}


class _Bytes:
    """A model on bytes, as the learning-rate benchmark trains it."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def build(self, seed: int) -> nn.Module:
        return self._task.build(seed)

    def loss(self, model: nn.Module, seed: int, step: int) -> Tensor:
        return self._task.loss(model, step, seed)


class _Small:
    """A model of the fault benchmark."""

    def __init__(self, name: str) -> None:
        self._task = SMALL[name]

    def build(self, seed: int) -> nn.Module:
        return self._task.build(seed)

    def loss(self, model: nn.Module, seed: int, step: int) -> Tensor:
        return self._task.loss(model, self._task.batch(seed, step))


MODELS: dict[str, _Bytes | _Small] = {
    "GPT": _Bytes(_BYTES),
    "GPT without norms": _Bytes(Task(shape=Shape(width=32, context=32, norm="none"), batch=8)),
    "LSTM": _Bytes(Task(other=lambda: Lstm(32), batch=8)),
    "convolutions": _Bytes(Task(other=lambda: GatedConvolutions(32), batch=8)),
    "classifier with BatchNorm": _Small("classifier"),
    "transformer on a Markov chain": _Small("transformer"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, write ``soak.json`` and ``soak.md``, and print the latter.

    Args:
        arguments: The command line; ``None`` for that of the process.

    Returns:
        The exit status: 0 if nothing intervened and nothing grew, 1 if something did.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments)
    begun = perf_counter()
    plan = [
        (model, optimizer, FIRST_SEED + i)
        for i in range(SEEDS)
        for model in MODELS
        for optimizer in _OPTIMIZERS
    ]
    steps = -(-options.steps // len(plan))
    runs = []
    with torch_threads(), silent(), progress_bar() as progress:
        bar = progress.add_task("runs", total=len(plan))
        for model, optimizer, seed in plan:
            runs.append(soak(model, optimizer, seed, steps))
            progress.advance(bar)
    complete = options.steps >= STEPS
    result = {
        "command": shlex.join(["python", "-m", "benchmarks.soak", *arguments]),
        "complete": complete,
        "guard": repr(Guard()),
        "guard_hash": guard_hash(),
        "environment": describe_environment(),
        "seconds": round(perf_counter() - begun, 1),
        "runs": runs,
    }
    text = render(result)
    directory = options.output or results_directory(complete=complete)
    directory.mkdir(parents=True, exist_ok=True)
    content = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    (directory / "soak.json").write_text(content, encoding="utf-8")
    (directory / "soak.md").write_text(text, encoding="utf-8")
    print(text)
    return 0 if is_quiet(runs) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS, help="in all runs (%(default)s)")
    parser.add_argument("--output", type=Path, help="directory of the result files")
    return parser


def guard_hash() -> str:
    """Return a hash of the default guard, which is what everything is measured with."""
    return hashlib.sha256(repr(Guard()).encode()).hexdigest()[:16]


def soak(model: str, optimizer: str, seed: int, steps: int) -> dict[str, Any]:
    """Train once with everything on, and return what the guard did and what has grown.

    Args:
        model: One of ``MODELS``.
        optimizer: Its optimizer and learning rate.
        seed: Of weights and batches.
        steps: How many.
    """
    task = MODELS[model]
    with tempfile.TemporaryDirectory() as directory, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = task.build(seed)
        opt = StableOptimizer(
            _OPTIMIZERS[optimizer](network.parameters()), model=network, telemetry=directory
        )
        schedule = torch.optim.lr_scheduler.LinearLR(opt, 1 / WARMUP, total_iters=WARMUP)
        opt.track(scheduler=schedule)
        first = last = 0.0
        sizes = [0, 0]
        for step in range(steps):
            loss = task.loss(network, seed, step)
            opt.zero_grad()
            loss.backward()
            opt.observe(loss=loss)
            opt.step()
            schedule.step()
            last = float(loss.detach())
            first = first or last
            if step == steps // 10:
                sizes[0] = resident()
        sizes[1] = resident()
        handles = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
        opt.close()
        summary = opt.summary()
    kinds = Counter(finding.kind for event in opt.ledger for finding in event.findings)
    gc.collect()
    return {
        "model": model,
        "optimizer": optimizer,
        "seed": seed,
        "steps": steps,
        "loss": [first, last],
        "interventions": sum(event.intervened for event in opt.ledger),
        "skips": summary["skips"],
        "rollbacks": summary["rollbacks"],
        "findings": dict(kinds),
        "snapshots": summary["snapshots"]["taken"],
        "growth": (sizes[1] - sizes[0]) / sizes[0] if sizes[0] else None,
        "handles": handles,
        "reasons": [event.reason for event in opt.ledger if event.intervened][:3],
    }


def resident() -> int:
    """Return the resident memory of this process in bytes; 0 where it is not known."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def is_quiet(runs: Sequence[dict[str, Any]]) -> bool:
    """Tell whether nothing intervened, memory stayed and no file was left open."""
    handles = [run["handles"] for run in runs if run["handles"] is not None]
    grown = [run["growth"] for run in runs if run["growth"] is not None]
    leaks = bool(handles) and max(handles) > handles[0]
    return (
        not any(r["interventions"] for r in runs)
        and max(grown, default=0) <= MOST_GROWTH
        and not leaks
    )


if __name__ == "__main__":
    sys.exit(main())
