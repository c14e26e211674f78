"""What we know of and do to the wrapped optimizer."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stableopt.runtime.family import family, numbers
from stableopt.runtime.tree_copy import tree_tensors

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


def call_step(optimizer: Optimizer, closure: Callable[[], Any] | None) -> Any:
    """Take a step, with the closure as its signature has it."""
    if closure is None:
        return optimizer.step()
    parameter = inspect.signature(type(optimizer).step).parameters.get("closure")
    if parameter is not None and parameter.kind is inspect.Parameter.KEYWORD_ONLY:
        step: Any = optimizer.step
        return step(closure=closure)
    return optimizer.step(closure)


def takes_closure(optimizer: Optimizer) -> bool:
    """Return whether ``step`` has to be given the closure, wherever there is one.

    All optimizers of torch but LBFGS evaluate it once, at the start, which the wrapper does in
    their place. Of others nobody knows: sharpness-aware minimization evaluates it at another
    point, though its signature says that it can do without.
    """
    return requires_closure(optimizer) or not _steps_like_torch(optimizer)


def _steps_like_torch(optimizer: Optimizer) -> bool:
    step = inspect.unwrap(type(optimizer).step)
    return getattr(step, "__module__", "").startswith("torch.optim.")


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
        self._probes = not _steps_like_torch(optimizer)
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
    """Learns what an optimizer moves itself, inside its step, beside tensors.

    Options of its groups (the step count of a schedule-free optimizer) and numbers among its
    attributes are state then; what moves between steps (lr, betas, momentum) belongs to a scheduler
    or to the user.

    Attributes:
        moved: The names of such options.
        numbers: The names of such attributes.
    """

    def __init__(self) -> None:
        self.moved: set[str] = set()
        self.numbers: set[str] = set()

    @contextmanager
    def watch(self, optimizer: Optimizer) -> Iterator[None]:
        """Compare before and after a step."""
        groups = [group for member in family(optimizer) for group in member.param_groups]
        before = [(dict(group), _versions(group)) for group in groups]
        counted = numbers(optimizer)
        yield
        for (old, versions), group in zip(before, groups, strict=True):
            for key, value in group.items():
                if value is not old.get(key, old):
                    self.moved.add(key)
            if versions and versions != _versions(group):
                self.moved |= {key for key, v in _versions(group).items() if v != versions.get(key)}
        now = numbers(optimizer)
        self.numbers |= {name for name, _ in now.items() ^ counted.items()}


def _versions(group: dict[str, Any]) -> dict[str, list[tuple[int, int]]]:
    """Return what moves when a tensor of an option is written to, or exchanged in its container."""
    return {
        key: [(id(tensor), tensor._version) for tensor in tree_tensors(value)]
        for key, value in group.items()
        if key != "params" and isinstance(value, (Tensor, list, tuple, dict))
    }


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
