"""Faults as they happen in training: in gradients, weights, moments, buffers and batches.

Of a sharded tensor, the part of this rank is hit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from copy import copy
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stableopt.errors import ConfigError, unknown_name
from stableopt.functional import dense_values
from stableopt.runtime.names import parameter_names
from stableopt.runtime.shards import local
from stableopt.testing.elements import Injection, flip_bit, generator, inject_value


def inject_gradient(
    optimizer: Optimizer,
    value: float = math.nan,
    *,
    model: nn.Module | None = None,
    name: str | None = None,
    index: int | None = None,
    seed: int = 0,
) -> Injection:
    """Set one element of one gradient; call it between ``backward()`` and ``step()``.

    Args:
        optimizer: Whose gradients.
        value: What to write.
        model: Gives parameters their names.
        name: Which parameter; drawn from ``seed`` among those with a gradient if not given.
        index: Position in the flattened gradient; drawn from ``seed`` if not given.
        seed: Seed of the private generator.

    Raises:
        ConfigError: No parameter of that name has a gradient.
    """
    gradients = {n: p.grad for n, p in _named(optimizer, model).items() if p.grad is not None}
    chosen = _choose("parameter with a gradient", gradients, name, seed)
    # The stored values of a sparse gradient are its values: the write reaches the gradient.
    values = local(gradients[chosen])
    if values.is_sparse and not values.is_coalesced():
        values = values._values()
    return inject_value(dense_values(values), value, index=index, seed=seed, name=f"{chosen}.grad")


def corrupt_weight(
    optimizer: Optimizer,
    value: float | None = math.nan,
    *,
    bit: int | None = None,
    model: nn.Module | None = None,
    name: str | None = None,
    index: int | None = None,
    seed: int = 0,
) -> Injection:
    """Corrupt one element of one parameter: set it to ``value``, or flip ``bit`` of it.

    Args:
        optimizer: Whose parameters.
        value: What to write, unless ``bit`` is given.
        bit: Which bit to flip; see :func:`flip_bit`.
        model: Gives parameters their names.
        name: Which parameter; drawn from ``seed`` if not given.
        index: Position in the flattened parameter; drawn from ``seed`` if not given.
        seed: Seed of the private generator.

    Raises:
        ConfigError: There is no such parameter, or as for the two functions above.
    """
    parameters = _named(optimizer, model)
    chosen = _choose("parameter", parameters, name, seed)
    return _corrupt(parameters[chosen], value, bit, index, seed, chosen)


def corrupt_moment(
    optimizer: Optimizer,
    key: str = "exp_avg",
    value: float | None = math.nan,
    *,
    bit: int | None = None,
    model: nn.Module | None = None,
    name: str | None = None,
    index: int | None = None,
    seed: int = 0,
) -> Injection:
    """Corrupt one element of the optimizer's state.

    Args:
        optimizer: Whose state; it must have taken a step.
        key: Which entry, e.g. ``"exp_avg"``, ``"exp_avg_sq"``, ``"momentum_buffer"``.
        value: What to write, unless ``bit`` is given.
        bit: Which bit to flip; see :func:`flip_bit`.
        model: Gives parameters their names.
        name: Of which parameter; drawn from ``seed`` if not given.
        index: Position in the flattened entry; drawn from ``seed`` if not given.
        seed: Seed of the private generator.

    Raises:
        ConfigError: No parameter has such a state tensor.
    """
    entries = {
        n: optimizer.state[p][key]
        for n, p in _named(optimizer, model).items()
        if p in optimizer.state and isinstance(optimizer.state[p].get(key), Tensor)
    }
    chosen = _choose(f"parameter with state {key!r}", entries, name, seed)
    return _corrupt(entries[chosen], value, bit, index, seed, f"{chosen}.{key}")


def corrupt_buffer(
    model: nn.Module,
    value: float | None = math.nan,
    *,
    bit: int | None = None,
    name: str | None = None,
    index: int | None = None,
    seed: int = 0,
) -> Injection:
    """Corrupt one element of one floating buffer of ``model``.

    Args:
        model: Whose buffers.
        value: What to write, unless ``bit`` is given.
        bit: Which bit to flip; see :func:`flip_bit`.
        name: Which buffer; drawn from ``seed`` among the floating ones if not given.
        index: Position in the flattened buffer; drawn from ``seed`` if not given.
        seed: Seed of the private generator.

    Raises:
        ConfigError: There is no such buffer.
    """
    buffers = {n: b for n, b in model.named_buffers() if b.is_floating_point()}
    chosen = _choose("floating buffer", buffers, name, seed)
    return _corrupt(buffers[chosen], value, bit, index, seed, chosen)


def poison_batch(batch: Any, value: float = math.nan, *, seed: int = 0) -> Any:
    """Return a poisoned copy of a batch; the batch itself is left alone.

    One element of every floating tensor becomes ``value``; every integer tensor (tokens,
    labels) is replaced by uniform noise over its own range.

    Args:
        batch: A tensor, or any nesting of mappings, dataclasses, lists and tuples of
            tensors; anything else in it is passed on.
        value: What to write into floating tensors.
        seed: Seed of the private generator.

    Raises:
        ConfigError: There was nothing to change.

    Example:
        >>> x, y = poison_batch((torch.zeros(2), torch.arange(3)))
        >>> int(x.isnan().sum()), y.dtype
        (1, torch.int64)
    """
    poison = _Poison(value, seed)
    poisoned = poison(batch)
    if not poison.changed:
        raise ConfigError(
            f"batch={type(batch).__name__} has no floating tensor, and no integer tensor of "
            "more than one value: nothing can be poisoned"
        )
    return poisoned


@dataclass
class _Poison:
    """Walks one batch; ``changed`` counts the tensors that were changed."""

    value: float
    seed: int
    changed: int = 0

    def __call__(self, part: Any) -> Any:
        if isinstance(part, Tensor):
            return self._tensor(part)
        if isinstance(part, MutableMapping):
            twin = copy(part)
            for key in part:
                twin[key] = self(part[key])
            return twin
        if isinstance(part, (list, tuple)):
            items = [self(item) for item in part]
            return type(part)(*items) if hasattr(part, "_fields") else type(part)(items)
        if is_dataclass(part) and not isinstance(part, type):
            names = [field.name for field in fields(part) if field.init]
            return replace(part, **{name: self(getattr(part, name)) for name in names})
        return part

    def _tensor(self, tensor: Tensor) -> Tensor:
        twin = tensor.detach().clone()
        values = dense_values(twin)
        if values.numel() == 0 or values.dtype is torch.bool:
            return twin
        self.seed += 1
        if values.is_floating_point() or values.is_complex():
            inject_value(values, self.value, seed=self.seed)
            self.changed += 1
            return twin
        noise = torch.rand(values.shape, dtype=torch.float64, generator=generator(self.seed))
        low, high = int(values.min()), int(values.max())
        drawn = (low + noise * (high - low)).round().clamp(low, high).to(values.dtype)
        self.changed += not torch.equal(drawn.to(values.device), values)
        values.copy_(drawn)
        return twin


def _corrupt(
    tensor: Tensor, value: float | None, bit: int | None, index: int | None, seed: int, name: str
) -> Injection:
    tensor = local(tensor)
    if bit is not None:
        return flip_bit(tensor, bit, index=index, seed=seed, name=name)
    if value is None:
        raise ConfigError("value=None and bit=None: give the value to write or the bit to flip")
    return inject_value(tensor, value, index=index, seed=seed, name=name)


def _named(optimizer: Optimizer, model: nn.Module | None) -> dict[str, Tensor]:
    names = parameter_names(optimizer, model)
    groups = optimizer.param_groups
    params = {name: groups[g]["params"][i] for (g, i), name in names.items()}
    return {name: p for name, p in params.items() if local(p).numel() > 0}


def _choose(what: str, known: Mapping[str, Any], name: str | None, seed: int) -> str:
    if not known:
        raise ConfigError(f"there is no {what}: nothing can be injected here")
    if name is None:
        names = list(known)
        return names[int(torch.randint(len(names), (), generator=generator(seed)))]
    if name not in known:
        raise unknown_name(what, name, known)
    return name
