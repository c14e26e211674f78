"""The colours of a heatmap: which class a value has, and what the class means."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from stableopt.health.spectra.tiers import TIERS
from stableopt.recorded.trace import Bucket, Trace
from stableopt.types import Standing

UNDEFINED = "un"
"""The class of a number that does not exist."""

_STEPS: Mapping[str, tuple[float, ...]] = {
    "relative_rank": (0.7, 0.8, 0.9, 1.0),
    "relative_fiedler": (0.6, 0.7, 0.8, 0.9),
    "relative_kappa_p10": (1.0, 2.0, 4.0, 7.0),
}
"""Where the healthy range of a metric with limits is divided."""

_TIMES = "\N{MULTIPLICATION SIGN}"

_FACTORS = ((1.02, 1.05, 1.1, 1.2), (1.1, 1.5, 2.0, 4.0), (1.5, 3.0, 10.0, 30.0))
"""Where changes are divided: small ones, usual ones, large ones."""


class Scale(Protocol):
    """Gives colours to one metric of one layer."""

    def kind(self, bucket: Bucket) -> str:
        """Return the class of the most extreme value in a bucket."""

    def legend(self) -> Sequence[tuple[str, str]]:
        """Return the classes with their meanings, lowest first."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The value itself, where it has a healthy range.

    Args:
        metric: One of :data:`stableopt.health.spectra.tiers.TIERS`.
        judge: Returns the standing of a value of this layer.
    """

    metric: str
    judge: Callable[[float], Standing]

    def kind(self, bucket: Bucket) -> str:
        """Return ``"h0"`` (best) to ``"h4"``, ``"warning"``, ``"danger"`` or undefined."""
        low_is_bad = TIERS[self.metric].low_is_bad
        if not bucket.finite and bucket.undefined:
            return UNDEFINED
        value = bucket.low if low_is_bad else bucket.high
        if bucket.infinite and not low_is_bad:
            value = math.inf
        standing = self.judge(value)
        if standing in (Standing.WARNING, Standing.DANGER):
            return str(standing.value)
        place = bisect_right(_STEPS[self.metric], value)
        return f"h{len(_STEPS[self.metric]) - place if low_is_bad else place}"

    def legend(self) -> Sequence[tuple[str, str]]:
        """Return the classes from the best to the worst."""
        tier, steps = TIERS[self.metric], _STEPS[self.metric]
        inner = sorted(steps, reverse=tier.low_is_bad)
        better, worse = ("above", "below") if tier.low_is_bad else ("below", "above")
        edges = [f"{better} {inner[0]:g}"]
        edges += [f"to {edge:g}" for edge in (*inner[1:], tier.warning)]
        found = [(f"h{i}", words) for i, words in enumerate(edges)]
        found.append(("warning", f"▲ warning: {worse} {tier.warning:g}"))
        if tier.danger is not None:
            found.append(("danger", f"■ danger: {worse} {tier.danger:g}"))
        return [*found, (UNDEFINED, "undefined")]


@dataclass(frozen=True, slots=True)
class Change:
    """The change since the first reading of the layer, where no range is known.

    Args:
        first: That reading.
        factors: Where changes are divided, the same ones up and down.
    """

    first: float | None
    factors: tuple[float, ...] = _FACTORS[1]

    def kind(self, bucket: Bucket) -> str:
        """Return ``"d0"`` (fallen most) to ``"d8"`` (risen most), or undefined."""
        if bucket.infinite:
            return "d8"
        if not bucket.finite:
            return UNDEFINED
        return max(self._of(bucket.low), self._of(bucket.high), key=lambda i: abs(int(i[1]) - 4))

    def _of(self, value: float) -> str:
        first = self.first
        if first is None or not math.isfinite(first) or first == 0.0:
            return "d4" if value == first or first != 0.0 else ("d8" if value > 0 else "d0")
        ratio = value / first
        edges = [*(1 / factor for factor in reversed(self.factors)), *self.factors]
        return f"d{bisect_right(edges, ratio) if math.isfinite(ratio) else 8}"

    def legend(self) -> Sequence[tuple[str, str]]:
        """Return the classes from the lowest to the highest."""
        falls = [f"below ÷{factor:g}" for factor in reversed(self.factors)]
        rises = [f"above {_TIMES}{factor:g}" for factor in self.factors]
        words = [*falls, "as first read", *rises]
        return [*((f"d{i}", text) for i, text in enumerate(words)), (UNDEFINED, "undefined")]


def factors_for(traces: Iterable[Trace]) -> tuple[float, ...]:
    """Return where to divide the changes of a metric, so that most of them differ in colour.

    Args:
        traces: Of all layers.
    """
    changes = sorted(
        max(abs(math.log(value / trace.first)) for value in (trace.low, trace.high))
        for trace in traces
        if trace.first and trace.low and trace.high
        if all(0 < value < 1e300 for value in (trace.first, trace.low, trace.high))
    )
    usual = math.exp(changes[int(0.8 * len(changes))]) if changes else 1.0
    return next((f for f in _FACTORS if usual <= f[-1]), _FACTORS[-1])
