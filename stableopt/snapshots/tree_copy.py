"""Copy nested values with tensors in them, and restore them in place."""

from __future__ import annotations

from copy import deepcopy
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

from stableopt.runtime.shards import local
from stableopt.runtime.storage import is_plain, without_overlap

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Memory(str, Enum):
    """The memory of copies."""

    SAME = "device"
    """On the device of the original."""
    HOST = "host"
    """In host memory, pinned for tensors of an accelerator."""

    def copy(self, tensor: Tensor) -> Tensor:
        """Return a copy of ``tensor`` in memory of its own."""
        if not self._moves(tensor):
            return tensor.detach().clone()
        pinned = torch.empty_like(tensor, device="cpu", pin_memory=True)
        return pinned.copy_(tensor.detach())

    def fits(self, copy: object, tensor: object) -> bool:
        """Return whether the values of ``tensor`` can be written to ``copy``."""
        if not isinstance(copy, Tensor) or not isinstance(tensor, Tensor):
            return False
        device = torch.device("cpu") if self._moves(tensor) else tensor.device
        return _kind(copy) is _kind(tensor) and (
            (copy.shape, copy.dtype, copy.device, copy.layout)
            == (tensor.shape, tensor.dtype, device, tensor.layout)
        )

    def _moves(self, tensor: Tensor) -> bool:
        # Only torch.empty_like of plain tensors is known to give pinned memory.
        plain = _kind(tensor) is Tensor and tensor.layout is torch.strided
        return self is Memory.HOST and plain and tensor.device.type != "cpu"


def _kind(tensor: Tensor) -> type:
    return Tensor if type(tensor) is Parameter else type(tensor)


class _Copies:
    """Collects copies from tensor to tensor and makes them in one call, which is faster."""

    def __init__(self) -> None:
        self._targets: list[Tensor] = []
        self._sources: list[Tensor] = []

    def add(self, target: Tensor, source: Tensor) -> None:
        self._targets.append(target)
        self._sources.append(source)

    def make(self) -> None:
        plain = []
        for target, source in zip(self._targets, self._sources, strict=True):
            target, source = local(target), local(source)
            if _kind(target) is not Tensor or not is_plain(target):
                target.copy_(source)  # a subclass may override it
            else:
                plain.append(without_overlap(target.detach(), source.detach()))
        if plain:
            targets, sources = zip(*plain, strict=True)
            torch._foreach_copy_(targets, sources)
        self._targets, self._sources = [], []


class TreeSaver:
    """Copies nested values; tensors that are shared stay shared.

    Args:
        memory: Of the copies.
        keep: Objects that are not copied.
    """

    def __init__(self, memory: Memory, keep: Sequence[object] = ()) -> None:
        self._memory = memory
        self._memo: dict[int, Any] = {id(item): item for item in keep}
        self._alive: list[Any] = []
        self._reused: set[int] = set()
        self._copies = _Copies()

    def finish(self) -> None:
        """Write to the tensors that are reused; until then they have their old values."""
        self._copies.make()

    def copy(self, value: Any, old: Any) -> Any:
        """Return a copy of ``value``, written into the tensors of ``old`` where they fit."""
        if id(value) not in self._memo:
            self._alive.append(value)  # so that its id is not reused
            self._memo[id(value)] = self._copy(value, old)
        return self._memo[id(value)]

    def _copy(self, value: Any, old: Any) -> Any:
        if isinstance(value, Tensor):
            if self._memory.fits(old, value) and id(old) not in self._reused:
                self._reused.add(id(old))
                self._copies.add(old, value)
                return old
            return self._memory.copy(value)
        if isinstance(value, dict):
            before = old if isinstance(old, dict) else {}
            copies = {k: self.copy(v, before.get(k)) for k, v in value.items()}
            return copies if type(value) is dict else _like(value, copies)
        if type(value) in (list, tuple):
            before_items = old if isinstance(old, (list, tuple)) else ()
            return type(value)(
                self.copy(v, before_items[i] if i < len(before_items) else None)
                for i, v in enumerate(value)
            )
        return deepcopy(value, self._memo)


class TreeRestorer:
    """Restores nested values; tensors that were shared are shared again.

    Args:
        memory: Of the copies.
        keep: Objects that were not copied.
    """

    def __init__(self, memory: Memory, keep: Sequence[object] = ()) -> None:
        self._memory = memory
        self._memo: dict[int, Any] = {id(item): item for item in keep}
        self._written: set[int] = set()
        self._copies = _Copies()
        self._acts: list[Callable[[], None]] = []

    def then(self, act: Callable[[], None]) -> None:
        """Call ``act`` in :meth:`finish`."""
        self._acts.append(act)

    def finish(self) -> None:
        """Write to the live values; until then they are unchanged."""
        self._copies.make()
        for act in self._acts:
            act()
        self._acts = []

    def put(self, live: Any, saved: Any, device: torch.device | None = None) -> Any:
        """Return the value to restore: ``live``, written in place by :meth:`finish`, if possible.

        Args:
            live: The current value.
            saved: A copy by :class:`TreeSaver`.
            device: Of a new tensor, if the copy is in pinned host memory and ``live`` cannot be
                written to.
        """
        if id(saved) not in self._memo:
            self._memo[id(saved)] = self._put(live, saved, device)
        return self._memo[id(saved)]

    def _put(self, live: Any, saved: Any, device: torch.device | None) -> Any:
        if isinstance(saved, Tensor):
            return self._put_tensor(live, saved, device)
        if isinstance(saved, dict):
            target = live if type(live) is type(saved) else _like(saved, {})
            items = {k: self.put(target.get(k), v, device) for k, v in saved.items()}
            self.then(partial(replace_items, target, items))
            return target
        if type(saved) in (list, tuple):
            now = live if isinstance(live, (list, tuple)) else ()
            parts = [
                self.put(now[i] if i < len(now) else None, v, device) for i, v in enumerate(saved)
            ]
            if type(saved) is list and type(live) is list:
                self.then(partial(live.__setitem__, slice(None), parts))
                return live
            return type(saved)(parts)
        return deepcopy(saved, self._memo)

    def _put_tensor(self, live: Any, saved: Tensor, device: torch.device | None) -> Tensor:
        if self._memory.fits(saved, live) and id(live) not in self._written:
            self._written.add(id(live))
            self._copies.add(live, saved)
            return live  # type: ignore[no-any-return]
        if self._memory is Memory.HOST and device is not None and _is_pinned(saved):
            return saved.to(device)
        return saved.clone()


def _is_pinned(tensor: Tensor) -> bool:
    return _kind(tensor) is Tensor and tensor.device.type == "cpu" and tensor.is_pinned()


def replace_items(target: dict[Any, Any], items: dict[Any, Any]) -> None:
    """Replace all items of a dict, in place."""
    target.clear()
    target.update(items)


def _like(example: dict[Any, Any], items: dict[Any, Any]) -> dict[Any, Any]:
    """Return ``items`` in a dict of the kind of ``example``, a defaultdict's factory kept."""
    twin = example.copy()
    replace_items(twin, items)
    return twin
