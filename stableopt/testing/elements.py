"""Change one element of one tensor, whatever its dtype and strides."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stableopt.errors import ConfigError

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
    _require_holds(tensor.dtype, value, name)
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


def generator(seed: int) -> torch.Generator:
    """Return a private generator: the global random state is never consumed."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ConfigError(f"seed={seed!r} must be an int")
    return torch.Generator().manual_seed(seed)


def _require_float(tensor: Tensor, name: str) -> None:
    if not isinstance(tensor, Tensor) or tensor.is_meta:
        raise ConfigError(f"{name}={tensor!r} must be a tensor with values")
    if not (tensor.is_floating_point() or tensor.is_complex()):
        raise ConfigError(f"{name}.dtype={tensor.dtype} must be a floating or complex dtype")


def _require_holds(dtype: torch.dtype, value: float, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"value={value!r} must be a number: what to write into {name}")
    held = float(torch.tensor(value, dtype=torch.float64).to(dtype).abs())
    if math.isnan(value) != math.isnan(held) or math.isinf(value) != math.isinf(held):
        raise ConfigError(f"value={value!r} cannot be held by {dtype}, the dtype of {name}")


def _position(tensor: Tensor, index: int | None, seed: int, name: str) -> int:
    count = tensor.numel()
    if count == 0:
        raise ConfigError(f"{name} is empty: there is no element to change")
    if index is None:
        return int(torch.randint(count, (), generator=generator(seed)))
    if isinstance(index, bool) or not isinstance(index, int):
        raise ConfigError(f"index={index!r} must be an int: a position in the flattened {name}")
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
