"""A full scan of weights, state and buffers, spread over a fixed number of steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from stableopt.health.describe import Label
from stableopt.health.tensors.inspection import Inspection, spans
from stableopt.runtime.family import loose_tensors, state_of
from stableopt.runtime.positions import Position, parameter_at, positions
from stableopt.runtime.shards import local

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch.optim import Optimizer

    from stableopt.health.tensors.inspector import Inspector
    from stableopt.snapshots.buffers import BufferShadow

_SMALLEST = 1 << 16
"""The least elements of a part, overhead included."""

_OVERHEAD = 1 << 12
"""The cost of starting the checks of one tensor, in elements that are read in that time."""


class RotatingScan:
    """Checks one part per step, and everything once per ``period``.

    Finds faults that loss and gradients do not show: in a row of an embedding that no batch uses,
    in a moment that is Inf, in running statistics that only evaluation reads.

    Args:
        optimizer: Of the weights and the state.
        inspector: The limits.
        period: Steps for everything.
        buffers: The model's buffers as of the last healthy step.

    Cost:
        One read of parameters and state, and a few elementwise operations on the moments, per
        ``period`` steps, in equal parts.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        inspector: Inspector,
        period: int,
        buffers: BufferShadow | None,
    ) -> None:
        self._optimizer = optimizer
        self._inspector = inspector
        self._period = period
        self._buffers = buffers
        self._parts: list[list[_Part]] = []

    def restart(self) -> None:
        """Start from scratch with the next step."""
        self._parts = []

    def next_part(self) -> Inspection | None:
        """Return the checks that are due now, if there are any."""
        begins = not self._parts
        if begins:
            self._parts = self._plan()
        part = self._parts.pop()
        if not part and not begins:
            return None
        inspection = Inspection(self._inspector)
        if begins:
            self._add_buffers(inspection)
        for place, span in part:
            if not isinstance(place, Position):
                found = loose_tensors(self._optimizer).get(place)
                if found is not None:
                    inspection.add(Label("state", place), found)
                continue
            parameter = parameter_at(self._optimizer, place)
            if parameter is None or (span is not None and local(parameter).numel() < span[1]):
                continue  # it was replaced, and is checked in the next round
            state = state_of(self._optimizer, parameter)
            inspection.add_part(place, local(parameter), state, span)
        return inspection

    def everything(self) -> Inspection:
        """Return the checks of everything."""
        inspection = self.parameters(list(positions(self._optimizer)))
        for name, tensor in loose_tensors(self._optimizer).items():
            inspection.add(Label("state", name), tensor)
        self._add_buffers(inspection)
        return inspection

    def parameters(self, places: Iterable[Position]) -> Inspection:
        """Return the checks of some parameters and their state."""
        inspection = Inspection(self._inspector)
        for place in places:
            parameter = parameter_at(self._optimizer, place)
            if parameter is not None:
                state = state_of(self._optimizer, parameter)
                value = local(parameter)
                for span in spans(value):
                    inspection.add_part(place, value, state, span)
        return inspection

    def _add_buffers(self, inspection: Inspection) -> None:
        if self._buffers is not None:
            for place, buffer in self._buffers.items():
                moves = self._buffers.moves(place)
                inspection.add(Label("buffer", place), buffer, moves=moves)

    def _plan(self) -> list[list[_Part]]:
        """Cut the parameters into as many parts of about equal cost as there are steps."""
        known = {place: local(p) for place, p in positions(self._optimizer).items()}
        total = sum(p.numel() + _OVERHEAD for p in known.values())
        quota = max(_SMALLEST, total / self._period)
        parts: list[list[_Part]] = [[] for _ in range(self._period)]
        spent = 0.0
        for place, parameter in known.items():
            for span in spans(parameter):
                count = parameter.numel() if span is None else span[1] - span[0]
                parts[min(int(spent / quota), self._period - 1)].append((place, span))
                spent += count + _OVERHEAD * count / max(1, parameter.numel())
        for i, name in enumerate(loose_tensors(self._optimizer)):
            parts[i % self._period].append((name, None))
        return parts


_Part: TypeAlias = "tuple[Position | str, tuple[int, int] | None]"
"""A parameter and some of its elements, or an attribute of the optimizer."""
