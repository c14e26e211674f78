"""One long run in which nothing is wrong."""

from __future__ import annotations

import gc
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.faults.tasks import TASKS as SMALL
from benchmarks.learning_rate.model import Shape
from benchmarks.learning_rate.other_models import GatedConvolutions, Lstm
from benchmarks.learning_rate.tasks import Task
from stableopt import StableOptimizer

WARMUP = 100
"""Steps of a run in which the learning rate rises."""

MOST_GROWTH = 0.05
"""Of the resident memory, from a tenth of a run to its end."""

_BYTES = Task(shape=Shape(width=32, layers=2, heads=2, context=32), batch=8)
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
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
            OPTIMIZERS[optimizer](network.parameters()), model=network, telemetry=directory
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
