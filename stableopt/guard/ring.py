"""The ring of snapshot slots: which one is written, trusted, kept or overwritten. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class SlotState(str, Enum):
    """How far a slot may be trusted."""

    FREE = "free"
    """It holds nothing."""
    WRITING = "writing"
    """A copy into it is under way."""
    PENDING = "pending"
    """It holds a copy in which no fault was found when it was made; one may still be found."""
    VERIFIED = "verified"
    """Training stayed healthy for ``confirm`` steps beyond it."""
    ASIDE = "aside"
    """It was verified, and an older one was restored since: used only if the run is stopped."""


@dataclass(slots=True)
class Slot:
    """One place for a snapshot.

    Attributes:
        index: Of its memory.
        state: How far it may be trusted.
        step: Steps taken before the snapshot.
        number: Of the snapshot, counted from 1 in this run; decides how long it is kept.
        manual: Whether the user asked for it; it is then never overwritten by a new one.
    """

    index: int
    state: SlotState = SlotState.FREE
    step: int = -1
    number: int = 0
    manual: bool = False

    @property
    def held(self) -> bool:
        """Whether it holds a finished copy."""
        return self.state in (SlotState.PENDING, SlotState.VERIFIED)


@dataclass(frozen=True, slots=True)
class Ticket:
    """The right to finish writing one slot; void once a rollback has freed the slot."""

    index: int
    number: int


class Ring:
    """Slots on one timeline: free → writing → pending → verified.

    A snapshot is trusted once a step at least ``confirm`` after it was healthy. The newest
    verified snapshot, pending ones and one that the user asked for are never overwritten: if no
    other slot is left, the new snapshot waits. Old ones are kept at distances that double (a ruler
    sequence), so that there is one from before a fault that was found late. A rollback sets aside
    the verified ones that are newer than the one it restores: their memory is reused first, and
    until then a run that has to be stopped ends with the newest of all.

    Args:
        slots: How many.
        every: Steps between two snapshots; stretched if ``slots`` could not keep them
            apart until they are confirmed.
        confirm: Healthy steps after which a snapshot is trusted.
    """

    def __init__(self, slots: int, every: int, confirm: int) -> None:
        self.slots = [Slot(index) for index in range(slots)]
        self.every = legal_interval(slots, every, confirm)
        self.confirm = confirm
        self._wished = every
        self._number = 0

    # writing

    def due(self, step: int) -> bool:
        """Return whether a snapshot of ``step`` is due, if there is a slot for it."""
        newest = -self.every  # asked in every step: no generators here
        for slot in self.slots:
            if slot.state is SlotState.WRITING:
                return False
            if slot.held and slot.step > newest:
                newest = slot.step
        return bool(self.slots) and step - newest >= self.every

    def begin(self, step: int) -> Ticket | None:
        """Return a slot for a new snapshot of ``step``; ``None`` if all must be kept."""
        slot = self._victim()
        if slot is None:
            return None
        self._number += 1
        slot.state, slot.step, slot.number = SlotState.WRITING, step, self._number
        slot.manual = False
        return Ticket(slot.index, slot.number)

    def finish(self, ticket: Ticket, *, sound: bool) -> bool:
        """End the writing of a snapshot.

        Args:
            ticket: What :meth:`begin` returned.
            sound: Whether the copy was made, and no fault was found in it.

        Returns:
            Whether the slot now holds it; ``False`` also for one that a rollback freed.
        """
        slot = self.slots[ticket.index]
        if slot.state is not SlotState.WRITING or slot.number != ticket.number:
            return False
        if sound:
            slot.state = SlotState.PENDING
        else:
            self.discard(slot)
        return sound

    def healthy(self, step: int) -> None:
        """Note that no fault was found in the state after ``step`` steps."""
        for slot in self.slots:
            if slot.state is SlotState.PENDING and step >= slot.step + self.confirm:
                slot.state = SlotState.VERIFIED

    def accept(self, ticket: Ticket) -> None:
        """Trust a pending snapshot at once, because training starts with what it holds."""
        slot = self.slots[ticket.index]
        if slot.state is SlotState.PENDING and slot.number == ticket.number:
            slot.state = SlotState.VERIFIED

    # holding

    def pin_manual(self, step: int) -> bool:
        """Keep the snapshot of ``step`` for the user, in place of the one asked for before."""
        wanted = next((s for s in self.slots if s.held and s.step == step), None)
        if wanted is not None:
            for slot in self.slots:
                slot.manual = slot is wanted
        return wanted is not None

    # restoring

    def verified(self) -> list[Slot]:
        """Return the verified slots, newest first."""
        return self._newest_first(SlotState.VERIFIED)

    def sound(self) -> list[Slot]:
        """Return the pending and the verified slots, newest first."""
        return self._newest_first(SlotState.PENDING, SlotState.VERIFIED)

    def kept(self) -> list[Slot]:
        """Return every slot that holds a snapshot, sound ones first."""
        return self.sound() + self._newest_first(SlotState.ASIDE)

    def best(self) -> Slot | None:
        """Return the verified snapshot with the most steps, set aside or not."""
        found = self._newest_first(SlotState.VERIFIED) + self._newest_first(SlotState.ASIDE)
        return max(found, key=lambda slot: slot.step, default=None)

    def rewind(self, to: Slot) -> None:
        """Set aside or free every snapshot newer than ``to``: there is one timeline."""
        if to.state is SlotState.ASIDE:
            to.state = SlotState.VERIFIED
        for slot in self.slots:
            if slot is not to and slot.held and slot.step >= to.step:
                if slot.state is SlotState.VERIFIED:
                    slot.state, slot.manual = SlotState.ASIDE, False
                else:
                    self.discard(slot)
            elif slot.state is SlotState.WRITING and slot.step >= to.step:
                self.discard(slot)

    def discard(self, slot: Slot) -> None:
        """Free ``slot``."""
        slot.state, slot.step, slot.number, slot.manual = SlotState.FREE, -1, 0, False

    def clear(self) -> None:
        """Free every slot: a checkpoint was loaded, or another run begins."""
        for slot in self.slots:
            self.discard(slot)

    def shrink(self, slots: int) -> None:
        """Keep only the first ``slots`` slots: there is no memory for more."""
        if slots < len(self.slots):
            del self.slots[slots:]
            self.every = legal_interval(slots, self._wished, self.confirm)

    def _newest_first(self, *states: SlotState) -> list[Slot]:
        found = [slot for slot in self.slots if slot.state in states]
        return sorted(found, key=lambda slot: slot.step, reverse=True)

    def _victim(self) -> Slot | None:
        free = [slot for slot in self.slots if slot.state is SlotState.FREE]
        free += sorted(self._newest_first(SlotState.ASIDE), key=lambda slot: slot.step)
        if free:
            return free[0]
        old = [slot for slot in self.verified()[1:] if not slot.manual]
        return min(old, key=lambda slot: (self._level(slot.number), slot.step), default=None)

    def _level(self, number: int) -> int:
        """Return the height of a snapshot's mark on a ruler; high ones are kept longer."""
        height = (number & -number).bit_length() - 1
        return min(height, max(1, len(self.slots) - 2))


def legal_interval(slots: int, every: int, confirm: int) -> int:
    """Return the shortest interval between snapshots, at least ``every``, for so many slots.

    Of ``slots`` snapshots one is the newest verified and one may be about to be written;
    the others must hold all that are taken within ``confirm`` steps.
    """
    return max(every, -(-confirm // max(1, slots - 2)))
