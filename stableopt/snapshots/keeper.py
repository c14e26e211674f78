"""Takes snapshots into the ring, and restores one of them."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import torch

from stableopt.guard.ring import Ring, SlotState, Ticket
from stableopt.runtime.positions import positions
from stableopt.snapshots.memory import Plan, estimate_bytes, plan_memory
from stableopt.snapshots.snapshot import Restored, Snapshot
from stableopt.snapshots.state_copy import state_bytes
from stableopt.snapshots.tracked import TrackedError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from torch.optim import Optimizer

    from stableopt.guard.options import Guard
    from stableopt.ranks.group import Ranks
    from stableopt.ranks.replicas import Replicas
    from stableopt.runtime.positions import Position
    from stableopt.snapshots.buffers import BufferShadow
    from stableopt.snapshots.tracked import Tracked
    from stableopt.types import Finding, Rollback

logger = logging.getLogger("stableopt")


class StateChecks(Protocol):
    """Checks weights, state and buffers before they are copied."""

    def accept_state(self) -> None:
        """Take the initial state of the optimizer as intended."""

    def damage(self) -> tuple[Finding, ...]:
        """Return the faults."""


class Keeper:
    """Takes snapshots when they are due, and restores one when it is needed.

    Args:
        optimizer: The inner optimizer.
        guard: How many, how often, where.
        judge: Checks everything before it is copied.
        buffers: The model's buffers as of the last healthy step.
        tracked: Objects that the user tracks.
        ranks: Those that keep snapshots of the same steps.
        replicas: Compares the copies of weights on other ranks.

    Raises:
        ConfigError: Not even two snapshots fit into memory.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        guard: Guard,
        judge: StateChecks,
        buffers: BufferShadow | None,
        tracked: Tracked,
        ranks: Ranks,
        replicas: Replicas,
    ) -> None:
        self._optimizer = optimizer
        self._ranks = ranks
        self._replicas = replicas
        self._guard = guard
        self._judge = judge
        self._buffers = buffers
        self._tracked = tracked
        self._allocated = False
        self.wanted: bool = False
        self.taken = 0
        self.plan = self._make_plan()
        self.ring = Ring(self.plan.slots, guard.every, guard.confirm_steps)
        self._snapshots = [Snapshot(self.plan.memory) for _ in self.ring.slots]
        self._held = [0] * len(self._snapshots)

    def adapt(self, without_state: Collection[Position]) -> None:
        """Add parameters that are new, or have another shape, to every snapshot.

        A rollback restores their values of now; those of all others do not change.

        Args:
            without_state: Those whose state is not added, because it has a fault.
        """
        for slot in self.ring.kept():
            self._snapshots[slot.index].adapt(self._optimizer, without_state)
            self._measure(slot.index)

    def begin(self, step: int, baselines: Callable[[], Mapping[str, Any]]) -> None:
        """Take the first snapshot, before the first step or after a checkpoint was loaded.

        It is trusted at once.
        """
        self.ring.clear()
        ticket = self._write(step, baselines()) if self.ring.slots else None
        if ticket is not None:
            self.ring.accept(ticket)

    def after(
        self, step: int, baselines: Callable[[], Mapping[str, Any]], *, now: bool = False
    ) -> bool:
        """Take a snapshot after a healthy step, if one is due or asked for.

        Args:
            step: Steps taken so far.
            baselines: Returns those of the detectors.
            now: Whether one is taken though it is not due, if there is a slot for it.

        Returns:
            Whether a rank has found a fault; nothing is copied then.
        """
        if not self.ring.slots:
            return False
        if not self._allocated:
            self._allocate(baselines())
        if self.wanted and self.ring.pin_manual(step):
            self.wanted = False
        if not now and not self.wanted and not self.ring.due(step):
            return False
        if self._buffers is not None:
            self._buffers.look()
            self._buffers.current()
        parted = self._replicas.parts()
        if self._ranks.any(parted or bool(self._judge.damage()), "the check before a snapshot"):
            return True
        if self._write(step, baselines()) is not None and self.wanted:
            self.wanted = not self.ring.pin_manual(step)
        return False

    def restore(
        self, rollback: Rollback, restores: Callable[[str], bool], numbers: Collection[str]
    ) -> Restored | None:
        """Restore a snapshot, unless the copy was damaged in memory.

        Args:
            rollback: Has the step of the snapshot.
            restores: Which options of the parameter groups are restored.
            numbers: Which numbers in attributes of the optimizer are restored.

        Returns:
            The result; ``None`` if the copy was damaged and is discarded.
        """
        slot = next(s for s in self.ring.kept() if s.step == rollback.to_step)
        snapshot = self._snapshots[slot.index]
        intact = snapshot.is_intact()
        if not intact:
            logger.warning(
                "the snapshot of step %d was damaged in memory (its checksum has changed): it is "
                "discarded; check the memory of this machine if that happens again",
                slot.step,
            )
        if self._ranks.any(not intact, "the check of a snapshot"):
            self.ring.discard(slot)
            return None
        restored = snapshot.restore(
            self._optimizer,
            buffers=self._buffers,
            tracked=self._tracked,
            restores=restores,
            numbers=numbers,
            replay=rollback.restores_rng,
        )
        self.ring.rewind(slot)
        return restored

    def forget(self) -> None:
        """Discard every snapshot: a checkpoint was loaded."""
        self.ring.clear()

    def __getstate__(self) -> dict[str, Any]:
        """Give copies and pickles everything but the snapshots."""
        empty = Ring(self.plan.slots, self._guard.every, self._guard.confirm_steps)
        new = {
            "ring": empty,
            "_snapshots": [Snapshot(self.plan.memory) for _ in empty.slots],
            "_held": [0] * len(empty.slots),
        }
        return {**self.__dict__, **new, "_allocated": False, "wanted": False}

    def summary(self) -> dict[str, Any]:
        """Return what is kept, as plain values."""
        return {
            "slots": len(self.ring.slots),
            "every": self.ring.every,
            "confirm": self.ring.confirm,
            "memory": self.plan.memory.value,
            "slot_bytes": self.plan.slot_bytes,
            "bytes": sum(self._held),
            "bytes_at_most": self.plan.bytes,
            "taken": self.taken,
            "steps": [
                {"step": s.step, "verified": s.state is SlotState.VERIFIED, "manual": s.manual}
                for s in self.ring.sound()
            ],
        }

    def _write(self, step: int, baselines: Mapping[str, Any]) -> Ticket | None:
        ticket = self.ring.begin(step)
        if ticket is None:
            return None
        snapshot = self._snapshots[ticket.index]
        sound = False
        try:
            self._copy(snapshot, baselines)
            sound = True
        except (torch.OutOfMemoryError, MemoryError, TrackedError) as error:
            logger.warning("the snapshot of step %d was not taken: %s", step, error)
        sound = not self._ranks.any(not sound, "a snapshot")
        self.taken += sound
        self._measure(ticket.index)
        return ticket if self.ring.finish(ticket, sound=sound) else None

    def _copy(self, snapshot: Snapshot, baselines: Mapping[str, Any]) -> None:
        snapshot.take(
            self._optimizer, buffers=self._buffers, tracked=self._tracked, baselines=baselines
        )

    # memory

    def _make_plan(self) -> Plan:
        places = positions(self._optimizer)
        device = next((p.device for p in places.values()), torch.device("cpu"))
        slot_bytes = estimate_bytes(self._optimizer, self._bytes())
        return plan_memory(self._guard, slot_bytes, device, sharing=self._ranks.on_host)

    def _bytes(self) -> int:
        """Return the bytes of all that a snapshot would hold now."""
        buffers = 0 if self._buffers is None else self._buffers.nbytes
        return state_bytes(self._optimizer) + buffers + self._tracked.nbytes

    def _allocate(self, baselines: Mapping[str, Any]) -> None:
        """Allocate all slots now that the state exists, and not in the middle of a run."""
        self._allocated = True
        self._judge.accept_state()
        self.plan = self._make_plan()
        slots = self._ranks.least(self.plan.slots, "the number of snapshots")
        self.plan = replace(self.plan, slots=slots)
        self.ring.shrink(self.plan.slots)
        del self._snapshots[self.plan.slots :]
        del self._held[self.plan.slots :]
        for slot, snapshot in zip(self.ring.slots, self._snapshots, strict=True):
            if slot.state is SlotState.FREE:
                self._copy(snapshot, baselines)
            else:
                snapshot.reserve(self._optimizer)
            self._measure(slot.index)

    def _measure(self, index: int) -> None:
        """Store the size of a slot: the summary is written on another thread."""
        held = self._snapshots[index].nbytes
        self._held[index] = held
        if held > self.plan.slot_bytes:  # an optimizer whose state grows
            self.plan = Plan(slots=self.plan.slots, memory=self.plan.memory, slot_bytes=held)
