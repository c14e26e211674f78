"""All detectors together: from an observation to findings."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from stableopt.health.describe import Label, describe
from stableopt.health.steps.blame import Blame
from stableopt.health.steps.nonfinite import find_nonfinite
from stableopt.health.steps.spikes import SpikeDetector
from stableopt.health.steps.updates import UpdateWatch
from stableopt.health.tensors.frozen import FrozenWatch
from stableopt.health.tensors.inspection import Inspection
from stableopt.health.tensors.inspector import Inspector
from stableopt.health.tensors.laws import remembers
from stableopt.health.tensors.scan import RotatingScan
from stableopt.runtime.membership import Membership
from stableopt.runtime.names import parameter_names
from stableopt.runtime.scalars import read_scalars
from stableopt.types import Finding, Scope
from stableopt.update.closures import requires_closure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from stableopt.guard import Guard
    from stableopt.runtime.positions import Position
    from stableopt.snapshots.buffers import BufferShadow
    from stableopt.snapshots.tracked import Tracked
    from stableopt.types import Observation

logger = logging.getLogger("stableopt")

QUIET = 100
"""Calls after which a loss that is not finite, while all gradients are, is reported again."""


class Alone(NamedTuple):
    """What one rank sees of a step.

    Attributes:
        findings: Of a loss and gradients that are not finite.
        faulty: Whether the part of the state that was looked at has a fault.
        notices: Findings with which training can go on.
    """

    findings: tuple[Finding, ...] = ()
    faulty: bool = False
    notices: tuple[Finding, ...] = ()


class Judge:
    """Checks every step, and everything as soon as one fault is found.

    Args:
        optimizer: The inner optimizer.
        model: Has the names.
        buffers: The model's buffers as of the last healthy step, without the changes of the batch.
        guard: The limits.
        tracked: Objects that the user tracks; checked with everything else.

    Attributes:
        accepted: Whether the initial state was taken as intended; before that, a fault that only
            the scan finds is no finding.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module | None,
        buffers: BufferShadow | None,
        guard: Guard,
        tracked: Tracked,
    ) -> None:
        self._optimizer = optimizer
        self._model = model
        self._buffers = buffers
        self._tracked = tracked
        self._inspector = Inspector(
            optimizer, guard.max_weight, guard.weight_jump, guard.moment_drop
        )
        self._scan = RotatingScan(optimizer, self._inspector, guard.scan_period, buffers)
        self._part: Inspection | None = None
        self.accepted = False
        self.spikes = SpikeDetector(guard.loss_spike, guard.gradient_spike)
        self._blame = Blame()
        self._frozen = FrozenWatch(optimizer, model, guard.scan_period)
        self.updates = UpdateWatch(optimizer)
        self._members = Membership(optimizer)
        self._counts = [0, 0, 0]
        self._guard = guard
        self._calls = self._loads = 0
        self._reported_at: int | None = None
        # A line search uses the loss, too.
        self._loss_decides = requires_closure(optimizer)

    def start(self) -> list[float | Tensor]:
        """Return the numbers that :meth:`findings` needs, beside the observation."""
        self._inspector.moments.call += 1
        self._calls += 1
        loads = 0 if self._buffers is None else self._buffers.loads
        if loads != self._loads:  # load_state_dict has replaced weights: forget their past
            self._loads = loads
            self._inspector.history.forget()
            self._frozen.forget()
            self.updates.forget()
        self._part = self._scan.next_part()
        asked: list[Sequence[float | Tensor]] = [
            () if self._part is None else self._part.start(),
            self._frozen.start(),
            self.updates.start(),
        ]
        self._counts = [len(numbers) for numbers in asked]
        return [number for numbers in asked for number in numbers]

    def alone(self, observation: Observation, numbers: Sequence[float]) -> Alone:
        """Return what this rank sees of a step by itself.

        Args:
            observation: Its loss and gradients.
            numbers: The values of what :meth:`start` returned.
        """
        scanned, frozen, _ = self._counts
        found = self.nonfinite(observation)
        if not any(finding.scope is Scope.BATCH for finding in found):
            found = self._symptom(found)
        faulty = self._part is not None and self._part.faults(numbers[:scanned]) and self.accepted
        notices = self._frozen.findings(numbers[scanned : scanned + frozen])
        notices += self.updates.findings(numbers[scanned + frozen :], self._parameter_names)
        return Alone(found, bool(faulty), notices)

    def unusual(self, observation: Observation) -> tuple[Finding, ...]:
        """Return how a step differs from those before it, given what all ranks observed."""
        return self._spikes(observation) or self._first(observation)

    def learn_part(self, numbers: Sequence[float]) -> None:
        """Remember the norms of the part that was due, in which no fault was found.

        Args:
            numbers: The values of what :meth:`start` returned.
        """
        if self._part is not None:
            self._part.learn(numbers[: self._counts[0]])

    def _symptom(self, found: tuple[Finding, ...]) -> tuple[Finding, ...]:
        """Return a loss that is not finite, though gradients are, unless it was reported lately."""
        for finding in found:
            if self._buffers is not None and self._buffers.spoilt():
                message = f"{finding.message}, but the batch has made buffers not finite"
                return (replace(finding, message=message, scope=Scope.BATCH, response="skip"),)
            before, warns = self._reported_at, self._guard.response_to(finding).value == "warn"
            if warns and before is not None and self._calls < before + QUIET:
                return ()
            self._reported_at = self._calls
        return found

    def _first(self, observation: Observation) -> tuple[Finding, ...]:
        """Return a finding if the first gradient was far too large and moments remember it."""
        found = self.spikes.first_was_out(observation)
        return (found,) if found and remembers(self._optimizer) else ()

    def learn(self, observation: Observation) -> None:
        """Remember an observation without findings."""
        self.spikes.learn(observation)
        self._blame.learn(observation.gradients)

    def _spikes(self, observation: Observation) -> tuple[Finding, ...]:
        found, gradients = self.spikes.judge(observation), observation.gradients
        together = any(finding.kind == "gradient_spike" for finding in found)
        groups = {} if together else self.spikes.judge_groups(observation)
        if not found and not groups:
            return ()
        names = self._parameter_names()
        if gradients is None:
            return found
        if together:
            return self._blame.name(found, gradients, names)
        for number, finding in groups.items():
            found += self._blame.name((finding,), gradients.of_group(number), names)
        return found

    def nonfinite(self, observation: Observation) -> tuple[Finding, ...]:
        """Return findings about a loss and gradients that are not finite."""
        if is_finite(observation):
            return ()
        found = find_nonfinite(observation, self._parameter_names())
        if self._loss_decides:
            found = tuple(replace(f, scope=Scope.BATCH, response="skip") for f in found)
        return found

    def damage(self) -> tuple[Finding, ...]:
        """Check all weights, state and buffers; return the findings."""
        faults = self._faults(self._everything())
        return describe(faults, self._names()) if faults else ()

    def has_same_parameters(self) -> bool:
        """Return whether the optimizer still has the same parameters."""
        return self._members.is_same()

    def meet(self) -> set[Position]:
        """Check new parameters, and follow all others to their new places.

        A new weight that is not finite is taken as intended; its state is not.

        Returns:
            The places of new parameters whose state has a fault.
        """
        moved, new = self._members.update()
        if not self.accepted:
            return set()
        self._inspector.move(moved)
        self._blame.move(moved)
        self.updates.forget()
        if any(place.group != now.group for place, now in moved.items()):
            self.spikes.forget_groups()
        arrived = self._scan.parameters(new)
        faults = self._faults(arrived)
        masks = [(kind, label) for kind, label in faults if label.kind == "weight"]
        if masks:
            self._inspector.accept(label for _, label in masks)
            self._warn(masks, "with parameters that were added")
        spoilt = {label.owner for _, label in faults if label.kind == "state"}
        return {place for place in new if place in spoilt}

    def _warn(self, faults: list[tuple[str, Label]], when: str) -> None:
        logger.warning(
            "%s %s: taken as intended, and not checked from now on",
            when,
            "; ".join(finding.message for finding in describe(faults, self._names())),
        )

    def accept(self) -> None:
        """Take the current state as intended: training starts with it."""
        self.accepted = True
        self._members.update()
        self._inspector.forget()
        self._frozen.forget()
        self._scan.restart()
        self.updates.forget()
        everything = self._everything()
        numbers = read_scalars(everything.start())
        faults = everything.faults(numbers)
        everything.learn(numbers)
        if faults:
            self._inspector.accept(label for _, label in faults)
            self._warn(faults, "before the first step")

    def accept_state(self) -> None:
        """Take the current state of an optimizer that is not torch's as intended."""
        if not self._inspector.laws.of_torch:
            faults = self._faults(self._scan.everything())
            self._inspector.accept(label for _, label in faults if label.kind == "state")

    def restart(self) -> None:
        """Start the scan again: weights and state were restored."""
        self._scan.restart()
        self._inspector.moments.forget()
        self.updates.restart()

    def forget(self) -> None:
        """Accept the state at the next step: a checkpoint was loaded."""
        self._scan.restart()
        self.accepted = False

    def _everything(self) -> Inspection:
        inspection = self._scan.everything()
        for name, tensor in self._tracked.tensors():
            inspection.add(Label("tracked", name), tensor)
        for name, tensor in self._frozen.beside():
            inspection.add(Label("frozen", name), tensor)
        return inspection

    def _faults(self, inspection: Inspection) -> list[tuple[str, Label]]:
        return inspection.faults(read_scalars(inspection.start()))

    def _parameter_names(self) -> Mapping[tuple[int, int], str]:
        return parameter_names(self._optimizer, self._model)

    def _names(self) -> Any:
        parameters: Mapping[Any, str] = self._parameter_names()
        buffers: Mapping[Any, str] = {} if self._buffers is None else self._buffers.names()

        def name(label: Label) -> str:
            known = buffers if label.kind == "buffer" else parameters
            return known.get(label.owner, str(label.owner))

        return name


def is_finite(observation: Observation) -> bool:
    """Return whether loss and gradients are finite, as far as they were observed."""
    loss, gradients = observation.loss, observation.gradients
    return (loss is None or math.isfinite(loss)) and not (gradients and gradients.nonfinite)
