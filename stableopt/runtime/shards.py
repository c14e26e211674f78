"""The one door to sharded tensors: nothing else knows ``DTensor``."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

if TYPE_CHECKING:
    from torch import nn

_PLAIN = (Tensor, Parameter)


def is_sharded(tensor: object) -> bool:
    """Return whether a tensor is a ``DTensor``: of several ranks, also if each has all of it."""
    if type(tensor) in _PLAIN:
        return False
    module = sys.modules.get("torch.distributed.tensor")
    kind = getattr(module, "DTensor", None)
    return kind is not None and isinstance(tensor, kind)


def local(tensor: Any) -> Any:
    """Return this rank's part of a sharded tensor, in the same memory; anything else as it is.

    It has no autograd history, and no collective is called. A part may be empty.
    """
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        return tensor.detach().to_local()


def copies(tensor: Tensor) -> int:
    """Return how many ranks of its mesh hold each element of a sharded tensor; 1 for any other."""
    if not is_sharded(tensor):
        return 1
    known: Any = tensor
    sizes = zip(known.placements, known.device_mesh.shape, strict=True)
    return math.prod(size for placement, size in sizes if placement.is_replicate())


def place(tensor: Tensor) -> tuple[int, ...]:
    """Return where the part of this rank lies, so that copies of one part have one place."""
    if not is_sharded(tensor):
        return ()
    known: Any = tensor
    at = zip(known.placements, known.device_mesh.get_coordinate() or (), strict=False)
    return tuple(-1 if placement.is_replicate() else number for placement, number in at)


def whole(tensor: Any) -> Any:
    """Return a copy of all of a sharded tensor, or any other as it is.

    Every rank of its mesh has to call it at once.
    """
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        return tensor.detach().full_tensor()


def put_back(tensor: Any, values: Tensor) -> None:
    """Write this rank's part of what :func:`whole` returned; no collective is called.

    Args:
        tensor: The sharded tensor.
        values: All of it.
    """
    from torch.distributed.tensor import DTensor, Replicate

    mesh = tensor.device_mesh
    with torch.no_grad():
        everywhere = DTensor.from_local(values, mesh, [Replicate()] * mesh.ndim, run_check=False)
        local(tensor).copy_(local(everywhere.redistribute(placements=tensor.placements)))


def reshard(model: nn.Module | None) -> None:
    """Free the weights that ``fully_shard`` has gathered: those of the shards have changed."""
    module = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(module, "FSDPModule", None)
    if model is None or kind is None:
        return
    for part in model.modules():
        if isinstance(part, kind):
            part.reshard()
