"""Spikes of the loss and of the gradient norm, against their recent values. No torch."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stableopt.health.steps.baseline import ALIKE, WINDOW, Baseline
from stableopt.types import Finding, Scope

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stableopt.types import Observation


LOSS_FLOOR = 0.02
"""Smallest spread of a loss, as a share of the median of the first losses."""

LOSS_REACH = 3.0
"""Times as far above the median as any of the newest losses, for a spike."""

GRADIENT_FLOOR = 0.8
"""Smallest spread of the logarithm of the gradient norm."""

GRADIENT_REACH = math.log(3.0)
"""Distance of the logarithm of a gradient norm from the largest of the newest, for a spike."""

EARLY_REACH = math.log(100.0)
"""The same from all norms before it, for one of the first gradient norms."""

EARLIEST = 8
"""Gradient norms before the next one is compared with their median. Until then a large one is no
spike if the loss has risen, too: a model that starts as a copy of its teacher has almost no loss
and no gradient at first."""

LOSS_RISE = 10.0
"""Times as large as all losses before it, for a loss that has risen."""


ALIKE_EARLY = 1
"""``ALIKE`` for the first 32 steps, for values of any size: there is no spread yet."""

ALIKE_LOSS = 1
"""``ALIKE`` for losses."""

LOSS_FURTHER = 4.0
"""Times as far above the median as a flagged loss, up to which another loss is like it."""

GRADIENT_FURTHER = math.log(10.0)
"""Distance from the logarithm of a flagged norm, up to which another norm is like it."""


class SpikeDetector:
    """One-sided robust z-scores of the loss, and of the logarithm of the gradient norm.

    A loss is a spike if it is more than ``loss_limit`` spreads above the recent median (a spread is
    at least 2% of the first losses: near zero nothing is a spike), and three times as far above it
    as any of the newest.

    A gradient norm is a spike if its logarithm is so many spreads above the median (a spread is at
    least 0.8, so that six are a factor of 121), if it is three times as large as any of the newest,
    and larger than the first norms were. One of the first eight is a spike if it is a hundred times
    as large as all before it, and the loss has not risen tenfold, too. The norm of every parameter
    group is judged in the same way, because the global norm does not show that of a small group.

    Once three gradient norms were flagged, others that are no larger are normal data, and not
    flagged; in the first 32 steps, one is enough, and so is one loss. If one of loss and gradient
    is normal data, the other is, too.

    Args:
        loss_limit: z-score; ``None`` for no limit.
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
        self._first_is_known = False
        self._explained = False
        self._is_data = False

    def judge(self, observation: Observation) -> tuple[Finding, ...]:
        """Return the spikes in an observation whose gradients are finite."""
        self._out, self._is_data = [], False
        findings = []
        if self._loss_limit is not None and observation.loss is not None and self._loss.ready:
            findings += self._judge_loss(observation.loss, self._loss_limit)
        norm = _norm(observation)
        if self._gradient_limit is not None and norm:
            self._explained = self._loss_has_risen(observation.loss)
            findings += self._judge_gradient(self._gradient, norm, self._gradient_limit)
        return () if self._is_data else tuple(findings)

    def judge_groups(self, observation: Observation) -> dict[int, Finding]:
        """Return the spikes of parameter groups, by the number of the group."""
        limit, found = self._gradient_limit, {}
        for number, norm in () if self._is_data else _groups(observation):
            if limit is not None and number in self._groups:
                for finding in self._judge_gradient(self._groups[number], norm, limit, number):
                    found[number] = finding
        return found

    def _judge_loss(self, loss: float, limit: float) -> list[Finding]:
        if not math.isfinite(loss):
            return []
        base = self._loss
        score = base.score(loss, LOSS_FLOOR * abs(base.first_median or 0.0))
        out = loss - base.median
        # While the loss falls, even the newest may be below the median.
        if score <= limit or out <= LOSS_REACH * max(0.0, base.largest - base.median):
            return []
        before = base.alike(base.median + out / LOSS_FURTHER)
        if before >= ALIKE_LOSS:
            base.renew()
            self._is_data = True
            return []
        self._out.append((base, loss))
        usual = math.exp(GRADIENT_REACH) * self._gradient.usual if self._gradient.ready else None
        how = f"robust z {score:.3g}{_last(before + 1, ALIKE_LOSS)}"
        return [_spike("loss", loss, base.median, how, usual)]

    def _loss_has_risen(self, loss: float | None) -> bool:
        """Return whether one of the first losses is ten times as large as all before it."""
        if loss is None or self._gradient.has(EARLIEST) or not self._loss.has(1):
            return False
        return abs(loss) > LOSS_RISE * max(map(abs, self._loss.newest(WINDOW)))

    def _judge_gradient(
        self, base: Baseline, norm: float, limit: float, group: int | None = None
    ) -> list[Finding]:
        value = math.log(norm)
        enough = ALIKE if base.ready else ALIKE_EARLY
        if base.has(EARLIEST):
            score = base.score(value, GRADIENT_FLOOR)
            if score <= limit:
                return []
            first = -math.inf if base.first_median is None else base.first_median
            out = value > max(base.largest + GRADIENT_REACH, first)
            how = f"robust z {score:.3g}"
        else:
            out = base.has(1) and value > base.largest + EARLY_REACH and not self._explained
            how = "over a hundred times as large as all before it"
        if not out:
            return []
        before = base.alike(value - GRADIENT_FURTHER if base.ready else -math.inf)
        if before >= enough:
            base.renew()
            self._is_data = self._is_data or group is None
            return []
        self._out.append((base, value))
        subject = "gradient norm" if group is None else f"gradient norm of group {group}"
        how += _last(before + 1, enough) if base.ready else ""
        found = _spike(subject, norm, math.exp(base.median), how, base.usual)
        return [replace(found, group=group)]

    def learn(self, observation: Observation) -> None:
        """Remember a healthy observation."""
        if observation.loss is not None and math.isfinite(observation.loss):
            self._loss.add(observation.loss)
        norm = _norm(observation)
        if norm and math.isfinite(norm):
            self._gradient.add(math.log(norm))
        for number, of_group in _groups(observation):
            self._groups.setdefault(number, Baseline()).add(math.log(of_group))

    def note_spike(self) -> None:
        """Flag the spikes of the step that was judged last."""
        for base, value in self._out:
            base.flag(value)
        self._out = []

    def accept(self) -> None:
        """Accept the spikes of the step that was judged last as normal."""
        for base, value in self._out:
            base.accept(value)
        self._out = []

    def first_was_out(self, observation: Observation) -> Finding | None:
        """Return a finding if the very first gradient was a hundred times as large as the next two.

        An optimizer that averages squares of gradients (Adam) would remember it for hundreds of
        steps. Checked once in a run, at the third gradient.
        """
        norm, base = _norm(observation), self._gradient
        if self._first_is_known or not norm or not base.has(2):
            return None
        self._first_is_known = True
        first, second = base.newest(2)
        usual = max(second, math.log(norm))
        if self._gradient_limit is None or base.has(3) or first <= usual + EARLY_REACH:
            return None
        return Finding(
            kind="first_gradient",
            message=f"the first gradient norm was {math.exp(first):.4g}, over a hundred times as "
            f"large as the two after it (at most {math.exp(usual):.4g}), and the optimizer would "
            "remember it for hundreds of steps",
            scope=Scope.SPIKE,
            value=math.exp(first),
            usual=math.exp(usual),
        )

    def forget_groups(self) -> None:
        """Forget the norms of single groups: their numbers have changed."""
        self._groups = {}

    def state_dict(self) -> dict[str, Any]:
        """Return all baselines as plain data."""
        return {
            "loss": self._loss.state_dict(),
            "gradient": self._gradient.state_dict(),
            "groups": {number: base.state_dict() for number, base in self._groups.items()},
        }

    def prepare(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Return what assigns ``state``; an empty one starts all baselines from scratch."""
        loss = Baseline.from_state(state["loss"]) if state else Baseline()
        gradient = Baseline.from_state(state["gradient"]) if state else Baseline()
        groups = {int(n): Baseline.from_state(k) for n, k in state.get("groups", {}).items()}

        def assign() -> None:
            self._loss, self._gradient, self._groups = loss, gradient, groups

        return assign


def _spike(subject: str, value: float, median: float, how: str, usual: float | None) -> Finding:
    return Finding(
        kind=f"{subject.split()[0]}_spike",
        message=f"the {subject} is {value:.4g} where {median:.4g} is usual ({how})",
        scope=Scope.SPIKE,
        value=value,
        usual=usual,
    )


def _last(number: int, enough: int) -> str:
    """Return a note if further values like this spike will be normal."""
    return "; after this one, values like it are taken for data" if number == enough else ""


def _groups(observation: Observation) -> list[tuple[int, float]]:
    """Return the norms of the groups whose logarithms are finite."""
    known = {} if observation.gradients is None else observation.gradients.groups
    return [(number, norm) for number, norm in known.items() if norm and math.isfinite(norm)]


def _norm(observation: Observation) -> float | None:
    return None if observation.gradients is None else observation.gradients.total_value
