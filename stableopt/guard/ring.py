"""The ring of snapshot slots: which one is written, trusted, kept or given up. No torch."""

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
    """It holds a copy that was sound when it was made, and may hold a fault not seen yet."""
    VERIFIED = "verified"
    """Training stayed healthy for ``confirm`` steps beyond it."""
    ASIDE = "aside"
    """It was verified, and the run has gone back further: only a stop makes use of it."""


@dataclass(slots=True)
class Slot:
    """One place for a snapshot.

    Attributes:
        index: Which memory it stands for.
        state: How far it may be trusted.
        step: Updates behind the snapshot.
        number: The how manieth snapshot of the run it is; decides how long it is kept.
        pins: How many hold it; a pinned slot is never given up for a new snapshot.
        manual: Whether the user asked for it.
    """

    index: int
    state: SlotState = SlotState.FREE
    step: int = -1
    number: int = 0
    pins: int = 0
    manual: bool = False

    @property
    def held(self) -> bool:
        """Whether it holds a finished copy."""
        return self.state in (SlotState.PENDING, SlotState.VERIFIED)


@dataclass(frozen=True, slots=True)
class Ticket:
    """The right to finish one writing, void once a rollback has given up the slot."""

    index: int
    number: int


class Ring:
    """Slots on one timeline: free → writing → pending → verified.

    A snapshot is trusted once a healthy verdict came for a step at least ``confirm`` after
    it. Neither the newest verified snapshot, nor a pending nor a pinned one is ever given
    up for a new one: if nothing else is left, the new one waits. Old ones are kept at
    distances that double (a ruler sequence), so that there is a way back further than a
    fault that was seen late. A rollback sets aside the verified ones that are newer than where
    it goes: their memory is the first to be used again, and until then a run that has to be
    stopped ends with the newest of all.

    Args:
        slots: How many.
        every: Steps between two snapshots; stretched if ``slots`` could not keep them
            apart until they are confirmed.
        confirm: Steps of healthy training after which a snapshot is trusted.
    """

    def __init__(self, slots: int, every: int, confirm: int) -> None:
        self.slots = [Slot(index) for index in range(slots)]
        self.every = legal_interval(slots, every, confirm)
        self.confirm = confirm
        self._wished = every
        self._number = 0

    # writing

    def due(self, step: int) -> bool:
        """Tell whether a snapshot of ``step`` should be taken now, if a slot is to be had."""
        if not self.slots or any(slot.state is SlotState.WRITING for slot in self.slots):
            return False
        newest = max((slot.step for slot in self.slots if slot.held), default=None)
        return newest is None or step - newest >= self.every

    def begin(self, step: int, *, manual: bool = False) -> Ticket | None:
        """Give a slot to a new snapshot of ``step``; ``None`` if none can be given up."""
        slot = self._victim()
        if slot is None:
            return None
        self._number += 1
        slot.state, slot.step, slot.number = SlotState.WRITING, step, self._number
        slot.pins, slot.manual = 0, manual
        return Ticket(slot.index, slot.number)

    def finish(self, ticket: Ticket, *, sound: bool) -> bool:
        """End the writing of a snapshot.

        Args:
            ticket: What :meth:`begin` gave.
            sound: Whether the copy was made, and nothing is held against it.

        Returns:
            Whether the slot now holds it; ``False`` also for one that a rollback gave up.
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
        """Hear that nothing is held against the state after ``step`` updates."""
        for slot in self.slots:
            if slot.state is SlotState.PENDING and step >= slot.step + self.confirm:
                slot.state = SlotState.VERIFIED

    def accept(self, ticket: Ticket) -> None:
        """Trust a pending snapshot at once: the user gave what it holds."""
        slot = self.slots[ticket.index]
        if slot.state is SlotState.PENDING and slot.number == ticket.number:
            slot.state = SlotState.VERIFIED

    # holding

    def pin(self, slot: Slot) -> None:
        """Keep ``slot`` from being given up for a new snapshot."""
        slot.pins += 1

    def unpin(self, slot: Slot) -> None:
        """Take one pin back."""
        slot.pins = max(0, slot.pins - 1)

    def pin_manual(self, step: int) -> bool:
        """Pin the snapshot of ``step`` for the user, in place of the one asked for before."""
        wanted = next((s for s in self.slots if s.held and s.step == step), None)
        if wanted is None:
            return False
        for slot in self.slots:
            if slot.manual and slot.held and slot is not wanted:
                slot.manual = False
                self.unpin(slot)
        if not (wanted.manual and wanted.pins):
            wanted.manual = True
            self.pin(wanted)
        return True

    # going back

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
        """Return the verified snapshot with the most updates behind it, set aside or not."""
        found = self._newest_first(SlotState.VERIFIED) + self._newest_first(SlotState.ASIDE)
        return max(found, key=lambda slot: slot.step, default=None)

    def rewind(self, to: Slot) -> None:
        """Set aside or give up every snapshot newer than ``to``: there is one timeline."""
        if to.state is SlotState.ASIDE:
            to.state = SlotState.VERIFIED
        for slot in self.slots:
            if slot is not to and slot.held and slot.step >= to.step:
                aside = slot.state is SlotState.VERIFIED
                if aside:
                    slot.state, slot.pins, slot.manual = SlotState.ASIDE, 0, False
                else:
                    self.discard(slot)
            elif slot.state is SlotState.WRITING and slot.step >= to.step:
                self.discard(slot)

    def discard(self, slot: Slot) -> None:
        """Free ``slot``, pins and all: what it holds is of no use."""
        slot.state, slot.step, slot.number = SlotState.FREE, -1, 0
        slot.pins, slot.manual = 0, False

    def clear(self) -> None:
        """Free every slot: another run begins."""
        for slot in self.slots:
            self.discard(slot)

    def shrink(self, slots: int) -> None:
        """Have only the first ``slots`` from now on: there is memory for no more."""
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
        old = [slot for slot in self.verified()[1:] if not slot.pins]
        return min(old, key=lambda slot: (self._level(slot.number), slot.step), default=None)

    def _level(self, number: int) -> int:
        """Return the height of a snapshot's mark on a ruler; high ones are kept longer."""
        height = (number & -number).bit_length() - 1
        return min(height, max(1, len(self.slots) - 2))


def legal_interval(slots: int, every: int, confirm: int) -> int:
    """Return the shortest interval, at least ``every``, that ``slots`` can keep up with.

    Of ``slots`` snapshots one is the newest verified and one may be about to be written;
    the others must hold all that are taken within ``confirm`` steps.
    """
    return max(every, -(-confirm // max(1, slots - 2)))
