"""Everything that training moves, as one dict: compared bit for bit, and searched for faults."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stableopt.testing import Injection

if TYPE_CHECKING:
    from benchmarks.faults.kinds import Scene

ABSURD = 1e15
"""Magnitude that no value here comes near without a fault."""


@dataclass(frozen=True, kw_only=True)
class Whole:
    """What a fault did to all of a tensor.

    Attributes:
        target: Name of the tensor.
        before: Its 2-norm before.
        after: Its 2-norm then.
    """

    target: str
    before: float
    after: float


def tensors_of(scene: Scene) -> dict[str, Tensor]:
    """Return weights, optimizer state and buffers by the names that injections give them."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in scene.model.named_parameters():
        tensors[name] = parameter.detach()
        for key, value in scene.optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{name}.{key}"] = value
    tensors.update(scene.model.named_buffers())
    return tensors


def digest(tensors: Mapping[str, Tensor]) -> bytes:
    """Return a hash of every bit, and of the names."""
    hashed = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors.items():
        hashed.update(name.encode())
        hashed.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return hashed.digest()


def is_poisoned(tensors: Mapping[str, Tensor], injections: Iterable[Injection | Whole]) -> bool:
    """Tell whether anything is not finite or absurd, or holds what was injected."""
    floating = [t for t in tensors.values() if t.is_floating_point()]
    if not all(float(t.abs().amax()) < ABSURD for t in floating):  # NaN is not below it
        return True
    return any(_holds(tensors, injection) for injection in injections)


def _holds(tensors: Mapping[str, Tensor], injection: Injection | Whole) -> bool:
    tensor = tensors.get(injection.target)
    if tensor is None or injection.before == injection.after:  # 0 and -0 are equal
        return False
    if isinstance(injection, Whole):
        middle = math.sqrt(injection.before * injection.after)
        grew, norm = injection.after > injection.before, float(tensor.norm())
        return norm >= middle if grew else norm <= middle
    value = float(tensor.reshape(-1)[injection.index])
    return value == injection.after or math.isnan(value)
