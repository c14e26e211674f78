"""Copies of the model's buffers, so that a skipped batch leaves no trace in them."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.nn.modules.batchnorm import _NormBase

from stableopt.functional import all_finite, tensor_norms, total_norm
from stableopt.runtime.storage import is_plain, without_overlap
from stableopt.snapshots.buffer_slot import Owners, Slot, alike, is_spoilt
from stableopt.snapshots.forward_hooks import Hooks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor, nn

LOOKS = 6
"""Batches at the start after which buffers are compared with their copies."""

NEWEST, MOST = 4, 3
"""Newest comparisons, and how many of them must differ for a buffer that batches change."""

LOOKS_AGAIN = 50
"""Steps from one such comparison to the next."""

_SWITCHES = (torch.bool, torch.uint8)
"""Dtypes of switches and masks, which no forward pass uses as a counter."""


_Place: TypeAlias = "tuple[int, str]"


class BufferShadow:
    """A copy of every buffer of a model, persistent or not, as of the last healthy step.

    When a batch is judged, its forward pass has already written to the running statistics of
    BatchNorm: only a copy from before can undo that. In-place writes under ``no_grad`` do not
    change a tensor's ``_version`` (measured on BatchNorm, torch 2.13), so every buffer is copied
    every time: before the first forward pass of a batch, so that changes by the user between
    two steps are kept; after the step where forward hooks do not run, as in compiled models.

    Only buffers that most forward passes change are restored. They are found by comparisons in the
    first batches, every 50 steps and before every snapshot. All others are switches, masks, tables
    and caches: they are restored only if they hold something that is not finite, or are a flag in
    checkpoints that the skipped batch has set. A buffer that was registered again in a forward pass
    (the cache of a rotary embedding, grown for a longer sequence) is not restored either, because
    other attributes were computed together with it; except for statistics that are in checkpoints
    and are new tensors after every batch.

    Args:
        model: The model. Buffers without data, and sparse, nested or quantized ones, are left out.

    Attributes:
        loads: How often ``load_state_dict`` has written to one of the modules.

    Cost:
        One copy of the buffers in memory, one read and write of them per step.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modules = Owners(model)
        self._slots: dict[_Place, Slot] = {}
        self._alive: list[Tensor | None] = []  # so that their ids are not reused
        self._infinite: set[_Place] = set()
        self._moved: dict[_Place, deque[bool]] = {}
        self._looks = self._steps = 0
        self._armed = True  # the next forward pass begins a batch
        self._stale = False  # the copies are from before the last step that was taken
        self._forward = False  # a hook has seen a forward pass of this batch
        self.loads = 0
        self._hooks: Hooks | None = Hooks(self)
        for module in model.modules():
            if module._parameters and not module._buffers:
                self._hooks.add(module)
        self.refresh()

    # called by hooks

    def before_forward(self) -> None:
        """Copy the buffers if a forward pass is the first of a batch."""
        self._forward = True
        if self._armed:
            self._armed = False
            self.refresh()

    @torch.no_grad()
    def loaded(self, module: nn.Module) -> None:
        """Copy the buffers of a module that ``load_state_dict`` has written to."""
        self.loads += 1
        for place, slot in self._slots.items():
            if slot.module is module:
                self._slots[place] = self._copied(slot.module, slot.key, slot)

    def close(self) -> None:
        """Remove the hooks."""
        if self._hooks is not None:
            self._hooks.close()
            self._hooks = None

    # a step

    def taken(self) -> None:
        """Note that the step was taken: the changes of its batch are kept."""
        self._steps += 1
        if self._looks < LOOKS or self._steps % LOOKS_AGAIN == 0:
            self.look()
        self._stale, self._armed = self._forward, True
        if not self._forward and (self._slots or not self._modules.are_known()):
            self.refresh()
        self._forward = False

    @torch.no_grad()
    def taken_if(self, sound: Tensor) -> None:
        """Keep the changes of the batch if ``sound``, else restore the copies; no synchronisation.

        Args:
            sound: A 0-dim bool tensor.
        """
        for place, slot in list(self._slots.items()):
            pair = slot.pair()
            if pair is None:
                continue
            live, copy = pair
            holds = sound.to(live.device)
            if not self._is_restored(place, slot, of_batch=True):
                holds = holds | ~torch.isnan(live).any()
            copy.copy_(torch.where(holds, live, copy))
            target, source = without_overlap(live.data, copy)
            target.copy_(source)
        self._expect_batch()
        self._walk()

    @torch.no_grad()
    def left_out(self) -> None:
        """Restore the copies, as far as the batch has changed them: the step was not taken."""
        for write in self._restorers(self._slots, of_batch=True):
            write()
        self._expect_batch()

    @torch.no_grad()
    def restorer(self, to: BufferShadow) -> Callable[[], None]:
        """Return what restores a snapshot's buffers: those that batches change, and damaged ones.

        Nothing is written before it is called, and it does nothing that could fail.
        """
        writes = self._restorers(to._slots, of_batch=False)

        def restore() -> None:
            for write in writes:
                write()
            self.refresh()
            self._expect_batch()

        return restore

    def _expect_batch(self) -> None:
        self._armed, self._stale, self._forward = True, False, False

    def current(self) -> BufferShadow:
        """Return this, with copies from after the last step that was taken."""
        if self._stale:
            self._stale = False
            self.refresh()
        return self

    @torch.no_grad()
    def look(self) -> None:
        """Compare the buffers with their copies, to find those that batches change."""
        self._looks += 1
        for place, slot in self._slots.items():
            pair = slot.pair()
            if pair is not None:
                statistic = slot.persistent or not slot.rebound
                moved = statistic and not torch.equal(*without_overlap(*pair))
                self._moved.setdefault(place, deque(maxlen=NEWEST)).append(moved)

    def moves(self, place: _Place) -> bool:
        """Return whether forward passes change a buffer: it is no switch, mask or table then."""
        slot = self._slots.get(place)
        if slot is not None and isinstance(slot.module, _NormBase):
            return True
        moved = self._moved.get(place, ())
        return sum(moved) >= min(MOST, max(1, len(moved)))

    def _is_restored(self, place: _Place, slot: Slot, *, of_batch: bool) -> bool:
        """Return whether a buffer that is finite is restored.

        Args:
            place: Its key.
            slot: Its copy.
            of_batch: Whether this batch is skipped; otherwise, a snapshot is restored.
        """
        known = self.moves(place) or self._looks == 0
        if slot.rebound:
            return known and slot.persistent
        # A flag that this batch has set: the next batch initialises again what it stands for.
        flag = slot.copy is not None and not slot.copy.is_floating_point()
        return known or (of_batch and self._forward and slot.persistent and flag)

    def _restorers(
        self, slots: Mapping[_Place, Slot], *, of_batch: bool
    ) -> list[Callable[[], object]]:
        writes: list[Callable[[], object]] = []
        for place, slot in slots.items():
            live, copy = slot.now, slot.copy
            if live is None or not is_plain(live):
                continue
            if copy is not None and live.shape == copy.shape:
                # If not alike, the model was moved to another dtype or device.
                spoilt = alike(copy, live) and is_spoilt(live, moves=self.moves(place))
                if spoilt or self._is_restored(place, slot, of_batch=of_batch):
                    target, source = without_overlap(live.data, copy)
                    writes.append(partial(target.copy_, source))  # not detach(): see StateCopy
            elif is_spoilt(live, moves=copy is not None and self.moves(place)):
                new = None if copy is None else copy.to(live.device, copy=True)
                writes.append(partial(slot.module._buffers.__setitem__, slot.key, new))
        return writes

    # copying

    @torch.no_grad()
    def refresh(self) -> None:
        """Make the copies equal to the buffers as they are now."""
        pairs = self._walk()
        if pairs:
            copies, lives = zip(*pairs, strict=True)
            torch._foreach_copy_(copies, lives)

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Return every copy, and the buffer that it is a copy of, where a graph may change it."""
        found = [slot.pair() for slot in self._slots.values() if not slot.rebound]
        return [
            without_overlap(*pair)[::-1]
            for pair in found
            if pair is not None and pair[0].dtype not in _SWITCHES
        ]

    def _walk(self) -> list[tuple[Tensor, Tensor]]:
        """Find all buffers; return the copies to write to, and the buffers to read."""
        old, self._slots = self._slots, {}
        seen: set[int] = set()
        self._alive = []
        pairs = []
        for module in self._modules.find():
            if self._hooks is not None:
                self._hooks.add(module)
            for key, live in module._buffers.items():
                if live is not None and (id(live) in seen or not is_plain(live)):
                    continue
                seen.add(id(live))
                self._alive.append(live)
                place = id(module), key
                before = old.get(place)
                copy = before.copy if before is not None and before.module is module else None
                if live is None or copy is None or not alike(live, copy):
                    self._slots[place] = self._copied(module, key)
                else:
                    pairs.append((copy, live))
                    self._slots[place] = Slot(module, key, copy, id(live))
        return pairs

    @staticmethod
    def _copied(module: nn.Module, key: str, before: Slot | None = None) -> Slot:
        live = module._buffers.get(key)
        if live is None or not is_plain(live):
            return Slot(module, key, None)
        copy = None if before is None else before.copy
        if copy is not None and alike(copy, live):
            copy.copy_(live)
        else:
            copy = live.detach().clone()
        return Slot(module, key, copy, id(live))

    @torch.no_grad()
    def spoilt(self) -> bool:
        """Return whether a buffer is not finite that was finite before this batch.

        Cost:
            One read of the floating buffers and one host synchronisation while they are finite.
        """
        copies = {
            place: slot.copy
            for place, slot in self._slots.items()
            if slot.copy is not None and slot.copy.is_floating_point()
        }
        lives = {p: self._slots[p].now for p in copies if p not in self._infinite}
        read = [x for x in lives.values() if x is not None and is_plain(x) and x.numel()]
        if not read or bool(torch.isfinite(total_norm(tensor_norms(read)))):
            return False
        # A mask of -inf remains one: it is not checked again.
        self._infinite |= {place for place in lives if not all_finite(copies[place])}
        return any(
            live is not None and place not in self._infinite and not all_finite(live)
            for place, live in lives.items()
        )

    def copy_into(self, other: BufferShadow | None) -> BufferShadow:
        """Return a copy of this, in the memory of ``other`` if there is one."""
        twin = BufferShadow.__new__(BufferShadow)
        twin.__dict__.update(self.__dict__, _slots={}, _alive=[], _hooks=None)
        twin._infinite, twin._moved = set(), {}
        old = {} if other is None else other._slots
        for place, slot in self._slots.items():
            before = old.get(place)
            memory = before.copy if before is not None and before.module is slot.module else None
            if slot.copy is None or memory is None or not alike(slot.copy, memory):
                memory = None if slot.copy is None else slot.copy.clone()
            else:
                memory.copy_(slot.copy)
            twin._slots[place] = replace(slot, copy=memory)
        return twin

    def items(self) -> Iterator[tuple[_Place, Tensor]]:
        """Yield every copy by its key: the ``id`` of its module and its name there."""
        for place, slot in self._slots.items():
            if slot.copy is not None:
                yield place, slot.copy

    def names(self) -> dict[_Place, str]:
        """Return the name of every buffer by its key."""
        return {
            (id(module), key): f"{path}.{key}" if path else key
            for path, module in self._model.named_modules()
            for key in module._buffers
        }

    @property
    def nbytes(self) -> int:
        """The bytes of all copies."""
        return sum(copy.numel() * copy.element_size() for _, copy in self.items())

    def __getstate__(self) -> dict[str, Any]:
        """Give copies and pickles hooks on a model of their own."""
        slots = {place: replace(slot, live=None) for place, slot in self._slots.items()}
        new: dict[str, Any] = {"_alive": [], "_hooks": None, "_moved": {}, "_looks": 0}
        return {**self.__dict__, "_slots": slots, **new}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # The model may not be unpickled yet: it must not be used here.
        self.__dict__.update(state)
        self._hooks = Hooks(self)
