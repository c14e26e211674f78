"""What else people do about faults: small loops around the same optimizer, one protocol."""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from benchmarks.learning_rate.rivals import BOUND, Clip, Gate, Nothing, SkipSpikes, ZClip

OURS = "stableopt"
BASELINE = "clip"
"""Of the contestants: what all others are held against."""

CHECKPOINT_EVERY = 100
MOST_RESTARTS = 5


class RivalError(Exception):
    """A rival gives up, or fails."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a rival takes care of.

    Attributes:
        model: The model.
        optimizer: The bare optimizer, on which the scheduler sits.
        scheduler: Of its learning rate.
    """

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler


class Answer(NamedTuple):
    """What a rival made of a call.

    Attributes:
        taken: Whether an update was applied.
        went_back: Whether weights and state were put back.
        lost: Updates that were undone.
        schedules: Whether the scheduler is still to be stepped.
    """

    taken: bool
    went_back: bool = False
    lost: int = 0
    schedules: bool = True


class Rival(Protocol):
    """Steps the optimizer in its own way."""

    def step(self, loss: float) -> Answer:
        """Do what is to be done once the gradients are there.

        Args:
            loss: Of the batch.

        Raises:
            RivalError: It gives up.
        """
        ...

    def after_step(self, updates: int) -> None:
        """Hear that the call is over, scheduler and all.

        Args:
            updates: Behind the weights.
        """
        ...

    def close(self) -> None:
        """Release what it holds."""
        ...


class Gated:
    """Changes the gradients, and may refuse the step.

    Args:
        trained: What it steps.
        gate: Does so.
    """

    def __init__(self, trained: Trained, gate: Gate) -> None:
        self._optimizer, self._gate = trained.optimizer, gate
        self._parameters = list(trained.model.parameters())

    def step(self, loss: float) -> Answer:
        """Step the optimizer unless the gate refuses."""
        taken = self._gate.before_step(self._parameters, loss)
        if taken:
            self._optimizer.step()
        return Answer(taken)

    def after_step(self, updates: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class StepIfFinite:
    """Clip, and refuse a step whose gradient norm is not finite: two lines in any loop."""

    def before_step(self, parameters: Sequence[Tensor], loss: float) -> bool:
        """Clip, and return whether the norm is finite."""
        return math.isfinite(float(clip_grad_norm_(parameters, BOUND)))


class StabilityGuard:
    """The ``GuardedOptimizer`` of stabilityguard, which rolls back; behind a clip.

    It keeps one copy, of the last step that it took, so that a rollback undoes no update.

    Args:
        trained: What it steps.
    """

    def __init__(self, trained: Trained) -> None:
        from stabilityguard import GuardedOptimizer

        self._parameters = list(trained.model.parameters())
        self._directory = TemporaryDirectory()
        # Only the periodic line on stdout is off; all else is the default.
        self._guarded = GuardedOptimizer(
            trained.optimizer,
            trained.model,
            nan_action="rollback",
            log_dir=self._directory.name,
            verbose=False,
        )

    def step(self, loss: float) -> Answer:
        """Clip and step; whatever it raises is its end."""
        clip_grad_norm_(self._parameters, BOUND)
        skips = self._guarded.total_skips
        try:
            with redirect_stdout(io.StringIO()):
                self._guarded.step(loss=loss)
        except Exception as error:
            raise RivalError(f"{type(error).__name__}: {error}") from error
        spiked = self._guarded.total_skips > skips
        return Answer(not spiked, went_back=spiked)

    def after_step(self, updates: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Detach its hooks, and delete what it has logged."""
        self._guarded.close()
        self._directory.cleanup()


class Restart:
    """Clips; from a checkpoint on disk begins anew when the loss is not finite.

    The data move on.

    Args:
        trained: What it steps.
        every: Updates between two checkpoints.
        most: Restarts, after which it gives up.
    """

    def __init__(
        self, trained: Trained, every: int = CHECKPOINT_EVERY, most: int = MOST_RESTARTS
    ) -> None:
        self._trained, self._every, self._most = trained, every, most
        self._gated = Gated(trained, Clip())
        self._directory = TemporaryDirectory()
        self._file = Path(self._directory.name) / "checkpoint.pt"
        self._restarts = self._updates = self._saved = 0
        self._save(0)

    def step(self, loss: float) -> Answer:
        """Clip and step, or load the checkpoint."""
        if math.isfinite(loss):
            return self._gated.step(loss)
        if self._restarts == self._most:
            raise RivalError(f"the loss was not finite after {self._most} restarts")
        self._restarts += 1
        for part, state in zip(self._parts(), torch.load(self._file), strict=True):
            part.load_state_dict(state)
        lost = self._updates - self._saved
        return Answer(taken=False, went_back=True, lost=lost, schedules=False)

    def after_step(self, updates: int) -> None:
        """Save a checkpoint if one is due."""
        self._updates = updates
        if updates >= self._saved + self._every:
            self._save(updates)

    def close(self) -> None:
        """Delete the checkpoint."""
        self._directory.cleanup()

    def _save(self, updates: int) -> None:
        torch.save([part.state_dict() for part in self._parts()], self._file)
        self._saved = updates

    def _parts(self) -> tuple[nn.Module, Optimizer, LRScheduler]:
        return self._trained.model, self._trained.optimizer, self._trained.scheduler


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A column of the result.

    Attributes:
        title: Its name in the tables.
        build: Makes the rival.
        healthy: Whose runs without a fault its own equal, bit for bit, if another's.
        requires: A package beyond torch, if it needs one.
    """

    title: str
    build: Callable[[Trained], Rival]
    healthy: str | None = None
    requires: str | None = None

    @property
    def available(self) -> bool:
        """Tell whether the package it requires is installed."""
        return self.requires is None or importlib.util.find_spec(self.requires) is not None


def _gated(make: Callable[[], Gate]) -> Callable[[Trained], Rival]:
    return partial(_make_gated, make)


def _make_gated(make: Callable[[], Gate], trained: Trained) -> Rival:
    return Gated(trained, make())


BARE = "bare"
"""What our own runs are repeated with, batch by batch: nothing but the optimizer."""

RIVALS = {
    BASELINE: Contestant(title="AdamW + clip", build=_gated(Clip)),
    "finite": Contestant(title="+ step if finite", build=_gated(StepIfFinite), healthy=BASELINE),
    "6-sigma": Contestant(title="6σ skip", build=_gated(SkipSpikes)),
    "zclip": Contestant(title="ZClip", build=_gated(ZClip)),
    "stabilityguard": Contestant(
        title="stabilityguard", build=StabilityGuard, requires="stabilityguard"
    ),
    "checkpoint": Contestant(title="checkpoint", build=Restart, healthy=BASELINE),
}
"""Every rival by its name in the result file."""

TITLES = {OURS: "stableopt", **{name: rival.title for name, rival in RIVALS.items()}}


def make_rival(name: str, trained: Trained) -> Rival:
    """Return a rival, or nothing but the optimizer.

    Args:
        name: A key of ``RIVALS``, or ``BARE``.
        trained: What it steps.
    """
    return Gated(trained, Nothing()) if name == BARE else RIVALS[name].build(trained)
