"""Several ranks share the visits of the sensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stableopt.ranks.group import Ranks

Visited: TypeAlias = "tuple[str, tuple[str, ...]]"
"""A weight and the metrics of a sensor."""

Values: TypeAlias = "Mapping[str, float] | None"
"""What a sensor has read; ``None`` where it failed."""


class Sharing:
    """Decides which rank measures which weight, and tells all ranks what each has read.

    Every weight is measured by one of the ranks that hold it. What follows from a reading is then
    the same on all of them, whatever their kernels round.

    Args:
        ranks: Those that share.

    Attributes:
        postpones: Whether sensors of any rank have used up their time.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._holders: dict[str, list[int]] = {}
        self._turns: dict[str, int] = {}
        self.postpones = False

    @property
    def several(self) -> bool:
        """Whether there are other ranks."""
        return self._ranks.several

    def meet(self, names: Iterable[str]) -> None:
        """Find out which rank holds which weights; every rank calls this at once.

        Args:
            names: Of the weights of this rank.
        """
        self._holders = {}
        for rank, held in enumerate(self._ranks.gather(list(names), "the first step")):
            for name in held:
                self._holders.setdefault(name, []).append(rank)
        self._turns = {name: turn for turn, name in enumerate(sorted(self._holders))}

    def is_mine(self, name: str) -> bool:
        """Return whether this rank measures a weight that it holds."""
        if name not in self._holders:
            return True
        holders = self._holders[name]
        return holders[self._turns[name] % len(holders)] == self._ranks.rank

    def exchange(
        self,
        mine: Mapping[Visited, Values],
        shapes: dict[str, tuple[int, int]],
        heads: set[str],
    ) -> Mapping[Visited, Values]:
        """Return what every rank has measured; every rank calls this at once.

        Args:
            mine: What this one has.
            shapes: Of its weights; those of all others are added.
            heads: The output layers among them; those of all others are added.
        """
        if not self.several:
            return mine
        found: dict[Visited, Values] = {}
        given = (dict(mine), shapes, heads)
        for values, others, outputs in self._ranks.gather(given, "the exchange of readings"):
            for visited, read in values.items():
                found.setdefault(visited, read)
            shapes.update(others)
            heads.update(outputs)
        return dict(sorted(found.items()))
