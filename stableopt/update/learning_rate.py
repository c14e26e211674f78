"""Learning rates: read, and scaled for one step."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.optim import Optimizer


@contextmanager
def scaled_lr(optimizer: Optimizer, scale: float) -> Iterator[None]:
    """Multiply every learning rate, and put it back afterwards as it was.

    A factor that is left in place does not survive schedulers that compute the rate again
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


def known_rates(optimizer: Optimizer) -> tuple[float, ...] | None:
    """Return the learning rates, unless that would wait for a device."""
    rates = [group.get("lr") for group in optimizer.param_groups]
    if any(isinstance(rate, Tensor) and rate.device.type != "cpu" for rate in rates):
        return None
    return learning_rates(optimizer)


def is_priming(optimizer: Optimizer, grad_norm: float | None) -> bool:
    """Return whether this step only makes the optimizer create its state.

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
