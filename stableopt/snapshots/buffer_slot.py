"""One buffer of a model: its copy, and its value now."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
)

from stableopt.runtime.magnitudes import largest, unmasked
from stableopt.runtime.storage import is_plain

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Slot:
    """One buffer.

    Attributes:
        module: The module that has it.
        key: Its name there.
        copy: Of its values; ``None`` if it was ``None``.
        live: The ``id`` of the tensor that was copied; ``None`` if that is not known.
    """

    module: nn.Module
    key: str
    copy: Tensor | None
    live: int | None = None

    @property
    def now(self) -> Tensor | None:
        """The tensor that is there now."""
        return self.module._buffers.get(self.key)

    @property
    def rebound(self) -> bool:
        """Whether it is another tensor now."""
        return self.live is not None and self.live != id(self.now)

    @property
    def persistent(self) -> bool:
        """Whether it is in checkpoints."""
        return self.key not in self.module._non_persistent_buffers_set

    def pair(self) -> tuple[Tensor, Tensor] | None:
        """Return tensor and copy if values can be copied between them."""
        live, copy = self.now, self.copy
        if live is None or copy is None or not alike(copy, live) or not is_plain(live):
            return None
        return live, copy


class Owners:
    """The modules of a model that have buffers.

    They are searched again after a buffer or a module was registered anywhere, and every 50
    calls, because containers can add modules without registration.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._found: list[nn.Module] = []
        self._seen, self._asked = -1, 0
        _count_registrations()

    def are_known(self) -> bool:
        """Return whether no registration has been seen since the last search."""
        self._asked += 1
        return self._seen == _registered[0] and self._asked < ASKED_AGAIN

    def find(self) -> list[nn.Module]:
        """Return the modules."""
        if not self.are_known():
            self._seen, self._asked = _registered[0], 0
            self._found = [module for module in self._model.modules() if module._buffers]
        return self._found

    def __getstate__(self) -> dict[str, Any]:
        """Let copies search again."""
        return {**self.__dict__, "_found": [], "_seen": -1}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _count_registrations()


ASKED_AGAIN = 50
"""Calls after which the modules are searched again."""

_registered = [0]


@cache
def _count_registrations() -> None:
    """Count the registrations of buffers and modules in any module."""
    register_module_buffer_registration_hook(_count)
    register_module_module_registration_hook(_count)


def _count(module: nn.Module, name: str, value: Any) -> None:
    _registered[0] += 1


def alike(a: Tensor, b: Tensor) -> bool:
    """Return whether shape, dtype and device are the same."""
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device


def is_spoilt(buffer: Tensor, *, moves: bool) -> bool:
    """Return whether a buffer has a NaN, or an infinite or huge value that is no mask."""
    if not (buffer.is_floating_point() or buffer.is_complex()) or not buffer.numel():
        return False
    if buffer.dtype.itemsize == 1:
        buffer = buffer.float()  # torch compares no eight-bit floats
    if bool(torch.isnan(buffer).any()):
        return True
    sizes = buffer.abs() if moves else unmasked(buffer).abs()
    return float(sizes.amax()) > largest(buffer.dtype)
