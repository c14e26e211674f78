"""A shadow of the model's buffers, so that a skipped batch leaves no trace in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


class BufferShadow:
    """A copy of every buffer of a model, persistent or not, as of the last healthy step.

    By the time a batch is judged, its forward pass has already written to the running
    statistics of BatchNorm and its like: only a copy from before can undo that. In-place
    updates by native kernels do not raise a tensor's version counter (measured on
    BatchNorm, torch 2.13), so every buffer is copied every time.

    Args:
        model: The model; buffers are found by module and key, so rebinding one is seen.

    Cost:
        One copy of the buffers in memory, and one read and write of them per step.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._slots: list[tuple[dict[str, Tensor | None], str, Tensor | None]] = []
        self.rescan()

    def rescan(self) -> None:
        """Find the model's buffers anew and take a copy of each."""
        seen: set[int] = set()
        self._slots = []
        for module in self._model.modules():
            for key, live in module._buffers.items():
                if live is None or id(live) not in seen:
                    self._slots.append((module._buffers, key, _copy(live)))
                    seen.add(id(live))

    def refresh(self) -> None:
        """Make the shadow equal to the buffers as they are now."""
        copies, lives = [], []
        for i, (owner, key, copy) in enumerate(self._slots):
            live = owner.get(key)
            if live is None or copy is None or not _alike(live, copy):
                self._slots[i] = (owner, key, _copy(live))
            else:
                copies.append(copy)
                lives.append(live)
        if lives:
            torch._foreach_copy_(copies, lives)

    def restore(self) -> None:
        """Put every buffer back, in place where its shape still allows it."""
        for owner, key, copy in self._slots:
            live = owner.get(key)
            if live is None or copy is None or not _alike(live, copy):
                owner[key] = _copy(copy)
            else:
                live.detach().copy_(copy)


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
