"""Spikes of the loss and of the gradient norm, against what was normal lately. No torch."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from typing import TYPE_CHECKING, Any

from stableopt.types import Finding, Scope

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stableopt.types import Observation

WINDOW = 64
"""Clean values that a baseline remembers."""

WARMUP = 32
"""Clean values before anything is judged."""

LOSS_FLOOR = 0.02
"""Smallest spread of a loss, as a share of the median of the first losses."""

GRADIENT_FLOOR = 0.4
"""Smallest spread of the logarithm of the gradient norm."""

_UPPER_QUARTILE = 0.6745
"""Of a standard normal distribution."""


class Baseline:
    """What was normal lately: the median, and how far values lie above it.

    The spread is taken from the upper quartile alone, because only what lies above is ever
    judged, and because a loss that falls stretches the other side. Flagged values are never
    added, so that a fault cannot become the new normal unnoticed.
    """

    def __init__(self) -> None:
        self.first_median: float | None = None
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, value: float) -> None:
        """Remember a clean value."""
        self._recent.append(value)
        insort(self._sorted, value)
        if len(self._recent) > WINDOW:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        if self.first_median is None and self.ready:
            self.first_median = self.median

    def clear(self) -> None:
        """Forget what was normal; the scale of the first values is kept."""
        self._recent.clear()
        self._sorted.clear()

    @property
    def ready(self) -> bool:
        """Whether there is enough to judge by."""
        return len(self._recent) >= WARMUP

    @property
    def median(self) -> float:
        """The median of the remembered values."""
        return self._sorted[len(self._sorted) // 2]

    def score(self, value: float, floor: float) -> float:
        """Return how many spreads ``value`` lies above the median.

        Args:
            value: What to judge.
            floor: The smallest spread: a baseline that hardly moves is not a strict one.
        """
        upper = self._sorted[(3 * len(self._sorted)) // 4]
        spread = max((upper - self.median) / _UPPER_QUARTILE, floor)
        return (value - self.median) / spread if spread > 0 else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the remembered values, oldest first."""
        return {"first_median": self.first_median, "recent": list(self._recent)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember the values of a checkpoint or a snapshot."""
        self.first_median = state["first_median"]
        self._recent = deque(state["recent"])
        self._sorted = sorted(self._recent)


class SpikeDetector:
    """One-sided robust z-scores of the loss, and of the logarithm of the gradient norm.

    A loss is a spike if it lies more than ``loss_limit`` spreads above the recent median,
    where the spread is at least 2% of the first losses: near zero nothing is a spike. A
    gradient norm is one if its logarithm does, with a spread of at least 0.4 (so that six
    of them are a factor of 11), and if it is larger than the first norms were.

    Args:
        loss_limit: z-score; ``None`` not to look.
        gradient_limit: The same for the gradient norm.

    Cost:
        About 2 µs per step.
    """

    def __init__(self, loss_limit: float | None, gradient_limit: float | None) -> None:
        self._loss_limit = loss_limit
        self._gradient_limit = gradient_limit
        self._loss = Baseline()
        self._gradient = Baseline()

    def judge(self, observation: Observation) -> tuple[Finding, ...]:
        """Return what stands out in an observation that is finite."""
        findings = []
        loss, norm = observation.loss, _norm(observation)
        if self._loss_limit is not None and loss is not None and self._loss.ready:
            floor = LOSS_FLOOR * abs(self._loss.first_median or 0.0)
            score = self._loss.score(loss, floor)
            if score > self._loss_limit:
                findings.append(_spike("loss", loss, self._loss.median, score))
        if self._gradient_limit is not None and norm and self._gradient.ready:
            score = self._gradient.score(math.log(norm), GRADIENT_FLOOR)
            if score > self._gradient_limit and math.log(norm) > (self._gradient.first_median or 0):
                usual = math.exp(self._gradient.median)
                findings.append(_spike("gradient", norm, usual, score))
        return tuple(findings)

    def learn(self, observation: Observation) -> None:
        """Remember an observation that nothing was found in."""
        if observation.loss is not None and math.isfinite(observation.loss):
            self._loss.add(observation.loss)
        norm = _norm(observation)
        if norm and math.isfinite(norm):
            self._gradient.add(math.log(norm))

    def reset(self) -> None:
        """Forget what was normal: something else is, from here on."""
        self._loss.clear()
        self._gradient.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return both baselines as plain data."""
        return {"loss": self._loss.state_dict(), "gradient": self._gradient.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the baselines of a checkpoint or a snapshot."""
        self._loss.load_state_dict(state["loss"])
        self._gradient.load_state_dict(state["gradient"])


def _spike(what: str, value: float, usual: float, score: float) -> Finding:
    subject = "the loss" if what == "loss" else "the gradient norm"
    return Finding(
        kind=f"{what}_spike",
        message=f"{subject} is {value:.4g} where {usual:.4g} is usual (robust z {score:.3g})",
        scope=Scope.SPIKE,
        value=value,
    )


def _norm(observation: Observation) -> float | None:
    return None if observation.gradients is None else observation.gradients.total_value
