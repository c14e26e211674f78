"""Which optimizers need their closure, and how one is called."""

from __future__ import annotations

import inspect
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.optim import Optimizer


def requires_closure(optimizer: Optimizer) -> bool:
    """Return whether ``step`` cannot do without a closure (LBFGS and its like).

    Such an optimizer evaluates the closure as often as it likes, at points of its choice.
    Every other one evaluates it once, at the start, which the wrapper does in its place.
    """
    parameter = _closure_of(_kind(optimizer))
    return parameter is not None and parameter.default is inspect.Parameter.empty


@cache
def _closure_of(kind: Any) -> inspect.Parameter | None:
    return inspect.signature(kind.step).parameters.get("closure")


def has_hooks(optimizer: Optimizer) -> bool:
    """Return whether something of the user's is called inside of ``step``."""
    return bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)


def call_step(optimizer: Optimizer, closure: Callable[[], Any] | None) -> Any:
    """Take a step, with the closure as its signature has it."""
    if closure is None:
        return optimizer.step()
    parameter = _closure_of(_kind(optimizer))
    if parameter is not None and parameter.kind is inspect.Parameter.KEYWORD_ONLY:
        step: Any = optimizer.step
        return step(closure=closure)
    return optimizer.step(closure)


def takes_closure(optimizer: Optimizer) -> bool:
    """Return whether ``step`` has to be given the closure, wherever there is one.

    All optimizers of torch but LBFGS evaluate it once, at the start, which the wrapper does in
    their place. Others may not: sharpness-aware minimization evaluates it at another
    point, though its signature says that it can do without.
    """
    return requires_closure(optimizer) or not steps_like_torch(optimizer)


def steps_like_torch(optimizer: Optimizer) -> bool:
    """Return whether ``step`` is one of torch's own."""
    return _is_torchs(_kind(optimizer))


@cache
def _is_torchs(kind: Any) -> bool:
    return getattr(inspect.unwrap(kind.step), "__module__", "").startswith("torch.optim.")


class Replay:
    """The closure for an optimizer that is given one.

    The evaluation that was judged before the step is handed out instead of a second one,
    as long as neither parameters nor gradients have moved since; later ones are real.

    Args:
        optimizer: The inner optimizer.
        loss: What the first evaluation returned.
        again: Makes another evaluation.

    Attributes:
        evaluated: Whether another evaluation was made.

    Cost:
        Some 3 µs per parameter, for optimizers that are not torch's.
    """

    def __init__(self, optimizer: Optimizer, loss: Any, again: Callable[[], Any]) -> None:
        self._optimizer = optimizer
        self._loss = loss
        self._again = again
        # Others write to .data, which leaves no trace in a version.
        self._probes = not steps_like_torch(optimizer)
        self._seen: object = self._fingerprint()
        self._values = self._sample()
        self.evaluated = False

    def __call__(self) -> Any:
        """Return the loss, from the evaluation at hand or from a new one."""
        seen, self._seen = self._seen, None
        if seen is not None and seen == self._fingerprint() and self._is_where_it_was():
            return self._loss
        self.evaluated = True
        return self._again()

    def _parameters(self) -> Iterator[Tensor]:
        return (p for group in self._optimizer.param_groups for p in group["params"])

    def _fingerprint(self) -> list[tuple[int, int, int]]:
        params = self._parameters()
        return [(p._version, id(p.grad), -1 if p.grad is None else p.grad._version) for p in params]

    def _sample(self) -> list[Tensor]:
        """Return some elements of every parameter that has a gradient."""
        if not self._probes:
            return []
        found = (p.detach() for p in self._parameters() if p.grad is not None)
        return [p.reshape(-1)[:SAMPLED].clone() for p in found if p.layout is torch.strided]

    def _is_where_it_was(self) -> bool:
        return all(map(torch.equal, self._values, self._sample()))


SAMPLED = 64
"""Elements of a parameter that tell whether it has moved."""


def _kind(optimizer: Optimizer) -> Any:
    return type(optimizer)
