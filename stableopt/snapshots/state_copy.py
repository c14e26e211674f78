"""A copy of everything that an optimizer changes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from stableopt.runtime.family import attributes, family
from stableopt.runtime.positions import Position, Shape, positions, shape_of
from stableopt.runtime.shards import local
from stableopt.runtime.tree import tree_bytes, tree_tensors
from stableopt.snapshots.tree_copy import Memory, TreeRestorer, TreeSaver, replace_items

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from torch.optim import Optimizer


class _Member(NamedTuple):
    """The copy of one optimizer of a family.

    Attributes:
        state: By the place of its parameter, or by the key if that is no parameter.
        attributes: With tensors and numbers, beside its state.
    """

    state: dict[Any, Any]
    attributes: dict[str, Any]


class _Group(NamedTuple):
    live: dict[str, Any]
    options: dict[str, Any]


class StateCopy:
    """Parameters, state and group options of an optimizer of any kind.

    State is searched at every call, whatever it holds: tensors and tensor subclasses, numbers,
    lists, nested dicts, entries that appear, vanish or are rebound; and so are the attributes of
    an optimizer, other optimizers included. Restoring writes in place wherever shapes allow it, so
    that ``data_ptr`` of parameters stays, and deletes state that was created since. Tensors that
    were shared are shared again.

    Args:
        memory: Of the copies of tensors.

    Attributes:
        tensors: All copies of tensors.

    Cost:
        The bytes of parameters and state, kept between calls of :meth:`take`.
    """

    def __init__(self, memory: Memory = Memory.SAME) -> None:
        self._memory = memory
        self._params: list[Tensor] = []
        self._places: list[Position] = []
        self._owners: list[Tensor] = []
        self._members: list[_Member] = []
        self._groups: list[_Group] = []
        self._reserved: list[_Member] = []
        self._shape: Shape = []
        self.tensors: list[Tensor] = []

    @torch.no_grad()
    def take(self, optimizer: Optimizer) -> None:
        """Copy ``optimizer`` as it is now, reusing the memory of the last copy."""
        places = positions(optimizer)
        params = list(places.values())
        saver = TreeSaver(self._memory, keep=params)
        data = [local(p.detach()) for p in params]
        if len(self._params) == len(data) and all(map(self._memory.fits, self._params, data)):
            if data:
                torch._foreach_copy_(self._params, data)
        else:
            self._params = [self._memory.copy(p) for p in data]
        self._places = list(places)
        self._owners = params
        self._shape = shape_of(optimizer)
        old = _joined(self._members, self._reserved)
        self._members, self._reserved = _copied(optimizer, places, saver, old), []
        self._groups = [_Group(g, saver.copy(_options(g), None)) for g in _groups(optimizer)]
        saver.finish()
        self._list_tensors(params)

    @torch.no_grad()
    def adapt(self, optimizer: Optimizer, without_state: Collection[Position] = ()) -> None:
        """Follow a change of the parameters.

        Copies are kept, at the place where their parameter is now. A parameter that is new or has
        another shape is copied as it is now, with its state. Copies of parameters that were removed
        are dropped.

        Args:
            optimizer: The one that was copied.
            without_state: Places of new parameters whose state is not copied.
        """
        places = positions(optimizer)
        params = list(places.values())
        saver = TreeSaver(self._memory, keep=params)
        copies = zip(self._owners, self._places, self._params, strict=True)
        known = {id(owner): (place, copy) for owner, place, copy in copies}
        moved: dict[Position, Position] = {}
        cast: dict[Position, tuple[torch.dtype, torch.dtype]] = {}
        self._params, self._places = [], list(places)
        for place, parameter in places.items():
            before = known.get(id(parameter))
            if before is not None and before[1].shape == local(parameter).shape:
                moved[before[0]] = place
                self._params.append(before[1].to(parameter.dtype))
                if before[1].dtype != parameter.dtype:
                    cast[place] = before[1].dtype, parameter.dtype
            else:
                self._params.append(self._memory.copy(local(parameter.detach())))
        self._owners = params
        new = {place: p for place, p in places.items() if place not in moved.values()}
        arrived = {place: p for place, p in new.items() if place not in without_state}
        now = _copied(optimizer, arrived, saver, [], only=True)
        self._members = [
            _Member({**_moved(member.state, moved, cast), **added.state}, member.attributes)
            for member, added in zip(self._members, now, strict=True)
        ]
        options = {id(group.live): group.options for group in self._groups}
        self._groups = [
            _Group(g, options[id(g)] if id(g) in options else saver.copy(_options(g), None))
            for g in _groups(optimizer)
        ]
        self._shape, self._reserved = shape_of(optimizer), []
        saver.finish()
        self._list_tensors(params)

    @torch.no_grad()
    def restore(
        self,
        optimizer: Optimizer,
        restores: Callable[[str], bool] = lambda option: True,
        numbers: Collection[str] = (),
    ) -> None:
        """Restore ``optimizer`` as it was at :meth:`take`.

        Nothing is written before all checks and allocations are done.

        Args:
            optimizer: The one that was copied.
            restores: Which options of its groups are restored.
            numbers: Which of its attributes that are plain numbers are restored.

        Raises:
            ValueError: It has other parameters now; nothing was changed.
        """
        if self._shape != shape_of(optimizer):
            raise ValueError("other parameters than those that were copied: call adapt() first")
        places = positions(optimizer)
        params = list(places.values())
        # Parameters that the state refers to are not copied.
        restorer = TreeRestorer(self._memory, keep=params)
        device = next((p.device for p in params), torch.device("cpu"))
        members = family(optimizer)
        states = []
        for live, saved in zip(members, self._members, strict=True):
            states.append(
                {
                    places.get(key, key): restorer.put(
                        live.state.get(places.get(key, key)),
                        value,
                        getattr(places.get(key), "device", device),
                    )
                    for key, value in saved.state.items()
                }
            )
            for name, value in saved.attributes.items():
                if name in numbers or not isinstance(value, (int, float)):
                    before = getattr(live, name, None)
                    put = restorer.put(before, value, device)
                    restorer.then(partial(setattr, live, name, put))
        for live_group, saved_group in zip(_groups(optimizer), self._groups, strict=True):
            _restore_options(live_group, saved_group.options, restorer, restores, device)
        # From here on nothing can fail: shapes and dtypes were checked, memory was allocated.
        restorer.finish()
        for live, state in zip(members, states, strict=True):
            replace_items(live.state, state)
        if self._places:
            # Not detach(), which would change the version of a weight: a compiled step is undone at
            # the next call, which may be between a forward pass and its backward pass.
            values = [local(places[place]).data for place in self._places]
            torch._foreach_copy_(values, self._params)

    @torch.no_grad()
    def reserve(self, optimizer: Optimizer) -> None:
        """Allocate the memory that the state of ``optimizer`` needs, for the next copy."""
        places = positions(optimizer)
        saver = TreeSaver(self._memory, keep=list(places.values()))
        needed = _copied(optimizer, places, saver, self._reserved)
        saver.finish()
        self._reserved = [
            _Member(
                {k: v for k, v in member.state.items() if k not in known.state},
                {k: v for k, v in member.attributes.items() if k not in known.attributes},
            )
            for member, known in zip(needed, self._members, strict=False)
        ]

    def _list_tensors(self, params: list[Tensor]) -> None:
        # Parameters that the state refers to are not copied, and not listed.
        known = {id(p) for p in params}
        options = [group.options for group in self._groups]
        self.tensors = list(tree_tensors([self._params, *self._members, options], known))

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors in the copy, and of those allocated for the next."""
        return tree_bytes([self.tensors, *self._reserved])


def state_bytes(optimizer: Optimizer) -> int:
    """Return the bytes that a :class:`StateCopy` of ``optimizer`` would hold."""
    params = list(positions(optimizer).values())
    trained = {id(p) for p in params}
    owned: list[Any] = [params, [_options(g) for g in _groups(optimizer)]]
    for member in family(optimizer):
        owned += [dict(member.state), attributes(member, trained)]
    return tree_bytes(owned)


def _groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return the parameter groups of a whole family, those that are shared once."""
    groups = (group for member in family(optimizer) for group in member.param_groups)
    return list({id(group): group for group in groups}.values())


def _copied(
    optimizer: Optimizer,
    places: Mapping[Position, Tensor],
    saver: TreeSaver,
    old: list[_Member],
    *,
    only: bool = False,
) -> list[_Member]:
    """Return copies of the state of a family.

    Args:
        optimizer: The first of it.
        places: Its parameters.
        saver: Makes them.
        old: Copies whose memory may be used.
        only: Whether only the state of these parameters is copied.
    """
    keys = {id(p): place for place, p in places.items()}
    trained = {id(p) for group in _groups(optimizer) for p in group["params"]}
    found = []
    for i, member in enumerate(family(optimizer)):
        before = old[i] if i < len(old) else _Member({}, {})
        state = {
            (key := keys.get(id(owner), owner)): saver.copy(value, before.state.get(key))
            for owner, value in member.state.items()
            if not only or id(owner) in keys
        }
        beside = {} if only else attributes(member, trained)
        found.append(
            _Member(state, {n: saver.copy(v, before.attributes.get(n)) for n, v in beside.items()})
        )
    return found


def _joined(members: list[_Member], reserved: list[_Member]) -> list[_Member]:
    """Return both together: their memory can be reused."""
    if not reserved:
        return members
    return [
        _Member({**more.state, **member.state}, {**more.attributes, **member.attributes})
        for member, more in zip(members, reserved, strict=True)
    ]


def _moved(
    state: Mapping[Any, Any],
    moved: Mapping[Position, Position],
    cast: Mapping[Position, tuple[torch.dtype, torch.dtype]],
) -> dict[Any, Any]:
    """Return state by the new places of its parameters, without that of removed ones.

    Args:
        state: By old places.
        moved: New places by old ones.
        cast: Old and new dtype by new place, of parameters whose dtype has changed.
    """
    found = {
        moved.get(key, key): value
        for key, value in state.items()
        if key in moved or not isinstance(key, (Position, Tensor))
    }
    return {k: _cast(value, *cast[k]) if k in cast else value for k, value in found.items()}


def _cast(value: Any, old: torch.dtype, new: torch.dtype) -> Any:
    """Return a state with its tensors of one dtype converted to another, as its parameter was."""
    if isinstance(value, dict):
        return {k: v if k == "step" else _cast(v, old, new) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_cast(item, old, new) for item in value)
    return value.to(new) if isinstance(value, Tensor) and value.dtype is old else value


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a group, with ``None`` in place of its parameters."""
    return {key: None if key == "params" else value for key, value in group.items()}


def _restore_options(
    group: dict[str, Any],
    saved: Mapping[str, Any],
    restorer: TreeRestorer,
    restores: Callable[[str], bool],
    device: torch.device,
) -> None:
    """Restore some options of ``group``, and keep the others."""

    def is_restored(key: str) -> bool:
        return key != "params" and (restores(key) or key not in group)

    options = {
        key: restorer.put(group.get(key), value, device) if is_restored(key) else group[key]
        for key, value in saved.items()
    }
    added = {k: v for k, v in group.items() if k not in saved and not restores(k)}

    restorer.then(lambda: replace_items(group, {**options, **added}))
