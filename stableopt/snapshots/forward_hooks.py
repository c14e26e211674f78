"""Hear when a forward pass begins, and when values are loaded into a module."""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from torch import nn


class Listener(Protocol):
    """Who wants to know."""

    def before_forward(self) -> None:
        """Hear that a forward pass with gradients begins."""

    def loaded(self, module: nn.Module) -> None:
        """Hear that ``load_state_dict`` has written to ``module``."""


class _Hook:
    """Calls a listener while it lives; copies and pickles of a module have hooks that do nothing.

    These are made of the standard library alone: a model can be read where this is not installed.
    Compiled code has no part of it: inside of a graph it is a constant, and does nothing.
    """

    def __init__(self, listener: Listener | None = None) -> None:
        self._listener = None if listener is None else weakref.ref(listener)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")

    @property
    def listener(self) -> Listener | None:
        return None if self._listener is None else self._listener()


class _BeforeForward(_Hook):
    def __call__(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling() or torch._C._get_tracing_state():
            return
        listener = self.listener
        # Within a backward pass it is a checkpoint that is computed again.
        if listener and torch.is_grad_enabled() and torch._C._current_graph_task_id() == -1:
            listener.before_forward()

    @property
    def __name__(self) -> str:
        """Asked for by torch.jit.script alone, which compiles hooks."""
        raise RuntimeError(
            "torch.jit.script() cannot compile the hook by which stableopt sees when a forward "
            "pass begins: call opt.close() first"
        )


class _AfterLoading(_Hook):
    def __call__(self, module: nn.Module, incompatible: Any) -> None:
        if (listener := self.listener) is not None:
            listener.loaded(module)


class Hooks:
    """The hooks of one listener on the modules of a model.

    Args:
        listener: Is not kept alive by them.

    Cost:
        About 1 µs per module and forward pass.
    """

    def __init__(self, listener: Listener) -> None:
        self._handles: dict[int, tuple[weakref.ref[nn.Module], list[Any]]] = {}
        self._before, self._after = _BeforeForward(listener), _AfterLoading(listener)
        self._close = weakref.finalize(self, _remove, self._handles)

    def add(self, module: nn.Module) -> None:
        """Listen to ``module``, and to its forward pass if it has buffers; once, if asked again."""
        known = self._handles.get(id(module))
        if known is None or known[0]() is not module:
            known = self._handles[id(module)] = weakref.ref(module), []
            known[1].append(
                module.register_load_state_dict_post_hook(self._after)  # type: ignore[no-untyped-call]
            )
        if module._buffers and len(known[1]) == 1:
            known[1].append(module.register_forward_pre_hook(self._before))

    def close(self) -> None:
        """Take all of them away."""
        _remove(self._handles)


def _remove(handles: dict[int, Any]) -> None:
    for _, several in handles.values():
        for handle in several:
            handle.remove()
    handles.clear()
