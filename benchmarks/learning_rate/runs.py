"""One run of the learning-rate benchmark, and what became of it."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from benchmarks.common.environment import ROOT
from benchmarks.learning_rate.methods import METHODS, Method
from benchmarks.learning_rate.model import GPT
from benchmarks.learning_rate.plan import Cell
from benchmarks.learning_rate.tasks import TASKS, Task
from stableopt import DivergenceError, StableOptimizer

CAP = "UpdateCap"
"""The transform whose work is counted."""

WATCHED = 10
"""Steps in which the attention logits are looked at once."""

_DECISIVE = ("model", "other_models", "tasks", "rivals", "methods", "runs")
"""Our files on which a run depends; reports and plans may change."""

Record = dict[str, Any]


def run(task: str, method: str, lr: float, seed: int, *, quick: bool = False) -> Record:
    """Train once, and return what became of it as plain values.

    The learning rate is a function of the batch: a batch that is skipped or undone is lost.

    Args:
        task: One of ``TASKS``.
        method: One of ``METHODS``.
        lr: The peak of the learning rate.
        seed: Of weights and batches.
        quick: Whether to train the tiny version of the task.

    Returns:
        ``val`` and ``initial``, the validation loss after and before; ``logit``, the largest
        attention logit that was seen, ``None`` where there is none; ``finite``, whether every
        loss and the weights at the end were; ``stopped``, why the guard gave up, or ``None``;
        ``steps`` and ``seconds``; what the guard did. Infinite is ``"inf"``.
    """
    begun = perf_counter()
    setting = TASKS[task].quick() if quick else TASKS[task]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        training = _Training(setting, METHODS[method], lr, seed)
        training.train()
    cell = {"task": task, "method": method, "lr": lr, "seed": seed}
    return {**cell, **training.record(), "seconds": round(perf_counter() - begun, 2)}


def run_cell(cell: Cell, *, quick: bool) -> Record:
    """Do the same with a cell of the plan."""
    return run(**asdict(cell), quick=quick)


def version_of(*, quick: bool) -> str:
    """Return a hash of everything that decides what a run comes to.

    Args:
        quick: Whether the tiny tasks are meant.
    """
    own = [Path(__file__).with_name(f"{name}.py") for name in _DECISIVE]
    digest = hashlib.sha256(f"{torch.__version__}, quick={quick}".encode())
    for path in [*sorted((ROOT / "stableopt").rglob("*.py")), *own]:
        digest.update(str(path.relative_to(ROOT)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class _Training:
    """A model that is trained on one batch after the other."""

    def __init__(self, task: Task, method: Method, lr: float, seed: int) -> None:
        self.task, self.method, self.lr, self.seed = task, method, lr, seed
        self.model = task.build(seed, method.edit)
        self.parameters = list(self.model.parameters())
        self.optimizer = method.optimizer(self.model, lr)
        self.gate = method.gate()
        self.initial = task.validate(self.model)
        self.logit = 0.0 if isinstance(self.model, GPT) else None
        self.steps, self.bad_losses = 0, 0
        self.stopped: str | None = None

    def train(self) -> None:
        """Go through all batches, as far as there is sense in it."""
        try:
            while self.steps < self.task.steps and not self._is_lost():
                self._step(self.steps)
                self.steps += 1
        except DivergenceError as error:
            self.stopped = str(error)

    def record(self) -> Record:
        """Return what became of it."""
        over = self.stopped is not None or self._is_lost()
        val = math.inf if over else self._validate()
        weights = all(bool(parameter.isfinite().all()) for parameter in self.parameters)
        return {
            "val": _plain(val),
            "initial": _plain(self.initial),
            "logit": None if self.logit is None else _plain(self.logit),
            "finite": weights and self.bad_losses == 0 and (over or math.isfinite(val)),
            "stopped": self.stopped,
            "steps": self.steps,
            **self._interventions(),
        }

    def _step(self, step: int) -> None:
        lr = self.lr * self.task.factor(step, self.method.power)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self._watch(step % WATCHED == 0)
        loss = self.task.loss(self.model, step, self.seed, self.method.z_loss)
        self._look()
        self.optimizer.zero_grad()
        loss.backward()
        value = float(loss.detach())
        self.bad_losses += not math.isfinite(value)
        if self._is_lost() or not self.gate.before_step(self.parameters, value):
            return
        if isinstance(self.optimizer, StableOptimizer):
            self.optimizer.observe(loss=loss)
        self.optimizer.step()

    def _is_lost(self) -> bool:
        return self.bad_losses > 0 and not self.method.recovers

    def _validate(self) -> float:
        self._watch(True)
        val = self.task.validate(self.model)
        self._look()
        return val

    def _watch(self, watched: bool) -> None:
        if isinstance(self.model, GPT):
            self.model.watch(watched)

    def _look(self) -> None:
        if isinstance(self.model, GPT) and self.logit is not None:
            self.logit = max(self.logit, self.model.largest_logit)

    def _interventions(self) -> dict[str, Any]:
        if not isinstance(self.optimizer, StableOptimizer):
            return {"skips": getattr(self.gate, "skipped", 0), "rollbacks": 0, "capped": None}
        summary = self.optimizer.summary()
        return {
            "skips": summary["skips"],
            "rollbacks": summary["rollbacks"],
            "steps_lost": summary["steps_lost"],
            "interventions": sum(event.intervened for event in self.optimizer.ledger),
            "capped": _capped(summary),
        }


def _capped(summary: dict[str, Any]) -> float | None:
    """Return the share of tensor-steps on which an update was cut short, as far as it is told."""
    taken = summary["calls"] - summary["skips"]
    for told in summary["transforms"]:
        if isinstance(told, dict) and told["transform"].startswith(CAP):
            return float(told["changes"] / max(1, told["parameters"] * taken))
    return None


def _plain(value: float) -> float | str:
    """Return what JSON can hold, and ``float`` reads."""
    return value if math.isfinite(value) else "inf"
