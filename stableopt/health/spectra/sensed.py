"""The readings of the sensors between two steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from stableopt.health.spectra.risk import is_broken

if TYPE_CHECKING:
    from stableopt.types import Finding, Reading


class Sensed(NamedTuple):
    """The readings of the sensors at one step.

    Attributes:
        readings: All of them.
        risen: A finding about the risk, if its level is ``WARNING`` or more and higher than before.
    """

    readings: tuple[Reading, ...] = ()
    risen: tuple[Finding, ...] = ()

    @property
    def broken(self) -> bool:
        """Whether a weight is not finite."""
        return any(is_broken(reading) for reading in self.readings)
