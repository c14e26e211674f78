"""What the demo is asked to do, checked before anything trains."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from stableopt.demo.model import ModelOptions
from stableopt.errors import ConfigError

DEFAULT_STEPS = 250
MIN_STEPS = 10
MAX_SEED = 2**32 - 1


class Inject(str, Enum):
    """Which fault to inject."""

    NONE = "none"
    NAN_GRAD = "nan-grad"
    INF_GRAD = "inf-grad"

    @property
    def value_written(self) -> float | None:
        """What is written into one element of one gradient, if anything."""
        return {"nan-grad": math.nan, "inf-grad": math.inf}.get(self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One bad element in one gradient, once.

    Attributes:
        value: What is written: NaN or Inf.
        at: In which step, from 1, between its backward pass and the optimizer's step.
    """

    value: float
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How each run of the demo trains.

    Attributes:
        steps: Batches.
        seed: Of the weights and of the data.
        batch: Windows of text per step.
        lr: Peak learning rate, after a linear warmup and before a cosine decay.
        weight_decay: Of AdamW.
        max_norm: Bound of the global gradient norm.
        model: The shape of the GPT.
    """

    steps: int = DEFAULT_STEPS
    seed: int = 0
    batch: int = 16
    lr: float = 2e-3
    weight_decay: float = 0.1
    max_norm: float = 1.0
    model: ModelOptions = field(default_factory=ModelOptions)

    def __post_init__(self) -> None:
        if self.steps < MIN_STEPS:
            raise ConfigError(
                f"steps={self.steps} must be at least {MIN_STEPS}: there is no curve to see in less"
            )
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"seed={self.seed} must be an int from 0 to {MAX_SEED}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """The command line of ``stableopt demo``.

    Attributes:
        recipe: How each run trains.
        inject: Which fault.
        at: In which step, from 1; half of the steps if ``None``.
        guard: Whether the guard is on; without it only the run that dies is shown.
        out: Where telemetry and picture go.

    Raises:
        ConfigError: The options contradict one another, or ``at`` is no step of the run.
    """

    recipe: Recipe
    out: Path
    inject: Inject = Inject.NAN_GRAD
    at: int | None = None
    guard: bool = True

    def __post_init__(self) -> None:
        steps = self.recipe.steps
        if self.inject is Inject.NONE and not self.guard:
            raise ConfigError(
                "inject=none with --no-guard has nothing to show: choose a fault, "
                "e.g. --inject nan-grad, or leave the guard on"
            )
        if self.at is None:
            return
        if self.inject is Inject.NONE:
            raise ConfigError(
                f"at={self.at} must not be given with inject=none: leave it out, or choose a "
                "fault, e.g. --inject nan-grad"
            )
        if not 1 <= self.at <= steps:
            raise ConfigError(
                f"at={self.at} must be a step from 1 to {steps} (steps={steps}): "
                "choose an earlier step for the fault, or train for more steps"
            )

    @property
    def fault(self) -> Fault | None:
        """The fault to inject, if any."""
        value = self.inject.value_written
        if value is None:
            return None
        return Fault(value=value, at=self.recipe.steps // 2 if self.at is None else self.at)


def spell(value: float) -> str:
    """Return a fault's value as people write it."""
    return "NaN" if math.isnan(value) else "Inf"


def claim_directory(out: Path) -> Path:
    """Make ``out`` and check that it can be written.

    Raises:
        ConfigError: It cannot.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            return out
    except OSError as error:
        raise ConfigError(
            f"out={str(out)!r} cannot be written ({error.strerror or error}): "
            "give a directory that this process may create and write"
        ) from error
