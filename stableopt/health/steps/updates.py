"""How far does a step move a weight: not at all, or further than the weight is long?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from stableopt.functional import tensor_norms
from stableopt.runtime.positions import parameter_at, positions
from stableopt.types import Finding, Scope
from stableopt.update.closures import requires_closure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor
    from torch.optim import Optimizer

    from stableopt.runtime.positions import Position

MOST = 1 << 16
"""Elements of a weight that are looked at."""

SHARE = 0.9
"""Of the elements with a gradient: if so many do not move, the weight does not."""

STILL = 3
"""Looks in a row at which a weight has not moved, after which it is told."""

LARGE = 1.0
"""Update-to-weight ratio below which an update is never large."""

FACTOR = 8.0
"""How many times as large as any before it a large update has to be."""

QUIET = 1_000
"""Calls after which a weight that does not move is told again, that one or another."""

COUNTS = 3
"""Looks at a weight from one count of the elements that moved to the next."""

KNOWN = 2
"""Looks at a weight after which its updates are judged."""


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
    old: Tensor
    unit: float
    first: int
    slope: Tensor | None
    asked: list[float | Tensor]


class UpdateWatch:
    """Looks at one matrix per step, before and after the inner update, in turn.

    The update-to-weight ratio ‖ΔW‖ / ‖W‖ is about 1e-3 in healthy training. Two things that it
    can be are told, and nothing is done about them unless somebody asks:

    - at three looks in a row nine in ten elements of a weight that have a gradient have not moved
      by a bit, though there is a learning rate: it is stuck, or too small for the dtype. Of many
      such weights the first is told, until one that is looked at moves;
    - an update was longer than the weight itself (or than one that keeps the size of its inputs,
      if that is longer), and eight times as long as any that was seen of it.

    Args:
        optimizer: The inner optimizer.

    Cost:
        A copy of, and two norms over, at most 65,536 elements per step; a count of those that moved
        in every third look at a weight, and two counts more after some did not.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._waiting: list[Position] = []
        self._courses: dict[Position, _Course] = {}
        self._look: _Look | None = None
        self._calls = 0
        self._quiet_until = 0
        # What searches along a line stands still where it has arrived.
        self._looks = not requires_closure(optimizer)

    def before(self) -> None:
        """Copy a part of the weight whose turn it is; the inner update comes next."""
        self._look, self._calls = None, self._calls + 1
        if not self._waiting and self._looks:
            known = positions(self._optimizer)
            self._waiting = [place for place, weight in known.items() if weight.dim() > 1][::-1]
        if not self._waiting:
            return
        place = self._waiting.pop()
        weight = parameter_at(self._optimizer, place)
        if weight is None or weight.grad is None or not _is_plain(weight, weight.grad):
            return
        course = self._courses.get(place)
        if course is None:
            course = self._courses[place] = _Course(since=self._calls)
        parts = weight.numel() // MOST
        first = MOST * (course.looks % parts) if parts > 1 else 0
        part = _part(weight, first)
        slope = _part(weight.grad, first) != 0 if course.rests else None
        rate = self._optimizer.param_groups[place.group].get("lr", math.nan)
        unit = math.sqrt(part.numel() * weight.shape[0] / weight.numel())
        self._look = _Look(place, part.clone(), unit, first, slope, [rate])

    def after(self) -> None:
        """Measure how far it was moved."""
        if self._look is None:
            return
        look = self._look
        weight = parameter_at(self._optimizer, look.place)
        part = None if weight is None else _part(weight, look.first)
        if part is None or part.shape != look.old.shape:
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
        """Return what the last look says.

        Args:
            numbers: Those of :meth:`start`.
            names: Returns those of the parameters.
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
        name = names()[look.place]
        message = (
            f"the last update of {name} was {ratio:.3g} times as long as the weight itself, "
            f"where {usual:.2g} was the longest so far"
        )
        return (
            Finding(
                kind="large_update",
                message=message,
                scope=Scope.NOTICE,
                value=ratio,
                where=(name,),
            ),
        )

    def forget(self) -> None:
        """Begin anew: other weights may stand in the same places."""
        self._look, self._waiting = None, []
        self._courses.clear()

    def restart(self) -> None:
        """Forget a look that was not judged: the weights have gone back."""
        self._look = None

    def __getstate__(self) -> dict[str, object]:
        """Give copies no look that is under way."""
        return {**self.__dict__, "_look": None}


def _part(tensor: Tensor, first: int) -> Tensor:
    """Return some elements, from ``first`` on; all of a small tensor."""
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
            f"nine in ten elements of {name} have not moved by a bit for some {count} steps, "
            f"though they have a gradient: its learning rate ({rate:.3g}) is too small for its "
            "values, or for their dtype; or it has converged"
        ),
        scope=Scope.NOTICE,
        where=(name,),
    )
