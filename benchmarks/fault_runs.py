"""One run with a fault in it, and what became of it."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LinearLR

from benchmarks.fault_kinds import BATCH, FORWARD, STEP, Scene
from benchmarks.fault_state import digest, is_poisoned, tensors_of
from benchmarks.fault_tasks import TASKS
from stableopt import DivergenceError, StableOptimizer
from stableopt.types import Action

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from benchmarks.fault_kinds import Fault
    from stableopt import Guard
    from stableopt.testing import Injection
    from stableopt.types import Event

_LAST_LR = 0.05
"""Share of the learning rate that is left at the end."""

_PATIENCE = 3
"""Calls per update after which a run is given up."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is trained, and with what.

    Attributes:
        task: A key of :data:`~benchmarks.fault_tasks.TASKS`.
        optimizer: ``"AdamW"`` or ``"SGD"``.
        implementation: ``"fused"``, ``"foreach"`` or ``"for-loop"``.
        seed: Of weights and batches.
        updates: A run ends once so many were applied.
        guard: Its options; ``None`` for the bare optimizer.
        clip: Bound on the gradient norm of the bare optimizer; ``None`` not to clip.
    """

    task: str
    optimizer: str
    implementation: str
    seed: int
    updates: int
    guard: Guard | None
    clip: float | None = None


@dataclass(frozen=True, kw_only=True)
class Strike:
    """When and where a fault strikes.

    Attributes:
        fault: Which.
        phase: Updates behind the weights.
        moment: Of the training step.
        seed: Of tensor and element.
    """

    fault: Fault
    phase: int
    moment: str
    seed: int


@dataclass(kw_only=True)
class Outcome:
    """What became of a run.

    Attributes:
        finished: Whether all updates were applied.
        finite: Whether weights, state, buffers and validation loss are finite at the end.
        poisoned: Whether they hold a fault at the end.
        validation: The loss on what is never trained on; NaN if the run was stopped.
        digest: Hash of everything that training moves, at the end.
        history: The batch of each update that still counts, ``None`` for one that was skipped.
        error: What stopped it.
        summary: Counts of the guard.
        events: Its interventions.
        struck: The calls in which the fault struck.
        injections: What it changed.
        poisoned_restores: Those after which the state was not bit for bit what it was at that
            step, before the fault, or held a fault.
    """

    finished: bool = False
    finite: bool = False
    poisoned: bool = False
    validation: float = math.nan
    digest: bytes = b""
    history: list[int | None] = field(default_factory=list)
    error: str | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    struck: list[int] = field(default_factory=list)
    injections: list[Injection] = field(default_factory=list)
    poisoned_restores: int = 0


def run(setting: Setting, strike: Strike | None) -> Outcome:
    """Train until so many updates are applied, struck by a fault or not."""
    return _Run(setting, strike).play()


def run_on(setting: Setting, history: Sequence[int | None]) -> Outcome:
    """Train the bare optimizer on the batches of a history.

    This is the run in which a fault, and whatever it has cost, never happened.
    """
    with warnings.catch_warnings():
        # A history may begin with a batch that was skipped: the scheduler is ahead, and says so.
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        return _Run(setting, None).play(history)


class _Run:
    """The training loop, and the witness of every rollback."""

    def __init__(self, setting: Setting, strike: Strike | None) -> None:
        self._setting = setting
        self._strike = strike
        self._task = TASKS[setting.task]
        model = self._task.build(setting.seed)
        inner = _make_optimizer(model, setting)
        self._scene = Scene(model=model, optimizer=inner, untouched=self._task.untouched)
        self._scheduler = LinearLR(inner, 1.0, _LAST_LR, total_iters=setting.updates)
        self._stable: StableOptimizer | None = None
        if setting.guard is not None:
            self._stable = StableOptimizer(inner, model=model, guard=setting.guard)
            self._stable.track(scheduler=self._scheduler)
        self._outcome = Outcome()
        self._calls = self._updates = 0
        self._next: int | None = None if strike is None else strike.phase + 1
        self._digests = {0: digest(tensors_of(self._scene))}
        self._clean_until = setting.updates

    def play(self, history: Sequence[int | None] | None = None) -> Outcome:
        """Return what became of the run."""
        outcome, updates = self._outcome, self._setting.updates
        try:
            for batch in history or ():
                self._repeat(batch)
            while self._updates < updates and self._calls < _PATIENCE * updates:
                self._call()
            outcome.finished = self._updates >= updates
        except DivergenceError as error:
            outcome.error = str(error)
        self._close()
        return outcome

    def _repeat(self, batch: int | None) -> None:
        """Take the step on a batch; of one that was skipped only the scheduler knows."""
        if batch is not None:
            self._scene.batch = self._task.batch(self._setting.seed, batch)
            self._backward()
            self._take(batch)
        self._scheduler.step()

    def _call(self) -> None:
        self._calls += 1
        scene = self._scene
        number = self._calls + scene.left_out
        scene.batch = self._task.batch(self._setting.seed, number)
        self._maybe_strike(BATCH)
        self._maybe_strike(FORWARD)
        loss = self._backward()
        self._maybe_strike(STEP)
        if self._stable is None:
            self._take(number)
        else:
            self._stable.observe(loss=loss)
            self._stable.step()
            self._witness(self._stable, number)
        self._scheduler.step()

    def _backward(self) -> Tensor:
        loss = self._task.loss(self._scene.model, self._scene.batch)
        self._scene.optimizer.zero_grad()
        loss.backward()
        return loss

    def _take(self, batch: int) -> None:
        """Take a step of the bare optimizer."""
        if self._setting.clip is not None:
            clip_grad_norm_(self._scene.model.parameters(), self._setting.clip)
        self._scene.optimizer.step()
        self._updates += 1
        self._outcome.history.append(batch)

    def _maybe_strike(self, moment: str) -> None:
        strike = self._strike
        if strike is None or self._calls != self._next or moment != strike.moment:
            return
        again = len(self._outcome.struck)
        injection = strike.fault.strike(self._scene, strike.seed + again)
        self._outcome.struck.append(self._calls)
        if injection is not None:
            self._outcome.injections.append(injection)
        if strike.fault.at_rest:
            self._clean_until = self._updates

    def _witness(self, stable: StableOptimizer, batch: int) -> None:
        """Keep the history, and compare what a rollback brought back with what was there."""
        verdict = stable.verdict
        tensors = tensors_of(self._scene)
        if verdict is None or verdict.rollback is None:
            taken = verdict is not None and verdict.action is Action.TAKE
            self._updates += taken
            self._outcome.history.append(batch if taken else None)
            self._digests[self._updates] = digest(tensors)
            return
        self._updates = verdict.rollback.to_step
        same = digest(tensors) == self._digests.get(self._updates)
        late = self._updates > self._clean_until
        self._outcome.poisoned_restores += (
            late or not same or is_poisoned(tensors, self._at_rest_injections())
        )
        self._clean_until = self._setting.updates
        self._forget()
        strike = self._strike
        if strike and strike.fault.again is not None and len(self._outcome.struck) == 1:
            self._next = self._calls + strike.fault.again

    def _forget(self) -> None:
        """Cut the history where a rollback ended: at the last of the updates that still count."""
        history, left = self._outcome.history, self._updates
        taken = [i for i, batch in enumerate(history) if batch is not None]
        # The call that rolls back steps the scheduler in place of the one that took the last;
        # before the first there was none: it is as if that call had been skipped.
        history[taken[left - 1] + 1 if left else 0 :] = [] if left else [None]

    def _at_rest_injections(self) -> list[Injection]:
        at_rest = self._strike is not None and self._strike.fault.at_rest
        return self._outcome.injections if at_rest else []

    def _close(self) -> None:
        outcome = self._outcome
        tensors = tensors_of(self._scene)
        outcome.digest = digest(tensors)
        outcome.poisoned = is_poisoned(tensors, self._at_rest_injections())
        if outcome.finished:
            outcome.validation = self._task.validate(self._scene.model)
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
        outcome.finite = finite and math.isfinite(outcome.validation)
        if self._stable is not None:
            outcome.summary = self._stable.summary()
            outcome.events = tuple(event for event in self._stable.ledger if event.intervened)


def _make_optimizer(model: torch.nn.Module, setting: Setting) -> torch.optim.Optimizer:
    fused, foreach = setting.implementation == "fused", setting.implementation == "foreach"
    parameters = model.parameters()
    if setting.optimizer == "SGD":
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, fused=fused, foreach=foreach)
    return torch.optim.AdamW(parameters, lr=3e-3, fused=fused, foreach=foreach)
