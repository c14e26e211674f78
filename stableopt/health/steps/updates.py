"""Updates that do not change a weight, or are longer than the weight itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from stableopt.functional import tensor_norms
from stableopt.runtime.positions import parameter_at, positions
from stableopt.runtime.shards import local
from stableopt.types import Finding, Scope
from stableopt.update.closures import requires_closure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor
    from torch.optim import Optimizer

    from stableopt.runtime.positions import Position

MOST = 1 << 16
"""Elements of a weight that are measured in one step."""

SHARE = 0.9
"""Share of the elements with a gradient that must be unchanged for a stalled weight."""

STILL = 3
"""Measurements in a row without a change, after which a weight is reported."""

LARGE = 1.0
"""Update-to-weight ratio below which an update is never large."""

FACTOR = 8.0
"""Times as large as any update before it, for a large update."""

QUIET = 1_000
"""Calls after which a stalled weight is reported again, that one or another."""

COUNTS = 3
"""Measurements of a weight from one count of changed elements to the next."""

KNOWN = 2
"""Measurements of a weight before its updates are judged."""


@dataclass(slots=True)
class _Course:
    looks: int = 0
    largest: float = 0.0
    still: int = 0
    since: int = 0
    rests: bool = False


@dataclass(slots=True)
class _Look:
    place: Position
    weight: Tensor
    old: Tensor
    unit: float
    first: int
    slope: Tensor | None
    asked: list[float | Tensor]


class UpdateWatch:
    """Measures the update of one matrix per step, each in its turn.

    The update-to-weight ratio ‖ΔW‖ / ‖W‖ is about 1e-3 in healthy training. Two cases are
    reported, and by default only logged:

    - in three measurements in a row nine in ten elements of a weight that have a gradient have not
      changed by a bit, though the learning rate is not zero: it is too small, e.g. for the dtype.
      Of several such weights the first is reported, until a measured one changes;
    - an update was longer than the weight itself (or than one that keeps the size of its inputs,
      if that is longer), and eight times as long as any measured before.

    Args:
        optimizer: The inner optimizer.

    Cost:
        A copy of, and two norms over, at most 65,536 elements per step; a count of changed elements
        in every third measurement of a weight, and two more counts after some had not changed.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._waiting: list[Position] = []
        self._courses: dict[Position, _Course] = {}
        self._look: _Look | None = None
        self._calls = 0
        self._quiet_until = 0
        # A line search does not change weights that have converged.
        self._looks = not requires_closure(optimizer)

    def before(self) -> None:
        """Copy a part of the next weight, before the inner update."""
        self._look, self._calls = None, self._calls + 1
        if not self._waiting and self._looks:
            known = positions(self._optimizer)
            self._waiting = [place for place, weight in known.items() if weight.dim() > 1][::-1]
        if not self._waiting:
            return
        place = self._waiting.pop()
        parameter = parameter_at(self._optimizer, place)
        if parameter is None or parameter.grad is None:
            return
        weight, gradient = local(parameter), local(parameter.grad)
        if not _is_plain(weight, gradient):
            return
        course = self._courses.get(place)
        if course is None:
            course = self._courses[place] = _Course(since=self._calls)
        parts = weight.numel() // MOST
        first = MOST * (course.looks % parts) if parts > 1 else 0
        part = _part(weight, first)
        slope = _part(gradient, first) != 0 if course.rests else None
        rate = self._optimizer.param_groups[place.group].get("lr", math.nan)
        unit = math.sqrt(part.numel() * weight.shape[0] / weight.numel())
        self._look = _Look(place, weight, part.clone(), unit, first, slope, [rate])

    def after(self) -> None:
        """Measure its update."""
        if self._look is None:
            return
        look = self._look
        part = _part(look.weight, look.first)
        if part.shape != look.old.shape:
            self._look = None
            return
        moved = part - look.old
        look.asked += tensor_norms([moved, look.old])
        if look.slope is not None:
            look.asked += [look.slope.sum(), (look.slope & (moved == 0)).sum()]
        elif self._courses[look.place].looks % COUNTS == 0:
            look.asked.append(torch.count_nonzero(moved))

    def start(self) -> list[float | Tensor]:
        """Return the numbers that :meth:`findings` needs read."""
        return [] if self._look is None else self._look.asked

    def findings(
        self, numbers: Sequence[float], names: Callable[[], Mapping[tuple[int, int], str]]
    ) -> tuple[Finding, ...]:
        """Return the findings of the last measurement.

        Args:
            numbers: The values of what :meth:`start` returned.
            names: Returns the names of the parameters.
        """
        look, self._look = self._look, None
        if look is None or len(numbers) < 3:
            return ()
        rate, moved, size, *counts = numbers
        course = self._courses[look.place]
        course.looks += 1
        if not all(map(math.isfinite, (moved, size))) or size == 0:
            return ()
        still = False
        if len(counts) == 1:
            course.rests = counts[0] < look.old.numel()
        elif counts:
            sloped, unmoved = counts
            still = rate > 0 and sloped > 0 and unmoved >= SHARE * sloped
            course.rests = unmoved > 0
        course.still = course.still + 1 if still else 0
        if course.still == 0:
            course.since = self._calls
        if course.still == STILL and self._calls >= self._quiet_until:
            self._quiet_until, count = self._calls + QUIET, self._calls - course.since
            return (_stalled(names()[look.place], count, rate),)
        ratio, usual = moved / max(size, look.unit), course.largest
        course.largest = max(usual, ratio)
        if course.looks <= KNOWN or ratio <= max(LARGE, FACTOR * usual):
            return ()
        where = (names()[look.place],)
        message = (
            f"the last update of {where[0]} was {ratio:.3g} times as long as the weight itself, "
            f"where {usual:.2g} was the longest so far"
        )
        kind, scope = "large_update", Scope.NOTICE
        return (Finding(kind=kind, message=message, scope=scope, value=ratio, where=where),)

    def forget(self) -> None:
        """Start from scratch: there may be other weights in the same places."""
        self._look, self._waiting = None, []
        self._courses.clear()

    def restart(self) -> None:
        """Drop a measurement that was not judged: the weights were restored."""
        self._look = None

    def __getstate__(self) -> dict[str, object]:
        """Give copies no measurement in progress."""
        return {**self.__dict__, "_look": None}


def _part(tensor: Tensor, first: int) -> Tensor:
    """Return ``MOST`` elements from ``first`` on; all elements of a small tensor."""
    if tensor.numel() <= MOST:
        return tensor.detach()
    return tensor.detach().reshape(-1)[first : first + MOST]


def _is_plain(weight: Tensor, gradient: Tensor) -> bool:
    plain = type(weight) in (torch.Tensor, torch.nn.Parameter)
    dense = gradient.layout is torch.strided and weight.is_contiguous()
    return plain and dense and weight.numel() > 0 and not weight.is_complex()


def _stalled(name: str, count: int, rate: float) -> Finding:
    return Finding(
        kind="stalled_weight",
        message=(
            f"nine in ten elements of {name} have not changed by a bit for some {count} steps, "
            f"though they have a gradient: its learning rate ({rate:.3g}) is too small for its "
            "values or their dtype, or it has converged"
        ),
        scope=Scope.NOTICE,
        where=(name,),
    )
