"""A full scan of weights, state and buffers, spread over a fixed number of steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from stableopt.health.inspection import Inspection, spans
from stableopt.runtime.state_copy import parameter_at, positions

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from torch import Tensor
    from torch.optim import Optimizer

    from stableopt.health.inspector import Inspector
    from stableopt.runtime.state_copy import Position

_OVERHEAD = 1 << 12
"""What starting the checks of one part costs, in elements that are read in the same time."""


class RotatingScan:
    """Looks at one part per step, and at everything once per ``period``.

    Finds faults that nothing else shows: in a row of an embedding that no batch touches, in
    a moment that is Inf, in running statistics that only evaluation reads.

    Args:
        optimizer: Whose weights and state.
        inspector: What is allowed in them.
        period: Steps for everything.
        buffers: Returns the model's buffers and what they are known by.

    Cost:
        One read of parameters and state (and what a few elementwise operations on the
        moments take) per ``period`` steps, in equal parts.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        inspector: Inspector,
        period: int,
        buffers: Callable[[], Iterable[tuple[Hashable, Tensor]]],
    ) -> None:
        self._optimizer = optimizer
        self._inspector = inspector
        self._period = period
        self._buffers = buffers
        self._parts: list[list[_Part]] = []

    def restart(self) -> None:
        """Begin anew with the next step."""
        self._parts = []

    def next_part(self) -> Inspection:
        """Return the checks that are due now."""
        inspection = Inspection(self._inspector)
        if not self._parts:
            self._parts = self._plan()
            for owner, buffer in self._buffers():
                inspection.add_buffer(owner, buffer)
        state = self._optimizer.state
        for place, span in self._parts.pop():
            parameter = parameter_at(self._optimizer, place)
            if parameter is None or (span is not None and parameter.numel() < span[1]):
                continue  # it is another one now, and looked at in the next round
            inspection.add_part(place, parameter, state.get(parameter, {}), span)
        return inspection

    def everything(self) -> Inspection:
        """Return the checks of all there is."""
        inspection = Inspection(self._inspector)
        for place, parameter in positions(self._optimizer).items():
            inspection.add_parameter(place, parameter, self._optimizer.state.get(parameter, {}))
        for owner, buffer in self._buffers():
            inspection.add_buffer(owner, buffer)
        return inspection

    def _plan(self) -> list[list[_Part]]:
        """Cut the parameters into as many parts of about equal cost as there are steps."""
        known = positions(self._optimizer)
        total = sum(p.numel() + _OVERHEAD for p in known.values())
        quota = max(1, total / self._period)
        parts: list[list[_Part]] = [[] for _ in range(self._period)]
        spent = 0.0
        for place, parameter in known.items():
            for span in spans(parameter):
                count = parameter.numel() if span is None else span[1] - span[0]
                parts[min(int(spent / quota), self._period - 1)].append((place, span))
                spent += count + _OVERHEAD * count / max(1, parameter.numel())
        return parts


_Part: TypeAlias = "tuple[Position, tuple[int, int] | None]"
