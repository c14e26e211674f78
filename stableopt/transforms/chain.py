"""Apply transforms in a step that is taken: on gradients before it, on weights after it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stableopt.errors import ConfigError
from stableopt.health.spectra.sensed import Sensed
from stableopt.health.spectra.sensing import Sensing
from stableopt.runtime.storage import has_data
from stableopt.sensors.gradients import measure_gradients
from stableopt.sensors.signals import signals_of
from stableopt.transforms.binding import Bound, Entry, bind, check_sharded
from stableopt.transforms.protocol import Change, Phase, Transform
from stableopt.transforms.site import Site
from stableopt.transforms.view import StepView
from stableopt.triggers.awaited import Awaited
from stableopt.types import Act, GradientNorms, Observation

logger = logging.getLogger("stableopt")

Measure: TypeAlias = Callable[[], GradientNorms | None]

QUIET = 100
"""Calls without acting after which a routine transform that acts again is logged again."""


class Transforming:
    """Applies transforms in their order, and records what they did.

    Args:
        optimizer: The inner optimizer.
        model: Gives names, layer types and layouts.
        sensing: Reads the metrics of triggers.
        agrees: Whether ranks agree on what transforms act on: only then may these gather weights.

    Attributes:
        reads: Whether a transform acts on the readings of sensors.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module | None,
        sensing: Sensing | None,
        *,
        agrees: bool = True,
    ) -> None:
        self._optimizer = optimizer
        self._model = model
        self._sensing = sensing
        self._agrees = agrees
        self._site = Site(optimizer, model)
        self._entries: list[Entry] = []
        self._bound: list[Bound] = []
        self._known = self._count()
        self._awaited = Awaited()
        self._peaks: dict[int, float] = {}
        self._fresh: dict[str, set[str]] = {}
        self._changes: dict[int, dict[str, Change]] = {}
        self._signals: Mapping[str, Any] = {}
        self._saved: set[frozenset[str]] = set()
        self._taken = False
        self._step = 0
        self._asks_lr = False
        self.reads = False

    def __bool__(self) -> bool:
        return bool(self._bound) or (self._site.lazy > 0 and bool(self._entries))

    def add(self, transforms: Sequence[Transform], group: int | None = None) -> None:
        """Add transforms, and have all of them find their parameters.

        Args:
            transforms: Act after those that are there.
            group: Number of the parameter group that they are for; ``None`` for all.

        Raises:
            ConfigError: One of them cannot work; nothing has changed then.
        """
        if transforms or self._count() != self._known:
            first = sum(entry.group == group for entry in self._entries)
            new = [Entry(item, first + i, group) for i, item in enumerate(transforms)]
            self._bind([*self._entries, *new])

    def _bind(self, entries: list[Entry]) -> None:
        site = Site(self._optimizer, self._model)
        bound = bind(site, entries, {} if self._sensing is None else self._sensing.measured())
        for item in bound:
            check_sharded(site, item, agrees=self._agrees)
        self._site, self._entries, self._bound = site, entries, bound
        self._known = self._count()
        for item in bound:
            item.entry.worked = True
        self.reads = any(item.sensed for item in bound)
        self._asks_lr = any(item.entry.transform.needs.lr for item in bound)
        self._awaited.expect(metric for item in bound for metric in item.observed)
        if self.reads and self._sensing is not None:
            self._sensing.acts = True

    # the order of a step

    def note(self, sensed: Sensed) -> None:
        """Note what the sensors have read; it is new until a step is taken."""
        if self.reads or self._site.lazy:
            for reading in sensed.readings:
                self._fresh.setdefault(reading.name, set()).add(reading.metric)

    def before_step(
        self, observation: Observation, step: int, measure: Measure | None = None
    ) -> None:
        """Copy the weights that are needed later, and change gradients.

        Args:
            observation: What is known about the step.
            step: Steps taken so far.
            measure: Measures changed gradients as all ranks see them; ``None`` where there is one.
        """
        if not self._entries:
            return
        self._step = step + 1
        self._signals = signals_of(observation)
        self._changes.clear()
        if self._has_other_parameters():
            self._bind(self._entries)
        for bound in self._bound:
            if bound.previous is not None:
                bound.previous.take([self._site.parameter(t) for t in bound.found.targets])
        self.change_gradients(observation, measure)

    def change_gradients(self, observation: Observation, measure: Measure | None = None) -> None:
        """Change gradients; a line search computes new ones many times in a step."""
        if self._bound:
            self._act(self._view(observation, 1.0, measure), Phase.GRADIENT)

    def after_step(
        self, observation: Observation, lr_scale: float, measure: Measure | None = None
    ) -> None:
        """Change weights.

        Args:
            observation: What was known about the step.
            lr_scale: The factor of ``lr_backoff`` on the learning rates of the step.
            measure: As for :meth:`before_step`.
        """
        if not self._entries:
            return
        for g, group in enumerate(self._site.groups if self._asks_lr else []):
            lr = group.get("lr")
            if lr is not None:
                size = abs(float(lr))
                self._peaks[g] = max(self._peaks.get(g, 0.0), size if math.isfinite(size) else 0.0)
        if self._bound:
            view = self._view(observation, lr_scale, measure)
            self._act(view, Phase.UPDATE)
            self._act(view, Phase.WEIGHT)
        if self._sensing is not None and self.reads:
            acted = (i for i in self._changes if self._bound[i].sensed)
            self._sensing.altered({name for i in acted for name in self._changes[i] if name})
        self._awaited.note(self._signals.keys())
        self._fresh, self._signals, self._taken = {}, {}, True

    def wants(self, signal: str) -> bool:
        """Return whether a trigger reads a signal."""
        return signal in self.signals

    @property
    def signals(self) -> frozenset[str]:
        """The names of the signals that triggers may read."""
        return frozenset(name for bound in self._bound for name in bound.observed)

    @property
    def largest(self) -> frozenset[str]:
        """The names of the signals whose largest value counts, of those of all ranks."""
        needs = (bound.entry.transform.needs for bound in self._bound)
        return frozenset(name for need in needs for name in need.signals)

    def _view(self, observation: Observation, lr_scale: float, measure: Measure | None) -> StepView:
        # The later evaluations of a line search do not observe every signal again.
        signals = {**self._signals, **signals_of(observation)}
        known = (self._site, self._sensing, observation.gradients, self._fresh, self._peaks)
        return StepView(self._step, signals, *known, lr_scale, measure or self._measure)

    def _measure(self) -> GradientNorms | None:
        return measure_gradients(self._optimizer.param_groups)[0]

    @torch.no_grad()
    def _act(self, view: StepView, phase: Phase) -> None:
        for i, bound in enumerate(self._bound):
            entry = bound.entry
            if entry.transform.phase is phase:
                view.turn_to(bound)
                changes = entry.transform.act(view, bound.found, entry.memory)
                view.put_back()
                if changes:
                    # Of the points that a line search tries, the last one counts.
                    self._changes.setdefault(i, {}).update({c.name: c for c in changes})
                    if phase is Phase.GRADIENT:
                        view.note_changed_gradients()

    def acts_of(self, call: int) -> tuple[Act, ...]:
        """Return what was done in this step; nothing if it was not taken.

        Args:
            call: Number of the call.
        """
        if not self._changes:
            self._taken = False
            return ()
        done, self._changes = (self._changes if self._taken else {}), {}
        self._taken = False
        acts = []
        for i, by_name in done.items():
            changes, entry = by_name.values(), self._bound[i].entry
            seen = entry.last is not None and call - entry.last <= QUIET
            entry.newest = act = Act(
                transform=entry.kind,
                metric=entry.transform.metric,
                where=tuple(change.name for change in changes if change.name),
                before=tuple(float(change.before) for change in changes),
                after=tuple(float(change.after) for change in changes),
                routine=entry.transform.routine,
                again=seen and entry.transform.routine,
            )
            entry.last = call
            entry.steps += 1
            entry.changes += len(changes)
            acts.append(act)
        return tuple(acts)

    def _count(self) -> tuple[int, int]:
        """Return how many parameters there are, and how many of them are trained."""
        every = [p for group in self._site.groups for p in group["params"]]
        return len(every), sum(p.requires_grad for p in every)

    def _has_other_parameters(self) -> bool:
        """Return whether parameters were added, removed, frozen, thawed or given a shape."""
        if self._count() != self._known:
            return True
        groups = self._site.groups if self._site.lazy else []
        lazy = sum(not has_data(p) for group in groups for p in group["params"])
        return lazy < self._site.lazy

    # rollbacks, checkpoints, summaries

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered, by the position and type of transforms.

        Raises:
            ConfigError: A transform remembers something else than plain data and tensors.
        """
        states = {entry.key: _copied(entry.key, entry.memory) for entry in self._entries}
        self._saved.add(frozenset(states))
        return {"peaks": {str(g): lr for g, lr in self._peaks.items()}, "states": states}

    def prepare(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Return what assigns ``state``; what it lacks starts again.

        Raises:
            AttributeError, TypeError, ValueError: :meth:`state_dict` has not made it.
        """
        peaks, memories = parse_state(state)

        def assign() -> None:
            # A snapshot of this run may lack the transforms of a group that was added later.
            if memories and frozenset(memories) not in self._saved:
                _warn_of_others({entry.key for entry in self._entries}, set(memories))
            self._peaks = peaks
            for entry in self._entries:
                entry.memory = memories.get(entry.key, {})
            self._fresh = {}

        return assign

    def summary(self) -> list[dict[str, Any]]:
        """Return every transform and what it has done, as plain values."""
        return [bound.summary() for bound in self._bound]


def _warn_of_others(here: set[str], there: set[str]) -> None:
    """Warn about transforms that are on one side only."""
    unused, new = ", ".join(sorted(there - here)), ", ".join(sorted(here - there))
    if unused or new:
        logger.warning(
            "the checkpoint was written with other transforms:%s%s give the same transforms= "
            "in the same order to continue with their state",
            f" its state of {unused} is not used;" if unused else "",
            f" it has no state of {new}, which starts empty;" if new else "",
        )


def parse_state(state: Mapping[str, Any]) -> tuple[dict[int, float], dict[str, dict[str, Any]]]:
    """Return what :meth:`Transforming.state_dict` has written: peaks by group, memory by key.

    Raises:
        AttributeError, TypeError, ValueError: It is something else.
    """
    peaks = {int(group): float(lr) for group, lr in state.get("peaks", {}).items()}
    for group, lr in peaks.items():
        if group < 0 or not lr >= 0:
            raise ValueError(f"peaks[{group}]={lr!r} must be at least 0")
    states = state.get("states", {})
    return peaks, {str(key): _copied(key, dict(held.items())) for key, held in states.items()}


def _copied(key: str, value: Any) -> Any:
    """Return a copy of plain data and tensors."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {name: _copied(key, item) for name, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_copied(key, item) for item in value)
    if value is None or isinstance(value, (bool, int, float, complex, str)):
        return value
    raise ConfigError(
        f"memory of {key} has {value!r:.80}: keep numbers, strings, lists, dicts and tensors only"
    )
