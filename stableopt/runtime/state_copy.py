"""A copy of everything an optimizer moves, and the way back."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.optim import Optimizer


class StateCopy:
    """Parameters, state and group options of an optimizer, walked and never assumed.

    State is found by key at every call, whatever it holds: tensors and tensor subclasses,
    numbers, lists, nested dicts, entries that appear, vanish or are rebound. Restoring
    writes in place wherever shapes allow it, so ``data_ptr`` of parameters stays, and
    deletes state that was created since. Tensors that were shared are shared again.

    Cost:
        The bytes of parameters and state, kept between calls of :meth:`take`.
    """

    def __init__(self) -> None:
        self._params: list[Tensor] = []
        self._state: dict[Any, Any] = {}
        self._groups: list[dict[str, Any]] = []

    @torch.no_grad()
    def take(self, optimizer: Optimizer) -> None:
        """Copy ``optimizer`` as it is now, reusing the memory of the last copy."""
        params = _parameters(optimizer)
        saver = _Saver({id(p): p for p in params})
        if len(self._params) == len(params) and all(map(_alike_data, params, self._params)):
            torch._foreach_copy_(self._params, [p.detach() for p in params])
        else:
            self._params = [p.detach().clone() for p in params]
        self._state = {
            key: saver.copy(value, self._state.get(key)) for key, value in optimizer.state.items()
        }
        self._groups = [saver.copy(group, None) for group in optimizer.param_groups]

    @torch.no_grad()
    def restore(self, optimizer: Optimizer) -> None:
        """Put ``optimizer`` back to what :meth:`take` saw."""
        params = _parameters(optimizer)
        for live, saved in zip(params, self._params, strict=True):
            live.copy_(saved)
        # Parameters that the state refers to stay themselves: they are never copied.
        writer = _Restorer({id(p): p for p in params})
        writer.refill(optimizer.state, self._state)
        for group, options in zip(optimizer.param_groups, self._groups, strict=True):
            writer.refill(group, options)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _alike(a: object, b: Tensor) -> bool:
    return type(a) is type(b) and isinstance(a, Tensor) and _alike_data(a, b)


def _alike_data(a: Tensor, b: Tensor) -> bool:
    return (a.shape, a.dtype, a.device, a.layout) == (b.shape, b.dtype, b.device, b.layout)


class _Saver:
    """One take: remembers what was copied, so that shared tensors stay shared."""

    def __init__(self, memo: dict[int, Any]) -> None:
        self._memo = memo
        self._reused: set[int] = set()

    def copy(self, value: Any, old: Any) -> Any:
        """Return a copy of ``value``, written into the tensors of ``old`` where they fit."""
        if id(value) not in self._memo:
            self._memo[id(value)] = self._copy(value, old)
        return self._memo[id(value)]

    def _copy(self, value: Any, old: Any) -> Any:
        if isinstance(value, Tensor):
            if _alike(old, value) and id(old) not in self._reused:
                self._reused.add(id(old))
                return old.copy_(value)
            return value.detach().clone()
        if isinstance(value, dict):
            before = old if isinstance(old, dict) else {}
            return {k: self.copy(v, before.get(k)) for k, v in value.items()}
        if type(value) in (list, tuple):
            before_items = old if isinstance(old, (list, tuple)) else ()
            return type(value)(
                self.copy(v, before_items[i] if i < len(before_items) else None)
                for i, v in enumerate(value)
            )
        return deepcopy(value, self._memo)


class _Restorer:
    """One restore: remembers what was written, so that shared tensors stay shared."""

    def __init__(self, memo: dict[int, Any]) -> None:
        self._memo = memo
        self._written: set[int] = set()

    def put(self, live: Any, saved: Any) -> Any:
        """Return ``saved`` as a value for the optimizer, in place of ``live`` if possible."""
        if id(saved) not in self._memo:
            self._memo[id(saved)] = self._put(live, saved)
        return self._memo[id(saved)]

    def refill(self, live: dict[Any, Any], saved: dict[Any, Any]) -> dict[Any, Any]:
        """Give ``live`` exactly the keys of ``saved``, in their order."""
        items = {key: self.put(live.get(key), value) for key, value in saved.items()}
        live.clear()
        live.update(items)
        return live

    def _put(self, live: Any, saved: Any) -> Any:
        if isinstance(saved, Tensor):
            if _alike(live, saved) and id(live) not in self._written:
                self._written.add(id(live))
                return live.copy_(saved)
            return saved.clone()
        if isinstance(saved, dict):
            return self.refill(live if isinstance(live, dict) else {}, saved)
        if type(saved) in (list, tuple):
            now = live if isinstance(live, (list, tuple)) else ()
            items = [self.put(now[i] if i < len(now) else None, v) for i, v in enumerate(saved)]
            if type(saved) is list and type(live) is list:
                live[:] = items
                return live
            return type(saved)(items)
        return deepcopy(saved, self._memo)
