"""Spikes of the loss and of the gradient norm, against what was normal lately. No torch."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any

from stableopt.types import Finding, Scope

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stableopt.types import Observation

WINDOW = 96
"""Clean values that a baseline remembers."""

NEWEST = 64
"""Of these, how many a spike has to stand out from by far: early losses fall fast."""

WARMUP = 32
"""Clean values before anything is judged."""

LOSS_FLOOR = 0.02
"""Smallest spread of a loss, as a share of the median of the first losses."""

LOSS_REACH = 3.0
"""How often further than any of the newest a loss has to lie above the median."""

GRADIENT_FLOOR = 0.8
"""Smallest spread of the logarithm of the gradient norm."""

GRADIENT_REACH = math.log(3.0)
"""How much larger than any of the newest the logarithm of a gradient norm has to be."""

EARLIEST = 5
"""Gradient norms after which one that is absurdly larger is a spike already: a loss may begin at
its minimum (the distance of a model to its own copy), with gradients of next to nothing."""

EARLY_REACH = math.log(100.0)
"""How much larger than all so far the logarithm of such a norm has to be."""

TAIL = 2
"""Isolated spikes after which values like them are the tail of a distribution, not faults."""

TAIL_FACTOR = 2.0
"""How many times as far out as those spikes a value of the same tail may lie."""

TAIL_MEMORY = 1_000
"""Clean values over which isolated spikes are remembered."""

_UPPER_QUARTILE = 0.6745
"""Of a standard normal distribution."""


class Baseline:
    """What was normal lately: the median, how far values lie above it, and which tail they have.

    The spread is taken from the upper quartile alone, because only what lies above is ever
    judged. Flagged values are never added, so that a fault cannot become the new normal
    unnoticed. But a value that was flagged and followed by a clean one stood alone; once that
    has happened twice, the data have a tail (a rare class, a wrong label), and what lies no
    further out is left to training.
    """

    def __init__(self) -> None:
        self.first_median: float | None = None
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []
        self._row: list[float] = []
        self._alone: deque[tuple[int, float]] = deque()
        self._count = 0

    def add(self, value: float) -> None:
        """Remember a clean value."""
        self._count += 1
        self._recent.append(value)
        insort(self._sorted, value)
        if len(self._recent) > WINDOW:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        if self.first_median is None and self.ready:
            self.first_median = self.median
        if self._row:
            self._alone.append((self._count, max(self._row)))
            self._row = []
        while self._alone and self._alone[0][0] < self._count - TAIL_MEMORY:
            self._alone.popleft()

    def flag(self, value: float) -> None:
        """Remember that ``value`` was flagged, until it is known whether it stands alone."""
        self._row.append(value)

    def clear(self) -> None:
        """Forget what was normal; the scale of the first values is kept."""
        self._recent.clear()
        self._sorted.clear()
        self._row = []
        self._alone.clear()

    def has(self, count: int) -> bool:
        """Tell whether so many values are remembered."""
        return len(self._recent) >= count

    @property
    def ready(self) -> bool:
        """Whether there is enough to judge by."""
        return self.has(WARMUP)

    @property
    def median(self) -> float:
        """The median of the remembered values."""
        return self._sorted[len(self._sorted) // 2]

    @property
    def largest(self) -> float:
        """The largest of the newest values."""
        return max(islice(reversed(self._recent), NEWEST))

    def score(self, value: float, floor: float) -> float:
        """Return how many spreads ``value`` lies above the median.

        Args:
            value: What to judge.
            floor: The smallest spread: a baseline that hardly moves is not a strict one.
        """
        upper = self._sorted[(3 * len(self._sorted)) // 4]
        spread = max((upper - self.median) / _UPPER_QUARTILE, floor)
        return (value - self.median) / spread if spread > 0 else 0.0

    def has_tail_to(self, value: float, further: float) -> bool:
        """Tell whether ``value`` belongs to a tail that is known.

        Args:
            value: What to judge.
            further: How far beyond the largest of the tail it may lie.
        """
        if len(self._alone) < TAIL:
            return False
        return value <= max(peak for _, peak in self._alone) + further

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered, oldest first."""
        return {
            "first_median": self.first_median,
            "recent": list(self._recent),
            "row": list(self._row),
            "alone": [list(pair) for pair in self._alone],
            "count": self._count,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember the values of a checkpoint or a snapshot."""
        self.first_median = state["first_median"]
        self._recent = deque(state["recent"])
        self._sorted = sorted(self._recent)
        self._row = list(state["row"])
        self._alone = deque((int(count), peak) for count, peak in state["alone"])
        self._count = state["count"]


class SpikeDetector:
    """One-sided robust z-scores of the loss, and of the logarithm of the gradient norm.

    A loss is a spike if it lies more than ``loss_limit`` spreads above the recent median
    (a spread is at least 2% of the first losses: near zero nothing is a spike), and three
    times further than any of the newest. What has stood alone twice is a tail of the data, and
    no spike any more; so it is for the gradient of a parameter group, not for all of them.

    A gradient norm is one if its logarithm lies so many spreads above (a spread is at least
    0.8, so that six are a factor of 121), if it is three times as large as any of the newest,
    and larger than the first norms were. Before there is a baseline it is one if it is a
    hundred times as large as all before it. The norm of every parameter group is judged in the
    same way: of a small one the global norm shows nothing.

    Args:
        loss_limit: z-score; ``None`` not to look.
        gradient_limit: The same for the gradient norm.

    Cost:
        About 3 µs per step, and 2 µs more for each of up to 16 parameter groups or neighbours.
    """

    def __init__(self, loss_limit: float | None, gradient_limit: float | None) -> None:
        self._loss_limit = loss_limit
        self._gradient_limit = gradient_limit
        self._loss = Baseline()
        self._gradient = Baseline()
        self._groups: dict[int, Baseline] = {}
        self._out: list[tuple[Baseline, float]] = []

    def judge(self, observation: Observation) -> tuple[Finding, ...]:
        """Return what stands out in an observation that is finite."""
        self._out = []
        findings = []
        if self._loss_limit is not None and observation.loss is not None and self._loss.ready:
            findings += self._judge_loss(observation.loss, self._loss_limit)
        norm = _norm(observation)
        if self._gradient_limit is not None and norm:
            findings += self._judge_gradient(self._gradient, norm, self._gradient_limit)
        return tuple(findings)

    def judge_groups(self, observation: Observation) -> dict[int, Finding]:
        """Return the parameter groups whose gradients stand out, by their numbers."""
        limit, found = self._gradient_limit, {}
        for number, norm in _groups(observation):
            if limit is not None and number in self._groups:
                subject = f"gradient norm of group {number}"
                for finding in self._judge_gradient(self._groups[number], norm, limit, subject):
                    found[number] = finding
        return found

    def _judge_loss(self, loss: float, limit: float) -> list[Finding]:
        base = self._loss
        score = base.score(loss, LOSS_FLOOR * abs(base.first_median or 0.0))
        out = loss - base.median
        # Of a loss that falls, even the newest may lie below the median.
        beyond = out > LOSS_REACH * max(0.0, base.largest - base.median)
        # At most so many times as far out as what is known of the tail.
        further = (1 - 1 / TAIL_FACTOR) * out
        if score > limit and beyond and not base.has_tail_to(loss, further):
            self._out.append((base, loss))
            return [_spike("loss", loss, base.median, score)]
        return []

    def _judge_gradient(
        self, base: Baseline, norm: float, limit: float, subject: str = "gradient norm"
    ) -> list[Finding]:
        value = math.log(norm)
        if not base.ready:
            if base.has(EARLIEST) and value > base.largest + EARLY_REACH:
                return [_spike(subject, norm, math.exp(base.median), math.inf)]
            return []
        score = base.score(value, GRADIENT_FLOOR)
        beyond = value > max(base.largest + GRADIENT_REACH, base.first_median or 0.0)
        tailed = base is not self._gradient and base.has_tail_to(value, math.log(TAIL_FACTOR))
        if score > limit and beyond and not tailed:
            self._out.append((base, value))
            return [_spike(subject, norm, math.exp(base.median), score)]
        return []

    def learn(self, observation: Observation) -> None:
        """Remember an observation that nothing was found in."""
        if observation.loss is not None and math.isfinite(observation.loss):
            self._loss.add(observation.loss)
        norm = _norm(observation)
        if norm and math.isfinite(norm):
            self._gradient.add(math.log(norm))
        for number, of_group in _groups(observation):
            self._groups.setdefault(number, Baseline()).add(math.log(of_group))

    def note_spike(self) -> None:
        """Remember that the step that was judged last stood out by its spikes alone."""
        for base, value in self._out:
            base.flag(value)
        self._out = []

    def reset(self) -> None:
        """Forget what was normal: something else is, from here on."""
        self._loss.clear()
        self._gradient.clear()
        self._groups.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return all baselines as plain data."""
        return {
            "loss": self._loss.state_dict(),
            "gradient": self._gradient.state_dict(),
            "groups": {number: base.state_dict() for number, base in self._groups.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the baselines of a checkpoint or a snapshot."""
        self._loss.load_state_dict(state["loss"])
        self._gradient.load_state_dict(state["gradient"])
        self._groups = {}
        for number, known in state.get("groups", {}).items():
            self._groups[int(number)] = Baseline()
            self._groups[int(number)].load_state_dict(known)


def _spike(subject: str, value: float, usual: float, score: float) -> Finding:
    how = f"robust z {score:.3g}" if math.isfinite(score) else "a hundredfold of all before it"
    return Finding(
        kind=f"{subject.split()[0]}_spike",
        message=f"the {subject} is {value:.4g} where {usual:.4g} is usual ({how})",
        scope=Scope.SPIKE,
        value=value,
    )


def _groups(observation: Observation) -> list[tuple[int, float]]:
    """Return the norms of the groups whose logarithms are finite."""
    known = {} if observation.gradients is None else observation.gradients.groups
    return [(number, norm) for number, norm in known.items() if norm and math.isfinite(norm)]


def _norm(observation: Observation) -> float | None:
    return None if observation.gradients is None else observation.gradients.total_value
