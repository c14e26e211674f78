"""One buffer of a model: what it was, and what it is now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from stableopt.runtime.magnitudes import largest, unmasked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Slot:
    """One buffer.

    Attributes:
        module: Whose it is.
        key: Its name there.
        copy: What it was; ``None`` if there was nothing.
        live: The ``id`` of the tensor that was copied; ``None`` where that is not known.
    """

    module: nn.Module
    key: str
    copy: Tensor | None
    live: int | None = None

    @property
    def now(self) -> Tensor | None:
        """What is there now."""
        return self.module._buffers.get(self.key)

    @property
    def rebound(self) -> bool:
        """Whether another tensor stands in its place now."""
        return self.live is not None and self.live != id(self.now)

    @property
    def persistent(self) -> bool:
        """Whether it is in checkpoints."""
        return self.key not in self.module._non_persistent_buffers_set


def owners(model: nn.Module) -> Iterator[nn.Module]:
    """Yield every module that has buffers; faster than ``modules()``."""
    seen: set[int] = set()
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if id(module) not in seen:
            seen.add(id(module))
            if module._buffers:
                yield module
            waiting.extend(child for child in module._modules.values() if child is not None)


def alike(a: Tensor, b: Tensor) -> bool:
    """Return whether the values of one fit into the other."""
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device


def is_spoilt(buffer: Tensor, *, moves: bool) -> bool:
    """Return whether a buffer has a NaN, or what is infinite or absurdly large and no mask."""
    if not (buffer.is_floating_point() or buffer.is_complex()) or not buffer.numel():
        return False
    if buffer.dtype.itemsize == 1:
        buffer = buffer.float()  # torch compares no eight-bit floats
    if bool(torch.isnan(buffer).any()):
        return True
    sizes = buffer.abs() if moves else unmasked(buffer).abs()
    return float(sizes.amax()) > largest(buffer.dtype)
