"""What we know of and do to the wrapped optimizer."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.optim import Optimizer


def requires_closure(optimizer: Optimizer) -> bool:
    """Tell whether ``step`` cannot do without a closure (LBFGS and its like).

    Such an optimizer evaluates the closure as often as it likes, at points of its choice.
    Every other one evaluates it once, at the start, which the wrapper does in its place.
    """
    parameter = inspect.signature(type(optimizer).step).parameters.get("closure")
    return parameter is not None and parameter.default is inspect.Parameter.empty


class Replay:
    """The closure for an optimizer that requires one and evaluates it many times.

    The evaluation that was judged before the step is handed out instead of a second one,
    as long as neither parameters nor gradients have moved since; later ones are real.

    Args:
        optimizer: The inner optimizer.
        loss: What the first evaluation returned.
        again: Makes another evaluation.
    """

    def __init__(self, optimizer: Optimizer, loss: Any, again: Callable[[], Any]) -> None:
        self._optimizer = optimizer
        self._loss = loss
        self._again = again
        self._seen: object = self._fingerprint()

    def __call__(self) -> Any:
        """Return the loss, from the evaluation at hand or from a new one."""
        seen, self._seen = self._seen, None
        if seen is not None and seen == self._fingerprint():
            return self._loss
        return self._again()

    def _fingerprint(self) -> list[tuple[int, int, int]]:
        params = (p for group in self._optimizer.param_groups for p in group["params"])
        return [(p._version, id(p.grad), -1 if p.grad is None else p.grad._version) for p in params]


def learning_rates(optimizer: Optimizer) -> tuple[float, ...]:
    """Return the learning rate of each group; a group without one is left out."""
    rates = (group.get("lr") for group in optimizer.param_groups)
    return tuple(_as_float(lr) for lr in rates if isinstance(lr, (int, float, Tensor)))


def is_priming(optimizer: Optimizer, grad_norm: float | None) -> bool:
    """Tell whether this step only makes the optimizer create its state.

    :mod:`torch.distributed.checkpoint` steps a fresh optimizer with zero gradients and a
    learning rate of zero before it asks for its state dict. That is no training step.

    Args:
        optimizer: The inner optimizer.
        grad_norm: The global gradient norm, if it was measured.
    """
    if optimizer.state or grad_norm not in (None, 0.0) or any(learning_rates(optimizer)):
        return False
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    return not any(p.grad is not None and bool(p.grad.any()) for p in parameters)


def _as_float(value: float | Tensor) -> float:
    return float(value.mean()) if isinstance(value, Tensor) else float(value)
