"""The options of the demo, checked before anything trains."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from stableopt.commands.demo.faults import KINDS, Fault, Inject, Stage
from stableopt.commands.demo.model import ModelOptions
from stableopt.errors import ConfigError

DEFAULT_STEPS = 250
MIN_STEPS = 10
MAX_SEED = 2**32 - 1


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
                f"steps={self.steps} must be at least {MIN_STEPS}: a shorter run shows no curve"
            )
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"seed={self.seed} must be an int from 0 to {MAX_SEED}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """The command line of ``stableopt demo``.

    Attributes:
        recipe: How each run trains.
        inject: Which fault.
        at: In or after which step, from 1; if ``None`` half of the steps, or later for ``batch``.
        guard: Whether the guard is on; without it only the run without the guard is shown.
        out: Where telemetry and picture go.

    Raises:
        ConfigError: The options contradict one another, or ``at`` is no step of the run.
    """

    recipe: Recipe
    out: Path
    inject: Inject = Inject.WEIGHTS
    at: int | None = None
    guard: bool = True

    def __post_init__(self) -> None:
        steps = self.recipe.steps
        if self.inject is Inject.NONE and not self.guard:
            raise ConfigError(
                "inject=none with --no-guard has nothing to show: choose a fault, "
                "e.g. --inject weights, or leave the guard on"
            )
        if self.at is None:
            return
        if self.inject is Inject.NONE:
            raise ConfigError(
                f"at={self.at} must not be given with inject=none: leave it out, or choose a "
                "fault, e.g. --inject weights"
            )
        last = steps - (KINDS[self.inject].stage is Stage.STATE)
        if not 1 <= self.at <= last:
            why = ", which needs a step after it to show" if last < steps else ""
            raise ConfigError(
                f"at={self.at} must be a step from 1 to {last} (steps={steps}){why}: "
                "choose an earlier step for the fault, or train for more steps"
            )

    @property
    def fault(self) -> Fault | None:
        """The fault to inject, if any."""
        if self.inject is Inject.NONE:
            return None
        usual = int(KINDS[self.inject].place * self.recipe.steps)
        return Fault(kind=self.inject, at=usual if self.at is None else self.at)
