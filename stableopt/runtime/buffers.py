"""A shadow of the model's buffers, so that a skipped batch leaves no trace in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import torch
from torch.nn.parameter import is_lazy

from stableopt.functional import all_finite, tensor_norms, total_norm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn


class BufferShadow:
    """A copy of every buffer of a model, persistent or not, as of the last healthy step.

    By the time a batch is judged, its forward pass has already written to the running
    statistics of BatchNorm and its like: only a copy from before can undo that. In-place
    updates by native kernels do not raise a tensor's version counter (measured on
    BatchNorm, torch 2.13), so every buffer is copied every time.

    Args:
        model: The model; its modules are walked at every refresh, so that buffers that are
            added or rebound are seen. Buffers of lazy modules count once they have a shape.

    Cost:
        One copy of the buffers in memory, one read and write of them per step, and about
        0.2 µs per module.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._slots: dict[tuple[int, str], _Slot] = {}
        self._infinite: set[tuple[int, str]] = set()
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Make the shadow equal to the buffers as they are now."""
        copies, lives = self._walk()
        if lives:
            torch._foreach_copy_(copies, lives)

    @torch.no_grad()
    def refresh_if(self, sound: Tensor) -> None:
        """Refresh the shadow if ``sound`` holds, and restore the buffers if not: no host waits.

        A buffer that is new, or has another shape than before, is taken as it is.

        Args:
            sound: A 0-dim bool tensor.
        """
        for copy, live in zip(*self._walk(), strict=True):
            copy.copy_(torch.where(sound.to(live.device), live, copy))
            live.data.copy_(copy)

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Return every copy, and the buffer that it is a copy of, where both are alike."""
        found = [(copy, owner.get(key)) for owner, key, copy in self._slots.values()]
        return [
            (copy, live)
            for copy, live in found
            if copy is not None and live is not None and _alike(copy, live)
        ]

    def _walk(self) -> tuple[list[Tensor], list[Tensor]]:
        """Find the buffers that there are; return copies of before, and what they are copies of."""
        old, self._slots = self._slots, {}
        seen: set[int] = set()
        copies, lives = [], []
        for owner in _owners(self._model):
            for key, live in owner.items():
                if live is not None and (id(live) in seen or is_lazy(live)):
                    continue
                seen.add(id(live))
                before = old.get((id(owner), key))
                copy = before[2] if before is not None and before[0] is owner else None
                if live is None or copy is None or not _alike(live, copy):
                    copy = None if live is None else live.detach().clone()
                else:
                    copies.append(copy)
                    lives.append(live)
                self._slots[id(owner), key] = owner, key, copy
        return copies, lives

    @torch.no_grad()
    def restore(self) -> None:
        """Put every buffer back, in place where its shape still allows it.

        A buffer keeps the dtype and device that the model was moved to since.
        """
        for owner, key, copy in self._slots.values():
            live = owner.get(key)
            if copy is None:
                owner[key] = None
            elif live is not None and live.shape == copy.shape:
                live.data.copy_(copy)  # not detach(), as in StateCopy.restore
            else:
                owner[key] = copy.clone() if live is None else copy.to(live, copy=True)

    @torch.no_grad()
    def spoilt(self) -> bool:
        """Tell whether a buffer is not finite that was so after the last healthy step.

        Cost:
            One read of the floating buffers and one host synchronisation while they are finite.
        """
        pairs = {
            slot: (owner[key], copy)
            for slot, (owner, key, copy) in self._slots.items()
            if slot not in self._infinite and copy is not None and copy.is_floating_point()
        }
        lives = [live for live, _ in pairs.values() if live is not None and live.numel()]
        if not lives or bool(torch.isfinite(total_norm(tensor_norms(lives)))):
            return False
        # A mask of -inf is one for good: it is not looked at again.
        self._infinite |= {slot for slot, (_, copy) in pairs.items() if not all_finite(copy)}
        return any(
            live is not None and slot not in self._infinite and not all_finite(live)
            for slot, (live, _) in pairs.items()
        )

    def copy_into(self, other: BufferShadow | None) -> BufferShadow:
        """Return a copy of this shadow, in the memory of ``other`` if there is one."""
        twin = BufferShadow.__new__(BufferShadow)
        twin._model = self._model
        twin._slots = {}
        twin._infinite = set()
        old = {} if other is None else other._slots
        for slot, (owner, key, copy) in self._slots.items():
            before = old.get(slot)
            memory = before[2] if before is not None and before[0] is owner else None
            if copy is None or memory is None or not _alike(copy, memory):
                memory = None if copy is None else copy.clone()
            else:
                memory.copy_(copy)
            twin._slots[slot] = owner, key, memory
        return twin

    def items(self) -> Iterator[tuple[tuple[int, str], Tensor]]:
        """Yield every copy, and what it is known by: its owner's ``id`` and its key."""
        for slot, (_, _, copy) in self._slots.items():
            if copy is not None:
                yield slot, copy

    def names(self) -> dict[tuple[int, str], str]:
        """Return the name of every buffer by what it is known by."""
        return {
            (id(module._buffers), key): f"{path}.{key}" if path else key
            for path, module in self._model.named_modules()
            for key in module._buffers
        }

    @property
    def nbytes(self) -> int:
        """The bytes of all copies."""
        return sum(copy.numel() * copy.element_size() for _, copy in self.items())


_Slot: TypeAlias = "tuple[dict[str, Tensor | None], str, Tensor | None]"


def _owners(model: nn.Module) -> Iterator[dict[str, Tensor | None]]:
    """Yield the buffer dict of every module that has one; faster than ``modules()``."""
    seen: set[int] = set()
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if id(module) not in seen:
            seen.add(id(module))
            if module._buffers:
                yield module._buffers
            waiting.extend(child for child in module._modules.values() if child is not None)


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
