"""A copy of everything an optimizer moves, and the way back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from stableopt.runtime.tree_copy import Memory, TreeRestorer, TreeSaver, tree_bytes, tree_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch.optim import Optimizer


class Position(NamedTuple):
    """Where a parameter is: trainers swap Parameter objects, but not their places."""

    group: int
    place: int


class StateCopy:
    """Parameters, state and group options of an optimizer, walked and never assumed.

    State is found by key at every call, whatever it holds: tensors and tensor subclasses,
    numbers, lists, nested dicts, entries that appear, vanish or are rebound. Restoring
    writes in place wherever shapes allow it, so ``data_ptr`` of parameters stays, and
    deletes state that was created since. Tensors that were shared are shared again.

    Args:
        memory: Where the copies of tensors lie.

    Attributes:
        tensors: All that :meth:`take` copied.

    Cost:
        The bytes of parameters and state, kept between calls of :meth:`take`.
    """

    def __init__(self, memory: Memory = Memory.SAME) -> None:
        self._memory = memory
        self._params: list[Tensor] = []
        self._places: list[Position] = []
        self._state: dict[Any, Any] = {}
        self._groups: list[dict[str, Any]] = []
        self._reserved: dict[Any, Any] = {}
        self._shape: _Shape = []
        self.tensors: list[Tensor] = []

    @torch.no_grad()
    def take(self, optimizer: Optimizer) -> None:
        """Copy ``optimizer`` as it is now, reusing the memory of the last copy."""
        places = positions(optimizer)
        params = list(places.values())
        saver = TreeSaver(self._memory, keep=params)
        data = [p.detach() for p in params]
        if len(self._params) == len(data) and all(map(self._memory.fits, self._params, data)):
            if data:
                torch._foreach_copy_(self._params, data)
        else:
            self._params = [self._memory.copy(p) for p in data]
        self._places = list(places)
        self._shape = _shape(optimizer)
        old = {**self._reserved, **self._state}
        self._state, self._reserved = _copied_state(optimizer, places, saver, old), {}
        self._groups = [saver.copy(_options(group), None) for group in optimizer.param_groups]
        saver.finish()
        # Parameters that the state refers to stay themselves, and are no part of the copy.
        known = {id(p) for p in params}
        self.tensors = list(tree_tensors([self._params, self._state, self._groups], known))

    @torch.no_grad()
    def restore(
        self, optimizer: Optimizer, restores: Callable[[str], bool] = lambda option: True
    ) -> None:
        """Put ``optimizer`` back to what :meth:`take` saw.

        Args:
            optimizer: The one that was copied, with parameters of the same shapes.
            restores: Which options of its groups go back; the others stay as they are.
        """
        places = positions(optimizer)
        if self._places:
            # Not detach(): a compiled step goes back at the next call, which may lie between a
            # forward pass and its backward pass, and the version of a weight is asked for there.
            live_params = [places[place].data for place in self._places]
            torch._foreach_copy_(live_params, self._params)
        # Parameters that the state refers to stay themselves: they are never copied.
        restorer = TreeRestorer(self._memory, keep=list(places.values()))
        device = next((p.device for p in places.values()), torch.device("cpu"))
        live = {key: optimizer.state.get(places.get(key, key)) for key in self._state}
        state = {
            places.get(key, key): restorer.put(
                live[key], value, getattr(places.get(key), "device", device)
            )
            for key, value in self._state.items()
        }
        optimizer.state.clear()
        optimizer.state.update(state)
        for group, saved_options in zip(optimizer.param_groups, self._groups, strict=True):
            _restore_options(group, saved_options, restorer, restores, device)
        restorer.finish()

    @torch.no_grad()
    def reserve(self, optimizer: Optimizer) -> None:
        """Take the memory that the state of ``optimizer`` needs, for the next copy."""
        places = positions(optimizer)
        saver = TreeSaver(self._memory, keep=list(places.values()))
        missing = _copied_state(optimizer, places, saver, self._reserved)
        saver.finish()
        self._reserved = {k: v for k, v in missing.items() if k not in self._state}

    def fits(self, optimizer: Optimizer) -> bool:
        """Tell whether ``optimizer`` still has the parameters that were copied, in their shapes."""
        return self._shape == _shape(optimizer)

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors in the copy, and of those that are kept for the next."""
        return tree_bytes([self._params, self._state, self._reserved, self._groups])


def positions(optimizer: Optimizer) -> dict[Position, Tensor]:
    """Return every parameter that has a shape by its place, in the optimizer's order."""
    return {
        Position(g, i): parameter
        for g, group in enumerate(optimizer.param_groups)
        for i, parameter in enumerate(group["params"])
        if not is_lazy(parameter)
    }


def parameter_at(optimizer: Optimizer, place: Position) -> Tensor | None:
    """Return the parameter that stands there now; ``None`` if none does."""
    groups = optimizer.param_groups
    if place.group >= len(groups) or place.place >= len(groups[place.group]["params"]):
        return None
    found: Tensor = groups[place.group]["params"][place.place]
    return None if is_lazy(found) else found


_Shape: TypeAlias = "list[list[tuple[int, torch.Size | None]]]"


def _shape(optimizer: Optimizer) -> _Shape:
    """Return what a copy is bound to: which parameters there are, and how large they are."""
    return [
        [(id(p), None if is_lazy(p) else p.shape) for p in group["params"]]
        for group in optimizer.param_groups
    ]


def state_bytes(optimizer: Optimizer) -> int:
    """Return the bytes of what a :class:`StateCopy` of ``optimizer`` would hold."""
    params = list(positions(optimizer).values())
    owned = [params, dict(optimizer.state), [_options(g) for g in optimizer.param_groups]]
    return tree_bytes(owned)


def _copied_state(
    optimizer: Optimizer, places: Mapping[Position, Tensor], saver: TreeSaver, old: dict[Any, Any]
) -> dict[Any, Any]:
    keys = {id(p): place for place, p in places.items()}
    return {
        (key := keys.get(id(owner), owner)): saver.copy(value, old.get(key))
        for owner, value in optimizer.state.items()
    }


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a group, with a mark where its parameters stand."""
    return {key: None if key == "params" else value for key, value in group.items()}


def _restore_options(
    group: dict[str, Any],
    saved: Mapping[str, Any],
    restorer: TreeRestorer,
    restores: Callable[[str], bool],
    device: torch.device,
) -> None:
    """Give ``group`` the options that go back, and leave the others alone."""

    def goes_back(key: str) -> bool:
        return key != "params" and (restores(key) or key not in group)

    options = {
        key: restorer.put(group.get(key), value, device) if goes_back(key) else group[key]
        for key, value in saved.items()
    }
    added = {k: v for k, v in group.items() if k not in saved and not restores(k)}
    group.clear()
    group.update(options)
    group.update(added)
