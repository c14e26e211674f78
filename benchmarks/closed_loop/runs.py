"""One run of the closed-loop benchmark: train, drive, measure."""

from __future__ import annotations

import math
from time import perf_counter
from typing import Any

import torch

from benchmarks.closed_loop.rows import outcome
from benchmarks.closed_loop.scenarios import (
    ADAPTERS,
    BASE_ARMS,
    Arm,
    Scenario,
    remember_largest,
    spectra,
)
from benchmarks.closed_loop.tasks import (
    COURSE,
    QUICK,
    Course,
    adamw,
    adapted_gpt,
    loss_of,
    new_gpt,
    validate,
)
from stableopt import StableOptimizer
from stableopt.functional import condition_number
from stableopt.types import Event

Record = dict[str, Any]


def run(scenario: Scenario, arm: str, seed: int, *, quick: bool = False) -> Record:
    """Train once, and return what became of it as plain values.

    Args:
        scenario: What the run is driven into.
        arm: What is in the loop; one of its arms, ``"none"``, or ``"healthy"`` for no drive.
        seed: Of weights, batches, drive and sensors.
        quick: Whether to train the tiny model for some steps.

    Returns:
        ``val``; ``units``, of each what :func:`~benchmarks.closed_loop.rows.outcome` says;
        ``worst``, the metric of the worst of them as the forward pass of every step met it;
        ``spectra``, what each was when the drive ended.
    """
    begun = perf_counter()
    course = QUICK if quick else COURSE
    pick = max if scenario.is_upper else min
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loop = _Loop(scenario, arm, seed, course)
        loop.train()
    return {
        "scenario": scenario.name,
        "arm": arm,
        "seed": seed,
        "val": _plain(loop.validate()),
        "units": [outcome(scenario, loop.series[n], loop.acts.of(n), course) for n in loop.units],
        "spectra": loop.spectra,
        "worst": [_plain(pick(values)) for values in zip(*loop.series.values(), strict=True)],
        "seconds": round(perf_counter() - begun, 2),
    }


class Acts:
    """Remembers which parameter was acted upon in which update: a writer of telemetry."""

    def __init__(self) -> None:
        self.events: list[tuple[int, str]] = []

    def write(self, event: Event) -> None:
        """Note what was done."""
        self.events += [(event.step, name) for act in event.acts for name in act.where]

    def close(self) -> None:
        """Do nothing."""

    def of(self, name: str) -> list[int]:
        """Return the updates, from 1, in which a parameter was acted upon."""
        return sorted(step for step, acted in self.events if acted == name)


class _Loop:
    """A training loop with something in it that drives it."""

    def __init__(self, scenario: Scenario, arm: str, seed: int, course: Course) -> None:
        self.scenario, self.seed, self.course = scenario, seed, course
        self.arm: Arm = {**BASE_ARMS, **scenario.arms}[arm]
        self.is_driven = arm != "healthy"
        adapted = scenario.name == ADAPTERS
        self.model = (adapted_gpt if adapted else new_gpt)(course, seed)
        self._first_batch = course.pretrained if adapted else 0
        self.units = scenario.units(self.model)
        self.series: dict[str, list[float]] = {name: [] for name in self.units}
        self.spectra: dict[str, dict[str, float]] = {}
        self.acts = Acts()
        self.step = 0
        self._push: Any = None
        self.optimizer = self._wrapped()

    def _wrapped(self) -> torch.optim.Optimizer:
        inner = adamw(self.model)
        inner.register_step_post_hook(self._drive)
        if not self.arm.transforms:
            return inner
        return StableOptimizer(
            inner,
            model=self.model,
            transforms=self.arm.transforms,
            sensors=self.arm.sensors(self.seed),
            guard=False,
            telemetry=[self.acts],
        )

    def train(self) -> None:
        """Go through all steps."""
        if self.scenario.in_forward:
            self.model.watch(True)
            self.model.head.register_forward_hook(remember_largest)
        for step in range(self.course.steps):
            self.step = step
            self._train_one()
        if isinstance(self.optimizer, StableOptimizer):
            self.optimizer.close()

    def validate(self) -> float:
        """Return the validation loss."""
        return validate(self.model, self.course)

    def _train_one(self) -> None:
        lr = self.course.lr_at(self.step)
        if self.is_driven and self.course.drives(self.step):
            lr *= self.scenario.lr_factor
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if not self.scenario.in_forward:
            self._note()
        loss = loss_of(self.model, self.course, self._first_batch + self.step, self.seed)
        if self.scenario.in_forward:
            self._note()
        self.optimizer.zero_grad()
        loss.backward()
        if isinstance(self.optimizer, StableOptimizer):
            self.optimizer.observe(loss=loss, **self._signals())
        self.optimizer.step()

    @torch.no_grad()
    def _drive(self, *hooked: Any) -> None:
        """Change the weights, as a part of the update."""
        if self.scenario.drive is None or not self.is_driven:
            return
        if self._push is None and self.course.drives(self.step):
            named = dict(self.model.named_parameters())
            draw = torch.Generator().manual_seed(self.seed)
            self._push = self.scenario.drive([named[name].data for name in self.units], draw)
        if self.course.drives(self.step):
            for _ in range(self.course.haste):
                self._push()

    # measuring

    @torch.no_grad()
    def _note(self) -> None:
        """Note the metric as the forward pass of this step meets it."""
        seen = self.scenario.measure(self.model, self.units)
        for name in self.units:
            self.series[name].append(seen[name])
        if self.step == self.course.end and self.scenario.tells_spectra:
            named = dict(self.model.named_parameters())
            self.spectra = {name: _describe(name, named[name].detach()) for name in self.units}

    def _signals(self) -> dict[str, Any]:
        """Return what a training loop that measures would tell."""
        if not self.arm.observed or self.scenario.signal is None:
            return {}
        # Attention logits are told by block.
        told = {n.removesuffix(".qkv.weight"): values[-1] for n, values in self.series.items()}
        return {self.scenario.signal: told}


def _describe(name: str, weight: torch.Tensor) -> dict[str, float]:
    """Return what is to be said about a weight: its size, and its shape."""
    read = spectra(name, weight)
    values = {
        "norm": float(weight.norm()),
        "spectral_norm": float(torch.linalg.matrix_norm(weight, 2)),
        "condition_number": float(condition_number(weight)),
        **{metric: read[metric] for metric in ("relative_rank", "relative_fiedler", "redundancy")},
    }
    return {metric: _plain(value) for metric, value in values.items()}


def _plain(value: float) -> Any:
    """Return what JSON can hold, and ``float`` reads; four digits are enough."""
    return float(f"{value:.5g}") if math.isfinite(value) else "inf"
