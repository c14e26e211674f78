"""What a transform sees of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from stableopt.health.spectra.sensing import Sensing
from stableopt.transforms.binding import Bound
from stableopt.transforms.evidence import Known, part_about
from stableopt.transforms.protocol import Target
from stableopt.transforms.site import Site
from stableopt.transforms.wholes import Wholes
from stableopt.triggers.conditions import Evidence
from stableopt.types import GradientNorms


@dataclass
class StepView:
    """What a transform can read and change in a step.

    Attributes:
        step: Steps taken so far, this one included; restored by a rollback.
        signals: What was given to ``observe()`` for this step.
    """

    step: int
    signals: Mapping[str, Any]
    _site: Site
    _sensing: Sensing | None
    _gradients: GradientNorms | None
    _fresh: Mapping[str, set[str]]
    _peaks: Mapping[int, float]
    _lr_scale: float
    _measure: Callable[[], GradientNorms | None]
    _bound: Bound | None = None
    _changed: set[tuple[int, int]] = field(default_factory=set)
    _wholes: Wholes = field(default_factory=Wholes)

    def turn_to(self, bound: Bound) -> None:
        """Prepare for the transform that acts next."""
        self._bound = bound

    def put_back(self) -> None:
        """Write what the transform has changed of sharded weights."""
        self._wholes.put_back()

    def note_changed_gradients(self) -> None:
        """Have the gradients measured again for the transforms after the one that acted."""
        self._changed.update(target.place for target in self._targets)

    @property
    def _targets(self) -> Sequence[Target]:
        return () if self._bound is None else self._bound.found.targets

    @property
    def gradients(self) -> GradientNorms | None:
        """The norms of the gradients; ``None`` without gradients.

        Measured again where transforms before this one have changed its gradients.
        """
        if any(target.place in self._changed for target in self._targets):
            self._gradients = self._measure()
            self._changed.clear()
        return self._gradients

    def parameter(self, target: Target, *, whole: bool = True) -> Tensor:
        """Return the parameter; it may be written in place.

        Args:
            target: Which one.
            whole: Whether a sharded one is gathered from all ranks, as a plain tensor.
        """
        found = self._site.parameter(target)
        return self._wholes.of(found) if whole else found

    def named(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return parameters of the optimizer or the model by name, without names not found."""
        return {n: self._wholes.of(tensor) for n, tensor in self._site.named(names).items()}

    def gradient(self, target: Target) -> Tensor | None:
        """Return its gradient, if it has one; it may be written in place."""
        return self._wholes.of(self._site.parameter(target).grad)  # type: ignore[no-any-return]

    def previous(self) -> Sequence[Tensor]:
        """Return copies of the targets from before the step; they may be overwritten."""
        if self._bound is None or self._bound.previous is None:
            raise LookupError("needs.previous=False keeps no copies: declare Needs(previous=True)")
        return [self._wholes.of(copy) for copy in self._bound.previous.copies]

    def lr(self, target: Target) -> float | None:
        """Return the learning rate of the step; ``None`` if the optimizer has none."""
        lr = self._site.groups[target.place[0]].get("lr")
        return None if lr is None else float(lr) * self._lr_scale

    def peak_lr(self, target: Target) -> float | None:
        """Return the largest learning rate of its group so far, before any ``lr_backoff``."""
        return self._peaks.get(target.place[0])

    def evidence(self, target: Target) -> Evidence:
        """Return the readings and signals of a parameter."""
        health = None if self._sensing is None else self._sensing.weights.get(target.name)
        return Known(target.name, health, self.signals)

    def is_fresh(self, target: Target, metrics: Sequence[str]) -> bool:
        """Return whether any of ``metrics`` was read or observed since the last step taken."""
        news = self._fresh.get(target.name, ())
        return any(
            metric in news or part_about(self.signals.get(metric), target.name) is not None
            for metric in metrics
        )

    def once(self, key: str) -> bool:
        """Return whether the transform calls this with ``key`` for the first time."""
        known = set() if self._bound is None else self._bound.entry.warned
        is_first = key not in known
        known.add(key)
        return is_first
