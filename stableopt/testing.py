"""Public fault injectors: drill your own training loop before a real fault does.

Each function changes exactly what it names, with plain assignments outside autograd, draws
what it is not told from a private generator (``seed``), and returns an :class:`Injection`
that says what was done. None consumes the global random state of torch, python or numpy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stableopt.errors import ConfigError, unknown_name
from stableopt.functional import dense_values
from stableopt.runtime.names import parameter_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn
    from torch.optim import Optimizer

__all__ = [
    "Injection",
    "corrupt_buffer",
    "corrupt_moment",
    "corrupt_weight",
    "flip_bit",
    "inject_gradient",
    "inject_value",
    "poison_batch",
]

_BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Injection:
    """What an injector did.

    Attributes:
        target: Name of the tensor.
        index: Position of the element in the flattened tensor.
        before: Its value before.
        after: Its value now.
    """

    target: str
    index: int
    before: float
    after: float


@torch.no_grad()
def inject_value(
    tensor: Tensor, value: float, *, index: int | None = None, seed: int = 0, name: str = "tensor"
) -> Injection:
    """Set one element of ``tensor``, in place.

    Args:
        tensor: Any real or complex floating tensor, contiguous or not.
        value: What to write: NaN, ±Inf or any number.
        index: Position in the flattened tensor; drawn from ``seed`` if not given.
        seed: Seed of the private generator.
        name: What to call the tensor in the result.

    Raises:
        ConfigError: ``tensor`` is empty or cannot hold ``value``; ``index`` is out of range.

    Example:
        >>> w = torch.ones(2, 2)
        >>> inject_value(w, float("inf"), index=3)
        Injection(target='tensor', index=3, before=1.0, after=inf)
        >>> w
        tensor([[1., 1.],
                [1., inf]])
    """
    _require_float(tensor, name)
    position = _position(tensor, index, seed, name)
    element = _element(tensor, position)
    before = _number(element)
    element.fill_(value)
    return Injection(target=name, index=position, before=before, after=_number(element))


@torch.no_grad()
def flip_bit(
    tensor: Tensor, bit: int, *, index: int | None = None, seed: int = 0, name: str = "tensor"
) -> Injection:
    """Flip one bit of one element of ``tensor``, in place, as a memory error does.

    Args:
        tensor: A float64, float32, float16 or bfloat16 tensor.
        bit: 0 is the lowest bit of the mantissa. In float32 bits 23 to 30 are the exponent
            and 31 is the sign: bit 30 turns a weight of 0.02 into 7e36.
        index: Position in the flattened tensor; drawn from ``seed`` if not given.
        seed: Seed of the private generator.
        name: What to call the tensor in the result.

    Raises:
        ConfigError: The dtype has no such bit, or as for :func:`inject_value`.

    Example:
        >>> flip_bit(torch.tensor([0.5]), 31).after
        -0.5
    """
    _require_float(tensor, name)
    if tensor.dtype not in _BITS:
        raise ConfigError(
            f"{name}.dtype={tensor.dtype} has no bits to flip here: use a tensor of float64, "
            "float32, float16 or bfloat16"
        )
    width = torch.finfo(tensor.dtype).bits
    if isinstance(bit, bool) or not isinstance(bit, int) or not 0 <= bit < width:
        raise ConfigError(f"bit={bit!r} must be an int from 0 to {width - 1} for {tensor.dtype}")
    position = _position(tensor, index, seed, name)
    element = _element(tensor, position)
    before = _number(element)
    mask = 1 << bit
    if bit == width - 1:  # the sign bit, as a signed integer writes it
        mask -= 1 << width
    # The element may be a view into anything: flip in a scalar of our own and copy it back.
    raw = element.detach().clone().view(_BITS[tensor.dtype])
    element.copy_(raw.bitwise_xor(mask).view(tensor.dtype))
    return Injection(target=name, index=position, before=before, after=_number(element))


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
    values = gradients[chosen]
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
        batch: A tensor, or any nesting of dicts, lists and tuples of tensors; anything else
            in it is passed on.
        value: What to write into floating tensors.
        seed: Seed of the private generator.

    Example:
        >>> x, y = poison_batch((torch.zeros(2), torch.arange(3)))
        >>> int(x.isnan().sum()), y.dtype
        (1, torch.int64)
    """
    if isinstance(batch, Tensor):
        return _poisoned(batch, value, seed)
    if isinstance(batch, dict):
        return {k: poison_batch(v, value, seed=seed + i) for i, (k, v) in enumerate(batch.items())}
    if isinstance(batch, (list, tuple)):
        items = [poison_batch(v, value, seed=seed + i) for i, v in enumerate(batch)]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    return batch


def _poisoned(tensor: Tensor, value: float, seed: int) -> Tensor:
    copy = tensor.detach().clone()
    if copy.numel() == 0 or copy.dtype is torch.bool:
        return copy
    if copy.is_floating_point() or copy.is_complex():
        inject_value(copy, value, seed=seed)
        return copy
    low, high = int(copy.min()), int(copy.max())
    noise = torch.randint(low, high + 1, copy.shape, generator=_generator(seed))
    return noise.to(device=copy.device, dtype=copy.dtype)


def _corrupt(
    tensor: Tensor, value: float | None, bit: int | None, index: int | None, seed: int, name: str
) -> Injection:
    if bit is not None:
        return flip_bit(tensor, bit, index=index, seed=seed, name=name)
    if value is None:
        raise ConfigError("value=None and bit=None: give the value to write or the bit to flip")
    return inject_value(tensor, value, index=index, seed=seed, name=name)


def _named(optimizer: Optimizer, model: nn.Module | None) -> dict[str, Tensor]:
    names = parameter_names(optimizer, model)
    groups = optimizer.param_groups
    return {name: groups[g]["params"][i] for (g, i), name in names.items()}


def _choose(what: str, known: Mapping[str, Any], name: str | None, seed: int) -> str:
    if not known:
        raise ConfigError(f"there is no {what}: nothing can be injected here")
    if name is None:
        names: Sequence[str] = list(known)
        return names[int(torch.randint(len(names), (), generator=_generator(seed)))]
    if name not in known:
        raise unknown_name(what, name, known)
    return name


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _require_float(tensor: Tensor, name: str) -> None:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        raise ConfigError(f"{name}.dtype={tensor.dtype} must be a floating or complex dtype")


def _position(tensor: Tensor, index: int | None, seed: int, name: str) -> int:
    count = tensor.numel()
    if count == 0:
        raise ConfigError(f"{name} is empty: there is no element to change")
    if index is None:
        return int(torch.randint(count, (), generator=_generator(seed)))
    if not -count <= index < count:
        raise ConfigError(f"index={index} is out of range: {name} has {count} elements")
    return index % count


def _element(tensor: Tensor, position: int) -> Tensor:
    """Return a 0-dim view of one element of a tensor of any strides."""
    view = tensor.detach()
    for dim in reversed(range(view.dim())):
        position, offset = divmod(position, view.shape[dim])
        view = view.select(dim, offset)
    return view


def _number(element: Tensor) -> float:
    value = element.item()
    return abs(value) if isinstance(value, complex) else float(value)
