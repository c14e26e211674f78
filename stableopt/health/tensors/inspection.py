"""Faults in weights, state and buffers: NaN, Inf, huge values, impossible moments."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

from stableopt.functional import all_finite, dense_values, tensor_norms
from stableopt.health.describe import Label
from stableopt.health.tensors.laws import FIRST, SECOND
from stableopt.runtime.magnitudes import largest, unmasked
from stableopt.runtime.shards import local

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from stableopt.health.tensors.inspector import Inspector
    from stableopt.runtime.positions import Position

_BATCH = 1 << 18
"""Elements that are checked together: 1 MiB of float32 fits into a cache."""

_Part: TypeAlias = "tuple[Position, tuple[int, int] | None]"
_Moment: TypeAlias = "tuple[Label, tuple[int, int] | None]"
_Bound: TypeAlias = "tuple[Label, Tensor, Tensor, float, float]"


@dataclass(slots=True)
class Inspection:
    """Checks on some tensors: started together, read in one transfer, then judged.

    Each is screened by one scalar, mostly the 2-norm: it is NaN or Inf exactly if a value is, or
    if the square of one overflows. A suspicious tensor is checked element by element before it is
    reported.

    Args:
        inspector: The limits.
    """

    inspector: Inspector
    _norms: list[tuple[Label, Tensor, float]] = field(default_factory=list)
    _parts: dict[int, tuple[_Part, float]] = field(default_factory=dict)
    _moments: dict[int, tuple[_Moment, float, Tensor, Mapping[str, Any]]] = field(
        default_factory=dict
    )
    _floors: list[tuple[Label, Tensor]] = field(default_factory=list)
    _bounds: list[_Bound] = field(default_factory=list)
    _known_bounds: dict[tuple[int, torch.dtype], tuple[float, float] | None] = field(
        default_factory=dict
    )
    _tables: set[Label] = field(default_factory=set)

    def add_part(
        self,
        place: Position,
        value: Tensor,
        state: Mapping[str, Any],
        span: tuple[int, int] | None,
    ) -> None:
        """Check some elements of a parameter, and the state that belongs to them.

        Args:
            place: Its place in the optimizer.
            value: Its values, or this rank's part of them.
            state: Its entry in the optimizer's state; tensors of another shape are checked
                with the first elements.
            span: The range of the elements, from :func:`spans`.
        """
        if value.is_floating_point() or value.is_complex():
            part, limit = _part(value.detach(), span), self.inspector.max_weight(value)
            if self._add_norm(Label("weight", place), part, limit):
                unit = math.sqrt(self._norms[-1][1].numel() / _inputs(value))
                self._parts[len(self._norms) - 1] = (place, span), unit
        if isinstance(state, dict):
            for key, tensor in floating_tensors(state):
                alike = span is not None and tensor.shape == value.shape
                whole = not (alike and tensor.is_contiguous())
                if whole and span is not None and span[0] != 0:
                    continue
                label = Label("state", place, key)
                known = self._add_state(label, tensor if whole else _part(tensor, span))
                decay = self.inspector.laws.decay(place.group, key)
                if decay is not None and known:
                    moment = (label, None if whole else span)
                    self._moments[len(self._norms) - 1] = (moment, decay, state[key], state)
            self._add_bound(place, value, state, span)

    def add(self, label: Label, value: Tensor, *, moves: bool = True) -> None:
        """Check a tensor that is neither a parameter nor its state.

        Args:
            label: Of a buffer or a tracked tensor; or of a frozen weight or an attribute of the
                optimizer, which may have any finite values.
            value: Its values.
            moves: Whether forward passes change it. Otherwise it may be a mask with infinities.
        """
        if value.is_floating_point() or value.is_complex():
            bounded = label.kind in ("buffer", "tracked")
            self._add_norm(label, value.detach(), largest(value.dtype) if bounded else math.inf)
        if not moves:
            self._tables.add(label)

    def _add_state(self, label: Label, tensor: Tensor) -> bool:
        second = label.key in self.inspector.laws.nonnegative
        # Sums of squares grow without bound: they only have to be finite.
        known = self._add_norm(label, tensor, math.inf if second else largest(tensor.dtype))
        # Where there is a bound on the first moment, it fails for a negative second one.
        bounded = self.inspector.laws.has_bound and label.key == SECOND
        if second and not bounded and known and not tensor.is_complex():
            self._floors.append((label, tensor))
        return known

    def _add_norm(self, label: Label, tensor: Tensor, limit: float) -> bool:
        """Return whether the norm is checked: an empty or exempt tensor has none."""
        if not tensor.numel() or label in self.inspector.exempt:
            return False
        values = dense_values(tensor)
        if values.is_floating_point() and values.itemsize < 2:
            values = values.float()  # torch computes no norms in eight bits
        self._norms.append((label, values, limit))
        return True

    def _add_bound(
        self,
        place: Position,
        value: Tensor,
        state: Mapping[str, Any],
        span: tuple[int, int] | None,
    ) -> None:
        first, second = map(local, (state.get(FIRST), state.get(SECOND)))
        if type(first) is not Tensor or type(second) is not Tensor or not first.numel():
            return
        if first.shape != second.shape or not second.dtype.is_floating_point | second.is_complex():
            return
        known = place.group, second.dtype
        if known not in self._known_bounds:
            laws = self.inspector.laws
            self._known_bounds[known] = laws.bound(*known) if self.inspector.bounds else None
        bound = self._known_bounds[known]
        if bound is None:
            return
        whole = first.shape != value.shape or not (first.is_contiguous() and second.is_contiguous())
        if whole and span is not None:
            if span[0] != 0:
                return
            span = None
        label = Label("state", place, FIRST)
        if label not in self.inspector.exempt:
            self._bounds.append((label, _part(first, span), _part(second, span), *bound))

    # the screen

    def start(self) -> list[Tensor]:
        """Return the scalars that show whether anything is suspicious; no synchronisation."""
        norms = tensor_norms([tensor for _, tensor, _ in self._norms]) if self._norms else []
        floors = [tensor.amin() for _, tensor in self._floors]
        return [*norms, *floors, *self._excesses()]

    def _excesses(self) -> list[Tensor]:
        """Return the largest of m² - c² v for every pair of moments."""
        excesses: list[Tensor] = []
        for batch in _batches(self._bounds):
            firsts = [_widened(first) for _, first, _, _, _ in batch]
            seconds = [_widened(second) for _, _, second, _, _ in batch]
            allowed = torch._foreach_mul(seconds, [-c2 for _, _, _, c2, _ in batch])
            torch._foreach_addcmul_(allowed, firsts, firsts)
            excesses += torch._foreach_max(allowed)
        return excesses

    def faults(self, values: Sequence[float]) -> list[tuple[str, Label]]:
        """Return kind and place of every fault, given the numbers of :meth:`start`."""
        numbers = iter(values)
        faults: list[tuple[str, Label]] = []
        for i, (label, tensor, limit) in enumerate(self._norms):
            norm = next(numbers)
            suspicious = not math.isfinite(norm) or norm > limit
            fault = None
            if suspicious:
                fault = _look_closely(unmasked(tensor) if label in self._tables else tensor, limit)
            fault = self.inspector.unless_initial(label, fault)
            if fault is None and math.isfinite(norm):
                fault = self._against_history(i, norm)
            if fault and (f"{fault}_{label.kind}", label) not in faults:
                faults.append((f"{fault}_{label.kind}", label))
        faults += [("negative_moment", label) for label, _ in self._floors if next(numbers) < 0]
        for label, _, second, _, smallest in self._bounds:
            # A NaN fails this comparison, and is reported already.
            if next(numbers) > smallest and ("nonfinite_state", label) not in faults:
                faults += _which_moment(label, second)
        return faults

    def _against_history(self, i: int, norm: float) -> str | None:
        """Return the fault in a norm, given its past."""
        inspector = self.inspector
        if i in self._parts and inspector.history.has_jumped(
            self._parts[i][0], norm, self._parts[i][1]
        ):
            return "jumped"
        if i in self._moments:
            part, decay, holder, state = self._moments[i]
            moments = inspector.moments
            if moments.has_vanished(part, norm, decay, holder) and not moments.restarted(
                part, state
            ):
                return "vanished"
        return None

    def learn(self, values: Sequence[float]) -> None:
        """Remember the norms of :meth:`start`, in which no fault was found."""
        for i, (moment, _, holder, _) in self._moments.items():
            self.inspector.moments.learn(moment, values[i], holder)
        for i, (part, _) in self._parts.items():
            self.inspector.history.learn(part, values[i])


def _inputs(weight: Tensor) -> int:
    """Return the fan-in of a matrix or a convolution, and the size of anything else."""
    return weight.numel() // weight.shape[0] if weight.dim() > 1 else weight.numel()


def spans(parameter: Tensor) -> Iterator[tuple[int, int] | None]:
    """Yield ranges of elements that are checked together; ``None`` for all elements."""
    if parameter.numel() <= _BATCH or not parameter.is_contiguous():
        yield None
        return
    for start in range(0, parameter.numel(), _BATCH):
        yield start, min(start + _BATCH, parameter.numel())


def _batches(bounds: list[_Bound]) -> Iterator[list[_Bound]]:
    """Yield pairs of moments in batches whose temporary copies fit into a cache."""
    batch: list[_Bound] = []
    size = 0
    for bound in bounds:
        if batch and size + bound[1].numel() > _BATCH:
            yield batch
            batch, size = [], 0
        batch.append(bound)
        size += bound[1].numel()
    if batch:
        yield batch


def _part(tensor: Tensor, span: tuple[int, int] | None) -> Tensor:
    return tensor if span is None else tensor.view(-1)[span[0] : span[1]]


def floating_tensors(state: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield every plain floating tensor in a nested state, with its path."""
    if isinstance(state, Tensor):
        state = local(state)
        if type(state) in (Tensor, Parameter):
            if (state.is_floating_point() or state.is_complex()) and path != "step":
                yield path, state.detach()
        elif hasattr(state, "__tensor_flatten__"):
            for name in state.__tensor_flatten__()[0]:
                yield from floating_tensors(getattr(state, name), f"{path}.{name}")
    elif isinstance(state, dict):
        for key, value in state.items():
            yield from floating_tensors(value, f"{path}.{key}" if path else str(key))
    elif isinstance(state, (list, tuple)):
        for i, value in enumerate(state):
            yield from floating_tensors(value, f"{path}.{i}")


def _widened(moment: Tensor) -> Tensor:
    """Return a moment as real numbers, in float32 if its dtype has fewer bits."""
    if moment.is_complex():
        return torch.view_as_real(moment)
    return moment.float() if moment.dtype in (torch.float16, torch.bfloat16) else moment


def _which_moment(label: Label, second: Tensor) -> list[tuple[str, Label]]:
    """Return why a bound is broken: a negative square, or the first moment."""
    if float(_widened(second).amin()) < 0:
        return [("negative_moment", label._replace(key=SECOND))]
    return [("moment_bound", label)]


def _look_closely(tensor: Tensor, limit: float) -> str | None:
    if not all_finite(tensor):
        return "nonfinite"
    return "huge" if float(tensor.abs().amax()) > limit else None
