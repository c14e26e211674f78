"""A copy of the model's buffers, so that a skipped batch leaves no trace in them."""

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
"""Batches at the start that are compared with what was there before, to see what they move."""

NEWEST, MOST = 4, 3
"""A batch moves what this many of the newest batches that were compared have moved."""

LOOKS_AGAIN = 50
"""Steps from one such comparison to the next."""

_SWITCHES = (torch.bool, torch.uint8)
"""Dtypes of switches and masks: no forward pass counts in them."""


_Place: TypeAlias = "tuple[int, str]"


class BufferShadow:
    """A copy of every buffer of a model, persistent or not, as of the last healthy step.

    When a batch is judged, its forward pass has already written to the running statistics of
    BatchNorm: only a copy from before can undo that. In-place writes under ``no_grad`` do not
    change a tensor's ``_version`` (measured on BatchNorm, torch 2.13), so every buffer is copied
    every time: before the first forward pass of a batch, so that what the user has changed between
    two steps is kept; after the step where forward hooks do not run, as in compiled models.

    Restored is what most forward passes change. That is found by comparing in the first batches,
    every 50 steps and before every snapshot. The others are switches, masks, tables and caches:
    they stay as they are, unless they hold something that is not finite, or are a flag in
    checkpoints that the skipped batch has set. A buffer that was registered again in a forward pass
    (the cache of a rotary embedding, grown for a longer sequence) stays as well, because other
    attributes were computed together with it; except for statistics that are in checkpoints and
    are new tensors after every batch.

    Args:
        model: The model. Buffers without data, and sparse, nested or quantized ones, are left out.

    Attributes:
        loads: How often values were loaded into one of the modules.

    Cost:
        One copy of the buffers in memory, one read and write of them per step.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modules = Owners(model)
        self._slots: dict[_Place, Slot] = {}
        self._alive: list[Tensor | None] = []  # so that no other tensor gets the id of one
        self._infinite: set[_Place] = set()
        self._moved: dict[_Place, deque[bool]] = {}
        self._looks = self._steps = 0
        self._armed = True  # the next forward pass begins a batch
        self._stale = False  # the step that was taken last is not in the copies yet
        self._heard = False  # a forward pass of this batch was heard
        self.loads = 0
        self._hooks: Hooks | None = Hooks(self)
        for module in model.modules():
            if module._parameters and not module._buffers:
                self._hooks.add(module)
        self.refresh()

    # what happens to the model

    def before_forward(self) -> None:
        """Hear that a forward pass begins: what is there now is nothing of its batch's doing."""
        self._heard = True
        if self._armed:
            self._armed = False
            self.refresh()

    @torch.no_grad()
    def loaded(self, module: nn.Module) -> None:
        """Hear that values were loaded into a module: they are meant to be there."""
        self.loads += 1
        for place, slot in self._slots.items():
            if slot.module is module:
                self._slots[place] = self._copied(slot.module, slot.key, slot)

    def close(self) -> None:
        """Hear nothing any more."""
        if self._hooks is not None:
            self._hooks.close()
            self._hooks = None

    # a step

    def taken(self) -> None:
        """Hear that the step was taken: what its batch did to the buffers counts."""
        self._steps += 1
        if self._looks < LOOKS or self._steps % LOOKS_AGAIN == 0:
            self.look()
        self._stale, self._armed = self._heard, True
        if not self._heard and (self._slots or not self._modules.are_known()):
            self.refresh()
        self._heard = False

    @torch.no_grad()
    def taken_if(self, sound: Tensor) -> None:
        """Hear the same if ``sound`` holds, and put back what the batch did if not: no host waits.

        Args:
            sound: A 0-dim bool tensor.
        """
        for place, slot in list(self._slots.items()):
            live, copy = slot.now, slot.copy
            if live is None or copy is None or not alike(copy, live) or not is_plain(live):
                continue
            holds = sound.to(live.device)
            if not self._goes_back(place, slot, of_batch=True):
                holds = holds | ~torch.isnan(live).any()
            copy.copy_(torch.where(holds, live, copy))
            target, source = without_overlap(live.data, copy)
            target.copy_(source)
        self._armed, self._stale, self._heard = True, False, False
        self._walk()

    @torch.no_grad()
    def left_out(self) -> None:
        """Hear that the step was not taken: put back what its batch did."""
        for act in self._ways_back(self._slots, of_batch=True):
            act()
        self._armed, self._stale, self._heard = True, False, False

    @torch.no_grad()
    def way_back(self, to: BufferShadow) -> Callable[[], None]:
        """Return how to put back what a snapshot has, if forward passes move it or it is damaged.

        Nothing is written before that is called, and what could fail has been done by then.
        """
        acts = self._ways_back(to._slots, of_batch=False)

        def go() -> None:
            for act in acts:
                act()
            self.refresh()
            self._armed, self._stale, self._heard = True, False, False

        return go

    def current(self) -> BufferShadow:
        """Return this, with the step that was taken last in it."""
        if self._stale:
            self._stale = False
            self.refresh()
        return self

    @torch.no_grad()
    def look(self) -> None:
        """See what the batch has moved."""
        self._looks += 1
        for place, slot in self._slots.items():
            live, copy = slot.now, slot.copy
            if live is None or copy is None or not alike(copy, live) or not is_plain(live):
                continue
            statistic = slot.persistent or not slot.rebound
            moved = statistic and not torch.equal(*without_overlap(live, copy))
            self._moved.setdefault(place, deque(maxlen=NEWEST)).append(moved)

    def moves(self, place: _Place) -> bool:
        """Return whether forward passes move a buffer: it is no switch, mask or table then."""
        slot = self._slots.get(place)
        if slot is not None and isinstance(slot.module, _NormBase):
            return True
        moved = self._moved.get(place, ())
        return sum(moved) >= min(MOST, max(1, len(moved)))

    def _goes_back(self, place: _Place, slot: Slot, *, of_batch: bool) -> bool:
        """Return whether a buffer that is finite goes back.

        Args:
            place: What it is known by.
            slot: What it was.
            of_batch: Whether it is this batch that is left out.
        """
        known = self.moves(place) or self._looks == 0
        if slot.rebound:
            return known and slot.persistent
        # A flag that this batch has set: what it stands for is made anew by the next.
        flag = slot.copy is not None and not slot.copy.is_floating_point()
        return known or (of_batch and self._heard and slot.persistent and flag)

    def _ways_back(
        self, slots: Mapping[_Place, Slot], *, of_batch: bool
    ) -> list[Callable[[], object]]:
        acts = (self._way_back_of(place, slot, of_batch) for place, slot in slots.items())
        return [act for act in acts if act is not None]

    def _way_back_of(
        self, place: _Place, slot: Slot, of_batch: bool
    ) -> Callable[[], object] | None:
        live, copy = slot.now, slot.copy
        if live is None or not is_plain(live):
            return None
        if copy is None:
            spoilt = is_spoilt(live, moves=False)
            return partial(slot.module._buffers.__setitem__, slot.key, None) if spoilt else None
        if live.shape == copy.shape:  # if not alike, the model was moved to another dtype or device
            spoilt = alike(copy, live) and is_spoilt(live, moves=self.moves(place))
            if spoilt or self._goes_back(place, slot, of_batch=of_batch):
                target, source = without_overlap(live.data, copy)
                return partial(target.copy_, source)  # not detach(), as in StateCopy.restore
            return None
        if is_spoilt(live, moves=self.moves(place)):
            anew = copy.to(live.device, copy=True)
            return partial(slot.module._buffers.__setitem__, slot.key, anew)
        return None

    # copying

    @torch.no_grad()
    def refresh(self) -> None:
        """Make the copies equal to the buffers as they are now."""
        pairs = self._walk()
        if pairs:
            copies, lives = zip(*pairs, strict=True)
            torch._foreach_copy_(copies, lives)

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Return every copy, and the buffer that it is a copy of, where a graph may move it."""
        found = [(slot.copy, slot.now) for slot in self._slots.values() if not slot.rebound]
        return [
            without_overlap(live, copy)[::-1]
            for copy, live in found
            if copy is not None and live is not None and alike(copy, live) and is_plain(live)
            if live.dtype not in _SWITCHES
        ]

    def _walk(self) -> list[tuple[Tensor, Tensor]]:
        """Find the buffers that there are; return copies of before, and what they are copies of."""
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
        """Return whether a buffer is not finite that was so before this batch.

        Cost:
            One read of the floating buffers and one host synchronisation while they are finite.
        """
        pairs = {
            place: (slot.now, slot.copy)
            for place, slot in self._slots.items()
            if place not in self._infinite
            and slot.copy is not None
            and slot.copy.is_floating_point()
        }
        lives = [live for live, _ in pairs.values() if live is not None and is_plain(live)]
        lives = [live for live in lives if live.numel()]
        if not lives or bool(torch.isfinite(total_norm(tensor_norms(lives)))):
            return False
        # A mask of -inf is one for good: it is not looked at again.
        self._infinite |= {place for place, (_, copy) in pairs.items() if not all_finite(copy)}
        return any(
            live is not None and place not in self._infinite and not all_finite(live)
            for place, (live, _) in pairs.items()
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
        """Yield every copy, and what it is known by: its module's ``id`` and its key."""
        for place, slot in self._slots.items():
            if slot.copy is not None:
                yield place, slot.copy

    def names(self) -> dict[_Place, str]:
        """Return the name of every buffer by what it is known by."""
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
        """Let copies and pickles listen to a model of their own."""
        slots = {place: replace(slot, live=None) for place, slot in self._slots.items()}
        anew: dict[str, Any] = {"_alive": [], "_hooks": None, "_moved": {}, "_looks": 0}
        return {**self.__dict__, "_slots": slots, **anew}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # The model may not be filled yet: nothing here may look at it.
        self.__dict__.update(state)
        self._hooks = Hooks(self)
