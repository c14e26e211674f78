"""What sensors read from a weight."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum


class Standing(str, Enum):
    """What a single reading says about a weight, by its shape alone."""

    UNDEFINED = "undefined"
    """There is no such number: a zero matrix, a NaN, too few rows, a sensor that failed."""
    UNJUDGED = "unjudged"
    """A number that has no tiers for this shape."""
    HEALTHY = "healthy"
    WARNING = "warning"
    DANGER = "danger"


class RiskLevel(str, Enum):
    """The risk of spectral collapse of a run; see :mod:`stableopt.health.spectra.risk`."""

    STABLE = "stable"
    """Every weight is in its healthy range, and spectra hardly change."""
    LEARNING = "learning"
    """Every weight is in its healthy range, and spectra change: training makes progress."""
    WARNING = "warning"
    """A weight has left the range that is healthy for its shape, or its own recent course."""
    DANGER = "danger"
    """A weight is in a range never seen in healthy training, for its shape."""
    INSTABILITY = "instability"
    """Several weights at once are in danger, or one is not finite."""

    @property
    def rank(self) -> int:
        """0 for ``STABLE`` to 4 for ``INSTABILITY``."""
        return _RANKS[self]


_RANKS = {level: i for i, level in enumerate(RiskLevel)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One number that a sensor has read from one weight.

    Attributes:
        name: Of the parameter.
        metric: What was measured; the documentation lists every metric.
        value: NaN where it is undefined.
        step: Steps taken before it was read.
        standing: What it says by itself.
    """

    name: str
    metric: str
    value: float
    step: int
    standing: Standing = Standing.UNJUDGED

    @property
    def defined(self) -> bool:
        """Whether there is such a number."""
        return not math.isnan(self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """A metric of a weight that has left its own course.

    Attributes:
        name: Of the parameter.
        metric: What was measured.
        value: What was read.
        step: Steps taken before it was read.
        expected: What its past predicts.
        limit: The limit that the value is beyond.
        confirmed: Whether the reading before it was a drift, too.
    """

    name: str
    metric: str
    value: float
    step: int
    expected: float
    limit: float
    confirmed: bool


FOLLOWED = ("effective_rank", "kappa_p10", "spectral_norm", "redundancy", "fiedler")
"""The metrics whose past predicts their next value; see :mod:`stableopt.health.spectra.drift`."""
