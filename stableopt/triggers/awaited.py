"""Signals that rules or transforms read, and that are never observed."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from stableopt.triggers.signal_statistics import split_metric

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

logger = logging.getLogger("stableopt")

PATIENCE = 100
"""Steps after which a signal that was never observed is warned of."""


class Awaited:
    """Warns once of signals that are never observed."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._steps = 0

    def expect(self, names: Iterable[str]) -> None:
        """Set the signals that are read."""
        self._names = set(names)

    def note(self, observed: Collection[str]) -> None:
        """Note which signals were observed for a step."""
        self._names.difference_update(observed)
        self._steps += 1
        if self._names and self._steps == PATIENCE:
            signals = sorted({split_metric(name)[0] for name in self._names})
            logger.warning(
                "no value of %s has been observed in %d steps, and what reads it does nothing: "
                "call opt.observe(%s) before step(), or check the spelling",
                ", ".join(sorted(self._names)),
                PATIENCE,
                ", ".join(f"{name}=..." for name in signals),
            )
