"""One snapshot: everything that a training step changes, after one step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from stableopt.runtime.bit_sum import bit_sum
from stableopt.runtime.positions import positions
from stableopt.runtime.tree import tree_bytes, tree_tensors
from stableopt.snapshots.rng import RandomState
from stableopt.snapshots.state_copy import StateCopy

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from torch import Tensor
    from torch.optim import Optimizer

    from stableopt.runtime.positions import Position
    from stableopt.snapshots.buffers import BufferShadow
    from stableopt.snapshots.tracked import Tracked, TrackedStates
    from stableopt.snapshots.tree_copy import Memory


class Restored(NamedTuple):
    """The result of restoring a snapshot.

    Attributes:
        baselines: Of the detectors and sensors, at that step.
        left_behind: Names of tracked objects that raised while they were restored.
    """

    baselines: Mapping[str, Any]
    left_behind: tuple[str, ...]


class Snapshot:
    """The memory of one slot.

    Holds parameters, optimizer state, group options, buffers, the state of tracked objects,
    random states and the baselines of the detectors. Taken and restored at the same point
    of a step, after the inner update, so that the training loop repeats what it does next
    (scheduler, EMA) correctly.

    Args:
        memory: Of its tensors.

    Cost:
        Memory of all that, kept from one snapshot to the next; to take or restore it, one
        read and one write of it, and one more read for its checksums.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._state = StateCopy(memory)
        self._buffers: BufferShadow | None = None
        self._tracked: TrackedStates = {}
        self._rng: RandomState | None = None
        self._baselines: Mapping[str, Any] = {}
        self._sums: dict[int, tuple[Tensor, Tensor]] = {}

    def take(
        self,
        optimizer: Optimizer,
        *,
        buffers: BufferShadow | None,
        tracked: Tracked,
        baselines: Mapping[str, Any],
    ) -> None:
        """Copy everything as it is now, reusing the memory of the last snapshot.

        Args:
            optimizer: The inner optimizer.
            buffers: The model's buffers after the last healthy step.
            tracked: Objects that the user tracks.
            baselines: Of the detectors and sensors; not written to afterwards.
        """
        self._state.take(optimizer)
        self._buffers = None if buffers is None else buffers.current().copy_into(self._buffers)
        self._tracked = tracked.take(self._tracked, self._memory)
        self._rng = RandomState.take(p.device for p in positions(optimizer).values())
        self._baselines = baselines
        self._sums = {}
        self._add_up()

    def adapt(self, optimizer: Optimizer, without_state: Collection[Position]) -> None:
        """Make room for other parameters; see :meth:`StateCopy.adapt`."""
        self._state.adapt(optimizer, without_state)
        self._add_up()

    def is_intact(self) -> bool:
        """Return whether no bit has changed since it was copied.

        Cost:
            One read of the snapshot.
        """
        return all(torch.equal(bit_sum(copy), known) for copy, known in self._sums.values())

    def _add_up(self) -> None:
        """Compute the checksums of new tensors."""
        known = self._sums
        self._sums = {
            id(copy): known.get(id(copy)) or (copy, bit_sum(copy))
            for copy in tree_tensors(self._contents())
        }

    def restore(
        self,
        optimizer: Optimizer,
        *,
        buffers: BufferShadow | None,
        tracked: Tracked,
        restores: Callable[[str], bool],
        numbers: Collection[str],
        replay: bool,
    ) -> Restored:
        """Restore everything in place.

        Args:
            optimizer: The inner optimizer.
            buffers: Of the model.
            tracked: Objects that the user tracks.
            restores: Which options of the parameter groups are restored.
            numbers: Which numbers in attributes of the optimizer are restored.
            replay: Whether random states and tracked data are restored as well.

        Raises:
            ValueError: There are other parameters now; nothing was changed.
        """
        restore_buffers = None
        if self._buffers is not None and buffers is not None:
            restore_buffers = buffers.restorer(self._buffers)
        self._state.restore(optimizer, restores, numbers)
        if restore_buffers is not None:
            restore_buffers()
        left_behind = tracked.restore(self._tracked, replay=replay)
        if replay and self._rng is not None:
            self._rng.restore()
        return Restored(self._baselines, left_behind)

    def reserve(self, optimizer: Optimizer) -> None:
        """Allocate memory for state that ``optimizer`` did not have when it was copied."""
        self._state.reserve(optimizer)

    def _contents(self) -> list[Any]:
        """Return everything in here that has tensors."""
        buffers = [] if self._buffers is None else [copy for _, copy in self._buffers.items()]
        return [self._state.tensors, buffers, self._tracked]

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors in here."""
        buffers = 0 if self._buffers is None else self._buffers.nbytes
        return self._state.nbytes + buffers + tree_bytes(self._tracked)
