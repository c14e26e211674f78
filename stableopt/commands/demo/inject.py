"""Inject a fault into a run of the demo, and find what is left of it in the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

from stableopt.commands.demo.faults import EXPONENT, Fault, Inject, Stage
from stableopt.runtime.words import spell
from stableopt.testing import (
    Injection,
    corrupt_buffer,
    corrupt_moment,
    corrupt_weight,
    inject_gradient,
    poison_batch,
)

ABSURD = 1e18
"""Magnitude that no weight, moment or buffer of a sane run has."""


@dataclass(frozen=True)
class Injector:
    """Injects one fault; a training loop calls it at every stage of every step.

    Attributes:
        fault: What, and when; ``None`` for nothing at all.
        model: What is trained.
        optimizer: What trains it.
        seed: Decides which element is hit.
        report: Called with what was done, one sentence for each time.
    """

    fault: Fault | None
    model: nn.Module
    optimizer: Optimizer
    seed: int
    report: Callable[[str], None]

    def on_batch(self, step: int, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the batch of ``step``, or noise."""
        if not self._strikes(Stage.BATCH, step):
            return batch
        self.report(f"step {step}: noise in place of the batch")
        poisoned: tuple[Tensor, Tensor] = poison_batch(batch, seed=self.seed + step)
        return poisoned

    def on_gradients(self, step: int) -> None:
        """Corrupt a gradient of ``step``."""
        if self._strikes(Stage.GRADIENT, step):
            value = math.nan if self._injects(Inject.NAN_GRAD) else math.inf
            injection = inject_gradient(self.optimizer, value, model=self.model, seed=self.seed)
            self._note(f"step {step}", injection)

    def on_state(self, step: int) -> None:
        """Corrupt weights, optimizer state or buffers after ``step``."""
        if self._strikes(Stage.STATE, step):
            self._note(f"after step {step}", self._damage())

    def _injects(self, kind: Inject) -> bool:
        return self.fault is not None and self.fault.kind is kind

    def _strikes(self, stage: Stage, step: int) -> bool:
        if self.fault is None:
            return False
        does = self.fault.does
        return does.stage is stage and 0 <= step - self.fault.at < does.lasts

    def _note(self, when: str, injection: Injection) -> None:
        change = f"{injection.before:.3g} becomes {spell(injection.after, 3)}"
        self.report(f"{when}: {injection.target}[{injection.index}]: {change}")

    def _damage(self) -> Injection:
        optimizer, model, seed = self.optimizer, self.model, self.seed
        if self._injects(Inject.WEIGHTS):
            return corrupt_weight(optimizer, model=model, seed=seed)
        if self._injects(Inject.BIT_FLIP):
            # What a block adds to the residual stream is normalized after that: the loss
            # stays finite as well. (Near 1, where LayerNorm's are, the bit makes a NaN.)
            outputs = [n for n, _ in model.named_parameters() if n.endswith("output.weight")]
            name = outputs[seed % len(outputs)]
            return corrupt_weight(optimizer, bit=EXPONENT, model=model, name=name, seed=seed)
        if self._injects(Inject.MOMENTS):
            return corrupt_moment(optimizer, "exp_avg_sq", math.inf, model=model, seed=seed)
        return corrupt_buffer(model, seed=seed)


def scars(model: nn.Module, optimizer: Optimizer) -> tuple[str, ...]:
    """Return the names of weights, moments and buffers with a value no sane run has.

    Independent of the guard, to show whether the guard is right.
    """
    every = _all(model, optimizer)
    return tuple(name for name, found in every if not (found.detach().abs() < ABSURD).all())


def _all(model: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        yield name, parameter
        for key, value in optimizer.state.get(parameter, {}).items():
            yield f"{key} of {name}", value
    yield from model.named_buffers()
