"""What we know of and do to the wrapped optimizer."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


def obeys_found_inf(optimizer: Optimizer) -> bool:
    """Tell whether the kernels of ``optimizer`` leave a step out by themselves if told to."""
    # Not by _step_supports_amp_scaling, which copies of torch's optimizers have lost.
    return type(optimizer) in _OBEY and all(group.get("fused") for group in optimizer.param_groups)


_OBEY = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad)


@contextmanager
def found_inf(optimizer: Optimizer, found: Tensor) -> Iterator[None]:
    """Have the next step do nothing if ``found`` holds; the host does not learn of it.

    It is what a gradient scaler tells to fused kernels, which do not move weights, moments or step
    counters then.

    Args:
        optimizer: One that :func:`obeys_found_inf`.
        found: A 0-dim bool tensor.
    """
    told: Any = optimizer
    told.grad_scale, told.found_inf = None, found.to(torch.float32)
    try:
        yield
    finally:
        del told.grad_scale, told.found_inf


class OptionWatch:
    """Learns which options of its groups an optimizer moves itself, inside its step.

    Those are state (the step count of a schedule-free optimizer); what moves between steps
    (lr, betas, momentum) belongs to a scheduler or to the user.

    Attributes:
        moved: Their names.
    """

    def __init__(self) -> None:
        self.moved: set[str] = set()

    @contextmanager
    def watch(self, optimizer: Optimizer) -> Iterator[None]:
        """Compare the options before and after a step."""
        before = [(dict(group), _versions(group)) for group in optimizer.param_groups]
        yield
        for (old, versions), group in zip(before, optimizer.param_groups, strict=True):
            for key, value in group.items():
                if value is not old.get(key, old):
                    self.moved.add(key)
            if versions and versions != _versions(group):
                self.moved |= {key for key, v in _versions(group).items() if v != versions.get(key)}


def _versions(group: dict[str, Any]) -> dict[str, int]:
    return {key: value._version for key, value in group.items() if isinstance(value, Tensor)}


@contextmanager
def scaled_lr(optimizer: Optimizer, scale: float) -> Iterator[None]:
    """Multiply every learning rate, and put it back afterwards as it was.

    A factor that is left in place does not survive schedulers that compute the rate anew
    (LambdaLR, OneCycleLR), and one that is divided out again leaves a rounding error.
    A tensor is written in place, so that compiled steps need no new graph.

    Args:
        optimizer: The inner optimizer.
        scale: The factor; 1 touches nothing.
    """
    if scale == 1.0:
        yield
        return
    saved: list[tuple[dict[str, Any], Any, Tensor | None]] = []
    for group in optimizer.param_groups:
        lr = group.get("lr")
        if isinstance(lr, Tensor):
            saved.append((group, lr, lr.detach().clone()))
            lr.detach().mul_(scale)
        elif lr is not None:
            saved.append((group, lr, None))
            group["lr"] = lr * scale
    try:
        yield
    finally:
        for group, lr, value in saved:
            if value is not None:
                lr.detach().copy_(value)
            group["lr"] = lr


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
