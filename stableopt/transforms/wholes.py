"""Sharded weights as a transform sees them: as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stableopt.runtime.shards import is_sharded, put_back, whole

if TYPE_CHECKING:
    from torch import Tensor


class Wholes:
    """Gathers sharded tensors when they are asked for, and writes the parts of this rank back.

    All ranks have to ask for the same: what a transform asks for follows from what they agree on.

    Cost:
        Nothing for tensors that are not sharded; else an all-gather, and the memory of the whole.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, tensor: Any) -> Any:
        """Return all of a tensor; a change to it is written by :meth:`put_back`."""
        if not is_sharded(tensor):
            return tensor
        if id(tensor) not in self._known:
            self._known[id(tensor)] = tensor, whole(tensor)
        return self._known[id(tensor)][1]

    def put_back(self) -> None:
        """Write what has changed, and let the wholes go."""
        for tensor, values in self._known.values():
            put_back(tensor, values)
        self._known.clear()
