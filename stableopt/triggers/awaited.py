"""Signals that somebody waits for, and that never come."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from stableopt.triggers.signal_statistics import split_metric

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

logger = logging.getLogger("stableopt")

PATIENCE = 100
"""Steps after which a signal that was never observed is asked for."""


class Awaited:
    """Says once which signals never come: what waits for them never does anything."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._steps = 0

    def expect(self, names: Iterable[str]) -> None:
        """Wait for these."""
        self._names = set(names)

    def note(self, observed: Collection[str]) -> None:
        """Hear which signals were observed for a step."""
        self._names.difference_update(observed)
        self._steps += 1
        if self._names and self._steps == PATIENCE:
            logger.warning(
                "no value of %s has been observed in %d steps, and what reads it does nothing: "
                "call opt.observe(%s) before step(), or look for a typing error",
                ", ".join(sorted(self._names)),
                PATIENCE,
                ", ".join(
                    f"{name}=..."
                    for name in sorted({split_metric(name)[0] for name in self._names})
                ),
            )
