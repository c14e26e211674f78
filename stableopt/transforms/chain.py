"""In a step that is taken: what changes gradients before it, and weights after it."""

from __future__ import annotations

import logging
import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from stableopt.runtime.storage import has_data
from stableopt.sensors.gradients import measure_gradients
from stableopt.sensors.signals import signals_of
from stableopt.transforms.binding import Bound, Field, Given, bind
from stableopt.transforms.evidence import Known, told_of
from stableopt.transforms.protocol import Phase
from stableopt.triggers.awaited import Awaited
from stableopt.types import Act

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from stableopt.health.spectra.sensed import Sensed
    from stableopt.health.spectra.sensing import Sensing
    from stableopt.transforms.protocol import Change, Target, Transform
    from stableopt.triggers.conditions import Evidence
    from stableopt.types import GradientNorms, Observation

logger = logging.getLogger("stableopt")

QUIET = 100
"""Calls without acting after which a routine transform that acts again is told anew."""


class Transforming:
    """Has transforms act in their order, and notes what they did.

    Args:
        optimizer: The inner optimizer.
        model: Gives names, layer types and layouts.
        sensing: Reads the metrics of triggers.

    Attributes:
        reads: Whether anything is done about the readings of sensors.
    """

    def __init__(
        self, optimizer: Optimizer, model: nn.Module | None, sensing: Sensing | None
    ) -> None:
        self._optimizer = optimizer
        self._model = model
        self._sensing = sensing
        self._given: list[Given] = []
        self._bound: list[Bound] = []
        self._lazy = 0
        self._known = (0, 0)
        self._found: set[int] = set()
        self._awaited = Awaited()
        self._peaks: dict[int, float] = {}
        self._fresh: dict[str, set[str]] = {}
        self._changes: dict[int, dict[str, Change]] = {}
        self._signals: Mapping[str, Any] = {}
        self._taken = False
        self._step = 0
        self._asks_lr = False
        self.reads = False

    def __bool__(self) -> bool:
        return bool(self._bound) or (self._lazy > 0 and bool(self._given))

    def add(self, transforms: Sequence[Transform], group: int | None = None) -> None:
        """Bind more transforms, and those that are there to what is new.

        Args:
            transforms: Act after those that are there.
            group: Number of the parameter group that they are for; ``None`` for all.

        Raises:
            ConfigError: One of them cannot work; nothing has changed then.
        """
        if transforms or self._count() != self._known:
            self._bind_all([*self._given, *(Given(item, group) for item in transforms)])

    def _bind_all(self, given: list[Given]) -> None:
        field = Field(self._optimizer, self._model)
        measured = {} if self._sensing is None else self._sensing.measured()
        bound = bind(field, given, measured, rested=self._found)
        state, fresh = self.state_dict(), self._fresh
        before = {id(item.given): item for item in self._bound}
        for item in bound:
            if id(item.given) in before:
                item.count_on(before[id(item.given)])
        self._given, self._bound, self._lazy = given, bound, field.lazy
        at_work = {id(item.given) for item in bound}
        self._found |= {i for i, item in enumerate(given) if id(item) in at_work}
        self._known = self._count()
        self.reads = any(item.sensed for item in bound)
        self._asks_lr = any(item.given.transform.needs.lr for item in bound)
        self._awaited.expect(metric for item in bound for metric in item.told)
        if self.reads and self._sensing is not None:
            self._sensing.acts = True
        self.load_state_dict(state)
        self._fresh = fresh

    # the order of a step

    def note(self, sensed: Sensed) -> None:
        """Hear what the sensors have read; it is news until a step is taken."""
        if self.reads or self._lazy:
            for reading in sensed.readings:
                self._fresh.setdefault(reading.name, set()).add(reading.metric)

    def before_step(self, observation: Observation, step: int) -> None:
        """Remember weights, and change gradients.

        Args:
            observation: What is known about the step.
            step: Updates behind the weights.
        """
        self._step = step + 1
        self._signals = signals_of(observation)
        self._changes.clear()
        if self._given and self._has_other_parameters():
            self._bind_all(self._given)
        for bound in self._bound:
            if bound.previous is not None:
                bound.previous.take([self._parameter(t) for t in bound.actuator.targets])
        self.change_gradients(observation)

    def change_gradients(self, observation: Observation) -> None:
        """Change gradients; a line search makes new ones many times in a step."""
        self._act(Phase.GRADIENT, _Now(self, observation, 1.0))

    def after_step(self, observation: Observation, lr_scale: float) -> None:
        """Change weights.

        Args:
            observation: What was known about the step.
            lr_scale: Our factor on the learning rates of the step.
        """
        for g, group in enumerate(self._optimizer.param_groups if self._asks_lr else []):
            lr = group.get("lr")
            if lr is not None:
                size = abs(float(lr))
                self._peaks[g] = max(self._peaks.get(g, 0.0), size if math.isfinite(size) else 0.0)
        now = _Now(self, observation, lr_scale)
        self._act(Phase.UPDATE, now)
        self._act(Phase.WEIGHT, now)
        if self._sensing is not None and self.reads:
            self._sensing.altered(self._corrected())
        self._awaited.note(self._signals.keys())
        self._fresh, self._signals, self._taken = {}, {}, True

    def wants(self, signal: str) -> bool:
        """Tell whether a trigger reads a signal."""
        return any(signal in bound.told for bound in self._bound)

    def _corrected(self) -> set[str]:
        """Return the names of the weights that were acted on upon readings."""
        acted = (i for i in self._changes if self._bound[i].sensed)
        return {name for i in acted for name in self._changes[i] if name}

    @torch.no_grad()
    def _act(self, phase: Phase, now: _Now) -> None:
        for i, bound in enumerate(self._bound):
            if bound.given.transform.phase is phase:
                now.bound = bound
                changes = bound.actuator.act(now)
                if changes:
                    # Of the many points that a line search tries, the last one counts.
                    self._changes.setdefault(i, {}).update({c.name: c for c in changes})
                    if phase is Phase.GRADIENT:
                        now.changed.update(target.place for target in bound.actuator.targets)

    def tell(self, call: int) -> tuple[Act, ...]:
        """Return what was done in this step; nothing if it was not taken in the end.

        Args:
            call: Number of the call.
        """
        done, self._changes = (self._changes if self._taken else {}), {}
        self._taken = False
        told = []
        for i, by_name in done.items():
            changes = by_name.values()
            bound = self._bound[i]
            transform = bound.given.transform
            seen = bound.last is not None and call - bound.last <= QUIET
            bound.newest = act = Act(
                transform=type(getattr(transform, "transform", transform)).__name__,
                metric=transform.metric,
                where=tuple(change.name for change in changes if change.name),
                before=tuple(float(change.before) for change in changes),
                after=tuple(float(change.after) for change in changes),
                routine=transform.routine,
                again=seen and transform.routine,
            )
            bound.last = call
            bound.steps += 1
            bound.changes += len(changes)
            told.append(act)
        return tuple(told)

    def _count(self) -> tuple[int, int]:
        """Return how many parameters there are, and how many of them are trained."""
        every = [p for group in self._optimizer.param_groups for p in group["params"]]
        return len(every), sum(p.requires_grad for p in every)

    def _has_other_parameters(self) -> bool:
        """Tell whether there are more or fewer than before, or shapes where there were none."""
        if self._count() != self._known:
            return True
        groups = self._optimizer.param_groups if self._lazy else []
        return sum(not has_data(p) for group in groups for p in group["params"]) < self._lazy

    def _parameter(self, target: Target) -> Tensor:
        group, index = target.place
        found: Tensor = self._optimizer.param_groups[group]["params"][index]
        return found

    # going back, checkpoints, summaries

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered, as plain data, by transform."""
        states = {bound.key: bound.actuator.state_dict() for bound in self._bound}
        return {
            "peaks": {str(group): lr for group, lr in self._peaks.items()},
            "states": {key: state for key, state in states.items() if state},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what a checkpoint or a snapshot remembers; what it lacks starts anew."""
        check_transforming(state)
        self._peaks = {int(group): float(lr) for group, lr in state.get("peaks", {}).items()}
        states = state.get("states", {})
        for bound in self._bound:
            bound.actuator.load_state_dict(states.get(bound.key, {}))
        self._fresh = {}

    def prepare(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Return what assigns ``state``."""
        check_transforming(state)
        return partial(self.load_state_dict, state)

    def summary(self) -> list[dict[str, Any]]:
        """Return what every transform is and has done, as plain values."""
        return [bound.summary() for bound in self._bound]


def check_transforming(state: Mapping[str, Any]) -> None:
    """Refuse what :meth:`Transforming.state_dict` has not made.

    Raises:
        AttributeError, TypeError, ValueError: It is something else.
    """
    for group, lr in state.get("peaks", {}).items():
        if int(group) < 0 or not float(lr) >= 0:
            raise ValueError(lr)
    for known in state.get("states", {}).values():
        known.items()


class _Now:
    """A moment in a step."""

    def __init__(
        self,
        whole: Transforming,
        observation: Observation,
        lr_scale: float,
    ) -> None:
        self._whole = whole
        self._lr_scale = lr_scale
        self._gradients = observation.gradients
        # A line search that evaluates the closure again does not tell everything again.
        self.signals = {**whole._signals, **signals_of(observation)}
        self.step = whole._step
        self.bound: Bound | None = None
        self.changed: set[tuple[int, int]] = set()

    @property
    def gradients(self) -> GradientNorms | None:
        """The norms; measured anew if transforms before this one have changed its gradients."""
        targets = () if self.bound is None else self.bound.actuator.targets
        if any(target.place in self.changed for target in targets):
            self._gradients, _ = measure_gradients(self._whole._optimizer.param_groups)
            self.changed.clear()
        return self._gradients

    def parameter(self, target: Target) -> Tensor:
        return self._whole._parameter(target)

    def gradient(self, target: Target) -> Tensor | None:
        return self.parameter(target).grad

    def previous(self) -> Sequence[Tensor]:
        if self.bound is None or self.bound.previous is None:
            raise LookupError("needs.previous is False: there is no copy")
        return self.bound.previous.copies

    def lr(self, target: Target) -> float | None:
        lr = self._whole._optimizer.param_groups[target.place[0]].get("lr")
        return None if lr is None else float(lr) * self._lr_scale

    def peak_lr(self, target: Target) -> float | None:
        return self._whole._peaks.get(target.place[0])

    def evidence(self, target: Target) -> Evidence:
        sensing = self._whole._sensing
        health = None if sensing is None else sensing.weights.get(target.name)
        return Known(target.name, health, self.signals)

    def is_fresh(self, target: Target, metrics: Sequence[str]) -> bool:
        news = self._whole._fresh.get(target.name, ())
        return any(
            metric in news or told_of(self.signals.get(metric), target.name) is not None
            for metric in metrics
        )
