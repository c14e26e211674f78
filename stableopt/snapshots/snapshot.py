"""One snapshot: everything that a training step moves, at one moment."""

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
    from stableopt.snapshots.tracked import Tracked, TrackedCopy
    from stableopt.snapshots.tree_copy import Memory


class Restored(NamedTuple):
    """What came of restoring a snapshot.

    Attributes:
        baselines: Of the detectors and sensors, at that moment.
        left_behind: Names of tracked objects that raised instead of going back.
    """

    baselines: Mapping[str, Any]
    left_behind: tuple[str, ...]


class Snapshot:
    """The memory of one slot.

    Holds parameters, optimizer state, group options, buffers, the state of tracked objects,
    random states and the baselines of the detectors. Taken and restored at the same point
    of a step, after the inner update, so that what the training loop does next (scheduler,
    EMA) is repeated rightly.

    Args:
        memory: Where its tensors lie.

    Cost:
        Memory of all that, kept from one snapshot to the next; to take or restore it, one
        read and one write of it, and one more read for the sum of its bits.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._state = StateCopy(memory)
        self._buffers: BufferShadow | None = None
        self._tracked: TrackedCopy | None = None
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
            tracked: What the user moves beside it.
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
        """Return whether every bit is what it was when it was copied.

        Cost:
            One read of the snapshot.
        """
        return all(torch.equal(bit_sum(copy), known) for copy, known in self._sums.values())

    def _add_up(self) -> None:
        """Sum the bits of what is new in here."""
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
        goes_back: Callable[[str], bool],
        numbers: Collection[str],
        replay: bool,
    ) -> Restored:
        """Put everything back, in place.

        Args:
            optimizer: The inner optimizer.
            buffers: Of the model.
            tracked: What the user moves beside it.
            goes_back: Which options of the parameter groups are restored.
            numbers: Which numbers in attributes of the optimizer are.
            replay: Whether random states and tracked data go back as well.

        Returns:
            The baselines of that moment, and what has not gone back.

        Raises:
            ValueError: There are other parameters now; nothing was changed.
        """
        restore_buffers = None
        if self._buffers is not None and buffers is not None:
            restore_buffers = buffers.way_back(self._buffers)
        self._state.restore(optimizer, goes_back, numbers)
        if restore_buffers is not None:
            restore_buffers()
        left_behind: tuple[str, ...] = ()
        if self._tracked is not None:
            left_behind = tracked.restore(self._tracked, replay=replay)
        if replay and self._rng is not None:
            self._rng.restore()
        return Restored(self._baselines, left_behind)

    def reserve(self, optimizer: Optimizer) -> None:
        """Take the memory for state that ``optimizer`` has only had since."""
        self._state.reserve(optimizer)

    def fits(self, optimizer: Optimizer) -> bool:
        """Tell whether ``optimizer`` still has the parameters that were copied."""
        return self._state.fits(optimizer)

    def _contents(self) -> list[Any]:
        """Return everything in here that has tensors."""
        buffers = [] if self._buffers is None else [copy for _, copy in self._buffers.items()]
        tracked = {} if self._tracked is None else self._tracked.states
        return [self._state.tensors, buffers, tracked]

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors in here."""
        buffers = 0 if self._buffers is None else self._buffers.nbytes
        tracked = 0 if self._tracked is None else tree_bytes(self._tracked.states)
        return self._state.nbytes + buffers + tracked
