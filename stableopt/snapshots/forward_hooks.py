"""Hooks that call back before a forward pass and after ``load_state_dict``."""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from torch import nn


class Listener(Protocol):
    """What hooks call."""

    def before_forward(self) -> None:
        """Called before a forward pass with gradients."""

    def loaded(self, module: nn.Module) -> None:
        """Called after ``load_state_dict`` has written to ``module``."""


class _Hook:
    """Calls a listener while it lives; copies and pickles of a module have hooks that do nothing.

    Those are made of the standard library alone: a model can be loaded where stableopt is not
    installed. Compiled code does not contain the call: inside of a graph it does nothing.
    """

    def __init__(self, listener: Listener) -> None:
        self.listener = weakref.ref(listener)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")


class _BeforeForward(_Hook):
    def __call__(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling() or torch._C._get_tracing_state():
            return
        listener = self.listener()
        # Inside a backward pass it is the recomputation of an activation checkpoint.
        if listener and torch.is_grad_enabled() and torch._C._current_graph_task_id() == -1:
            listener.before_forward()

    @property
    def __name__(self) -> str:
        """Read only by torch.jit.script, which compiles hooks."""
        raise RuntimeError(
            "torch.jit.script() cannot compile the hook that stableopt has on the forward pass: "
            "call opt.close() first"
        )


class _AfterLoading(_Hook):
    def __call__(self, module: nn.Module, incompatible: Any) -> None:
        if (listener := self.listener()) is not None:
            listener.loaded(module)


class Hooks:
    """The hooks of one listener on the modules of a model.

    Args:
        listener: Held by weak references.

    Cost:
        About 1 µs per module and forward pass.
    """

    def __init__(self, listener: Listener) -> None:
        self._handles: dict[int, tuple[weakref.ref[nn.Module], list[Any]]] = {}
        self._before, self._after = _BeforeForward(listener), _AfterLoading(listener)
        self._close = weakref.finalize(self, _remove, self._handles)

    def add(self, module: nn.Module) -> None:
        """Register hooks on ``module``, on its forward pass if it has buffers; once for each."""
        known = self._handles.get(id(module))
        if known is None or known[0]() is not module:
            known = self._handles[id(module)] = weakref.ref(module), []
            known[1].append(
                module.register_load_state_dict_post_hook(self._after)  # type: ignore[no-untyped-call]
            )
        if module._buffers and len(known[1]) == 1:
            known[1].append(module.register_forward_pre_hook(self._before))

    def close(self) -> None:
        """Remove all of them."""
        _remove(self._handles)


def _remove(handles: dict[int, Any]) -> None:
    for _, several in handles.values():
        for handle in several:
            handle.remove()
    handles.clear()
