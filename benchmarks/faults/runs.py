"""One run with a fault in it, and what became of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LinearLR

from benchmarks.faults.kinds import BATCH, FORWARD, STEP, Changed, Fault, Scene
from benchmarks.faults.rivals import BARE, Rival, RivalError, Trained, make_rival
from benchmarks.faults.state import digest, is_poisoned, tensors_of
from benchmarks.faults.tasks import TASKS
from stableopt import DivergenceError, Guard, StableOptimizer
from stableopt.types import Action, Event, Scope

_LAST_LR = 0.05
"""Share of the learning rate that is left at the end."""

_PATIENCE = 3
"""Calls per update after which a run is given up."""

_STUCK = 200
"""Calls in a row without an update after which it is: more than any window remembers."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is trained, and with what.

    Attributes:
        task: A key of :data:`~benchmarks.faults.tasks.TASKS`.
        optimizer: ``"AdamW"`` or ``"SGD"``.
        implementation: ``"fused"``, ``"foreach"`` or ``"for-loop"``.
        seed: Of weights and batches.
        updates: A run ends once so many were applied.
        guard: Its options; ``None`` for a rival.
        rival: Who, without a guard: a key of :data:`~benchmarks.faults.rivals.RIVALS`, or nobody.
        shift: The first batch of other data; ``None`` if they stay what they are.
    """

    task: str
    optimizer: str
    implementation: str
    seed: int
    updates: int
    guard: Guard | None
    rival: str = BARE
    shift: int | None = None


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
        lost: Updates that a rival undid, and steps that it refused.
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
    lost: int = 0
    history: list[int | None] = field(default_factory=list)
    error: str | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    struck: list[int] = field(default_factory=list)
    injections: list[Changed] = field(default_factory=list)
    poisoned_restores: int = 0


def run(setting: Setting, strike: Strike | None) -> Outcome:
    """Train until so many updates are applied, struck by a fault or not."""
    with warnings.catch_warnings():
        # The hook of stabilityguard on embeddings, whose inputs have no gradient, makes torch warn.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
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
        self._rival: Rival | None = None
        if setting.guard is not None:
            stable = StableOptimizer(inner, model=model, guard=setting.guard)
            stable.track(scheduler=self._scheduler)
            self._scene.stable = stable
        else:
            trained = Trained(model=model, optimizer=inner, scheduler=self._scheduler)
            self._rival = make_rival(setting.rival, trained)
        self._outcome = Outcome()
        self._calls = self._updates = self._refused = 0
        self._next: int | None = None if strike is None else strike.phase + 1
        self._digests = {0: digest(tensors_of(self._scene))}
        self._clean_until = setting.updates

    def play(self, history: Sequence[int | None] | None = None) -> Outcome:
        """Return what became of the run."""
        outcome, updates = self._outcome, self._setting.updates
        try:
            for batch in history or ():
                self._repeat(batch)
            while self._updates < updates and not self._is_given_up():
                self._call()
            outcome.finished = self._updates >= updates
            if not outcome.finished:
                outcome.error = f"given up: {self._updates} updates in {self._calls} calls"
        except (DivergenceError, RivalError) as error:
            outcome.error = str(error)
        finally:
            if self._rival is not None:
                self._rival.close()
        self._close()
        return outcome

    def _is_given_up(self) -> bool:
        return self._calls >= _PATIENCE * self._setting.updates or self._refused >= _STUCK

    def _repeat(self, batch: int | None) -> None:
        """Take the step on a batch; of one that was skipped only the scheduler knows."""
        if batch is not None:
            self._scene.batch = self._draw(batch)
            self._backward()
            self._scene.optimizer.step()
            self._updates += 1
        self._scheduler.step()

    def _draw(self, batch: int) -> Any:
        setting = self._setting
        shifted = setting.shift is not None and batch >= setting.shift
        return self._task.batch(setting.seed, batch, shifted=shifted)

    def _call(self) -> None:
        self._calls += 1
        scene = self._scene
        number = self._calls + scene.left_out
        scene.batch = self._draw(number)
        self._maybe_strike(BATCH)
        self._maybe_strike(FORWARD)
        loss = self._backward()
        self._maybe_strike(STEP)
        if scene.stable is not None:
            scene.stable.observe(loss=loss)
            scene.stable.step()
            self._witness(scene.stable, number)
            self._scheduler.step()
        elif self._rival is not None:
            self._let(self._rival, float(loss.detach()))

    def _let(self, rival: Rival, loss: float) -> None:
        """Let a rival take the step, or do what it does instead."""
        answer = rival.step(loss)
        self._updates += answer.taken - answer.lost
        self._outcome.lost += answer.lost + (not answer.taken)
        self._refused = 0 if answer.taken else self._refused + 1
        if answer.went_back:
            self._plan_again()
        if answer.schedules:
            self._scheduler.step()
        rival.after_step(self._updates)

    def _plan_again(self) -> None:
        """Have the fault strike once more, if it is one that does."""
        strike = self._strike
        if strike and strike.fault.again is not None and len(self._outcome.struck) == 1:
            self._next = self._calls + strike.fault.again

    def _backward(self) -> Tensor:
        loss = self._task.loss(self._scene.model, self._scene.batch)
        self._scene.optimizer.zero_grad()
        loss.backward()
        return loss

    def _maybe_strike(self, moment: str) -> None:
        strike = self._strike
        if strike is None or self._calls != self._next or moment != strike.moment:
            return
        again = len(self._outcome.struck)
        changed = strike.fault.strike(self._scene, strike.seed + again)
        self._outcome.struck.append(self._calls)
        if changed is not None:
            self._outcome.injections += changed if isinstance(changed, tuple) else (changed,)
        if strike.fault.at_rest:
            self._clean_until = self._updates
        if len(self._outcome.struck) < strike.fault.times:
            self._next = self._calls + strike.fault.period

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
        self._plan_again()

    def _forget(self) -> None:
        """Cut the history where a rollback ended: at the last of the updates that still count."""
        history, left = self._outcome.history, self._updates
        taken = [i for i, batch in enumerate(history) if batch is not None]
        # The call that rolls back steps the scheduler in place of the one that took the last;
        # before the first there was none: it is as if that call had been skipped.
        history[taken[left - 1] + 1 if left else 0 :] = [] if left else [None]

    def _at_rest_injections(self) -> list[Changed]:
        at_rest = self._strike is not None and self._strike.fault.at_rest
        return self._outcome.injections if at_rest else []

    def _close(self) -> None:
        outcome = self._outcome
        tensors = tensors_of(self._scene)
        outcome.digest = digest(tensors)
        outcome.poisoned = is_poisoned(tensors, self._at_rest_injections())
        if outcome.finished:
            shifted = self._setting.shift is not None
            outcome.validation = self._task.validate(self._scene.model, shifted=shifted)
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
        outcome.finite = finite and math.isfinite(outcome.validation)
        if (stable := self._scene.stable) is not None:
            outcome.summary = stable.summary()
            outcome.events = tuple(event for event in stable.ledger if _is_told(event))


def _is_told(event: Event) -> bool:
    """Return whether an event is about a fault: nothing was done about some spikes but a word."""
    return event.intervened or any(found.scope is Scope.SPIKE for found in event.findings)


def _make_optimizer(model: torch.nn.Module, setting: Setting) -> torch.optim.Optimizer:
    fused, foreach = setting.implementation == "fused", setting.implementation == "foreach"
    parameters = model.parameters()
    if setting.optimizer == "SGD":
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, fused=fused, foreach=foreach)
    return torch.optim.AdamW(parameters, lr=3e-3, fused=fused, foreach=foreach)
