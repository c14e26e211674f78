"""Which rules about signals hold, and since when."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from stableopt.guard.responses import Response
from stableopt.health.signal_statistics import (
    OF_COURSE,
    OF_VALUES,
    Course,
    split_metric,
    statistic_of,
)
from stableopt.types import Finding, Scope

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stableopt.guard.rules import SignalRule
    from stableopt.types import Drift

Range = tuple[float, float]
"""The smallest and the largest of what a metric was when it was last told."""


@dataclass(frozen=True, slots=True)
class _Standing:
    """What is known about one rule.

    Attributes:
        held: Its conditions that hold, for their hysteresis.
        row: Observations in a row that met it.
        known: Whether what was last told was a number.
    """

    held: frozenset[str] = field(default_factory=frozenset)
    row: int = 0
    known: bool = True


class RuleBook:
    """Asks every rule whenever one of its signals is observed.

    What is found counts once the step is taken: a batch that is left out teaches nothing.

    Args:
        rules: The rules.
    """

    def __init__(self, rules: Sequence[SignalRule]) -> None:
        self._rules = rules
        self._standings = [_Standing() for _ in rules]
        self._ranges: dict[str, Range] = {}
        self._courses: dict[str, Course] = {}
        self._asked: tuple[list[_Standing], dict[str, Range], dict[str, float]] | None = None
        metrics = {leaf.metric for rule in rules for leaf in rule.leaves()}
        self._metrics = {metric: split_metric(metric) for metric in sorted(metrics)}

    def judge(self, signals: Mapping[str, Any]) -> tuple[Finding, ...]:
        """Return a finding for every rule that begins to hold.

        Args:
            signals: What was observed for this step.
        """
        self._asked = None
        if not self._rules or signals.keys().isdisjoint(s for s, _ in self._metrics.values()):
            return ()
        followed = {signal for signal, name in self._metrics.values() if name in OF_COURSE}
        values = {s: statistic_of(signals[s], "mean") for s in sorted(followed & signals.keys())}
        told = {
            metric: self._range(signals[signal], signal, statistic, values)
            for metric, (signal, statistic) in self._metrics.items()
            if signal in signals
        }
        ranges = {**self._ranges, **told}
        standings, findings = [], []
        for rule, before in zip(self._rules, self._standings, strict=True):
            now = self._ask(rule, before, told, ranges)
            standings.append(now)
            if now.row >= rule.patience > before.row:
                findings.append(_finding(rule, ranges))
        self._asked = standings, ranges, values
        return tuple(findings)

    def _range(
        self, signal: Any, name: str, statistic: str | None, values: Mapping[str, float]
    ) -> Range:
        if statistic is None:
            return statistic_of(signal, "min"), statistic_of(signal, "max")
        if statistic in OF_VALUES:
            found = statistic_of(signal, statistic)
        else:
            found = self._courses.get(name, Course()).statistic(values[name], statistic)
        return found, found

    def _ask(
        self,
        rule: SignalRule,
        before: _Standing,
        told: Mapping[str, Range],
        ranges: Mapping[str, Range],
    ) -> _Standing:
        metrics = {leaf.metric for leaf in rule.leaves()}
        if told.keys().isdisjoint(metrics):
            return before
        if any(math.isnan(end) for metric in metrics & told.keys() for end in told[metric]):
            return replace(before, known=False)
        held = set(before.held)
        meets = rule.trigger.severity(_Evidence(ranges), held) is not None
        return _Standing(frozenset(held), before.row + 1 if meets else 0)

    def settle(self, *, taken: bool) -> None:
        """Learn what was found, if the step was taken."""
        if self._asked is not None and taken:
            self._standings, self._ranges, values = self._asked
            for signal, value in values.items():
                self._courses.setdefault(signal, Course()).add(value)
        self._asked = None

    @property
    def calm(self) -> bool:
        """Whether no rule holds, and every one could be asked."""
        return not any(self._holding()) and all(standing.known for standing in self._standings)

    @property
    def endangered(self) -> bool:
        """Whether a rule holds that does more than warn."""
        acting = [rule.response != Response.WARN.value for rule in self._rules]
        return any(a and holds for a, holds in zip(acting, self._holding(), strict=True))

    def _holding(self) -> list[bool]:
        pairs = zip(self._rules, self._standings, strict=True)
        return [standing.row >= rule.patience for rule, standing in pairs]

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered, as plain data, by rule."""
        pairs = zip(self._rules, self._standings, strict=True)
        return {
            "standings": {repr(r): [sorted(s.held), s.row, s.known] for r, s in pairs},
            "ranges": {metric: list(ends) for metric, ends in self._ranges.items()},
            "courses": {name: course.state_dict() for name, course in self._courses.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with it; a rule that it does not know begins anew."""
        known = state.get("standings", {})
        self._standings = []
        for rule in self._rules:
            held, row, could = known.get(repr(rule), ((), 0, True))
            self._standings.append(_Standing(frozenset(map(str, held)), int(row), bool(could)))
        ranges = state.get("ranges", {})
        self._ranges = {str(m): (float(low), float(high)) for m, (low, high) in ranges.items()}
        courses = state.get("courses", {})
        self._courses = {str(name): Course.from_state(kept) for name, kept in courses.items()}
        self._asked = None


class _Evidence:
    def __init__(self, ranges: Mapping[str, Range]) -> None:
        self._ranges = ranges

    def value(self, metric: str, *, largest: bool) -> float | None:
        found = self._ranges.get(metric)
        if found is None or math.isnan(found[largest]):
            return None
        return found[largest]

    def drift(self, metric: str) -> Drift | None:
        return None


def _finding(rule: SignalRule, ranges: Mapping[str, Range]) -> Finding:
    told, first = [], None
    for metric, upper in dict.fromkeys((leaf.metric, _is_upper(leaf)) for leaf in rule.leaves()):
        if metric in ranges:
            first = ranges[metric][upper] if first is None else first
            told.append(f"{metric} is {ranges[metric][upper]:.4g}")
    times = f", {rule.patience} times in a row" if rule.patience > 1 else ""
    return Finding(
        kind="rule",
        message=f"{' and '.join(told)}: {rule.when}{times}",
        scope=Scope.RULE,
        value=first,
        response=rule.response,
    )


def _is_upper(leaf: Any) -> bool:
    return bool(leaf.is_upper)
