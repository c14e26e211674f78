"""Which rules about signals hold, and since when."""

from __future__ import annotations

import logging
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stableopt.triggers.awaited import Awaited
from stableopt.triggers.conditions import Limit
from stableopt.triggers.signal_statistics import OF_COURSE, Course, split_metric, statistics_of
from stableopt.types import Finding, Response, Scope

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stableopt.triggers.conditions import Leaf
    from stableopt.triggers.signal_rule import SignalRule
    from stableopt.types import Drift

logger = logging.getLogger("stableopt")

Range = tuple[float, float]
"""The smallest and the largest value of a metric when it last was a number."""


@dataclass(frozen=True, slots=True)
class _Standing:
    """The state of one rule.

    Attributes:
        held: Its conditions that hold, for their hysteresis.
        row: Observations in a row that met its condition.
    """

    held: frozenset[str] = field(default_factory=frozenset)
    row: int = 0


@dataclass(slots=True)
class _Known:
    """The newest values of signals.

    Attributes:
        ranges: Of every metric that was observed as a number.
        undefined: Metrics whose newest observation is NaN.
    """

    ranges: dict[str, Range] = field(default_factory=dict)
    undefined: set[str] = field(default_factory=set)

    def with_observed(self, observed: Mapping[str, Range]) -> _Known:
        """Return the values after these observations."""
        broken = {metric for metric, ends in observed.items() if any(map(math.isnan, ends))}
        numbers = {metric: ends for metric, ends in observed.items() if metric not in broken}
        undefined = (self.undefined | broken) - numbers.keys()
        return _Known({**self.ranges, **numbers}, undefined)

    def value(self, metric: str, *, largest: bool) -> float | None:
        """Return the smallest or the largest value of a metric."""
        found = self.ranges.get(metric)
        return None if found is None else found[largest]

    def drift(self, metric: str) -> Drift | None:
        """Return nothing: rules are not about weights."""
        return None


class RuleBook:
    """Evaluates every rule whenever one of its signals is observed.

    What is found is kept once the step is taken; a skipped batch changes nothing. After a NaN, the
    last number of its metric stays in use, and the run is not calm until there is another number.

    Args:
        rules: The rules.

    Attributes:
        signals: The names of the signals that they read.
    """

    def __init__(self, rules: Sequence[SignalRule]) -> None:
        self._rules = rules
        self._metrics = {rule: frozenset(leaf.metric for leaf in rule.leaves()) for rule in rules}
        self._all = sorted({metric for metrics in self._metrics.values() for metric in metrics})
        self.signals = frozenset(self._all) | {split_metric(metric)[0] for metric in self._all}
        self._standings = [_Standing() for _ in rules]
        self._known = _Known()
        self._courses: dict[str, Course] = {}
        self._asked: tuple[list[_Standing], _Known, dict[str, float]] | None = None
        self._awaited = Awaited()
        self._awaited.expect(self._all)

    def judge(self, signals: Mapping[str, Any]) -> tuple[Finding, ...]:
        """Return a finding for every rule that begins to hold.

        Args:
            signals: What was observed for this step.
        """
        self._asked = None
        if not self._rules:
            return ()
        observed, values = self._observed(signals)
        self._awaited.note(observed.keys())
        if not observed:
            return ()
        known = self._known.with_observed(observed)
        answered = observed.keys() - known.undefined
        standings, findings = [], []
        for rule, before in zip(self._rules, self._standings, strict=True):
            now = before
            if not self._metrics[rule].isdisjoint(answered):
                held = set(before.held)
                meets = rule.trigger.severity(known, held) is not None
                now = _Standing(frozenset(held), before.row + 1 if meets else 0)
            standings.append(now)
            if now.row >= rule.patience > before.row:
                findings.append(_finding(rule, known))
        self._asked = standings, known, values
        return tuple(findings)

    def _observed(self, signals: Mapping[str, Any]) -> tuple[dict[str, Range], dict[str, float]]:
        """Return the values of metrics, and of the signals whose moving averages are kept."""
        wanted: dict[str, dict[str, str | None]] = {}
        for metric in self._all:
            # A signal may have a dot in its name.
            signal, statistic = (metric, None) if metric in signals else split_metric(metric)
            if signal in signals:
                wanted.setdefault(signal, {})[metric] = statistic
        observed: dict[str, Range] = {}
        values: dict[str, float] = {}
        for signal, metrics in wanted.items():
            found = statistics_of(signals[signal])
            for metric, statistic in metrics.items():
                if statistic is None:
                    observed[metric] = found["min"], found["max"]
                elif statistic in OF_COURSE:
                    values[signal] = found["mean"]
                    course = self._courses.get(signal, Course())
                    observed[metric] = (course.statistic(found["mean"], statistic),) * 2
                else:
                    observed[metric] = (found[statistic],) * 2
        return observed, values

    def settle(self, *, taken: bool) -> None:
        """Keep what was found, if the step was taken."""
        if self._asked is not None and taken:
            self._standings, self._known, values = self._asked
            for signal, value in values.items():
                self._courses.setdefault(signal, Course()).add(value)
        self._asked = None

    @property
    def calm(self) -> bool:
        """Whether no rule holds, and the newest observation of every metric is a number."""
        return not self._known.undefined and not any(self._holding())

    @property
    def endangered(self) -> bool:
        """Whether a rule holds that does more than warn."""
        pairs = zip(self._rules, self._standings, strict=True)
        return any(
            rule.response != Response.WARN.value and standing.row >= rule.patience
            for rule, standing in pairs
        )

    def _holding(self) -> list[bool]:
        pairs = zip(self._rules, self._standings, strict=True)
        return [standing.row >= rule.patience for rule, standing in pairs]

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain data, by the condition of each rule."""
        pairs = zip(self._keys(), self._standings, strict=True)
        return {
            "standings": {key: [sorted(s.held), s.row] for key, s in pairs},
            "ranges": {metric: list(ends) for metric, ends in self._known.ranges.items()},
            "undefined": sorted(self._known.undefined),
            "courses": {name: course.state_dict() for name, course in self._courses.items()},
        }

    def prepare(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Return what assigns ``state``; a rule that it does not have starts from scratch."""
        found = dict(state.get("standings", {}))
        pairs = [found.pop(key, ((), 0)) for key in self._keys()]
        standings = [_Standing(frozenset(map(str, held)), int(row)) for held, row in pairs]
        ranges = state.get("ranges", {})
        known = _Known(
            {str(m): (float(low), float(high)) for m, (low, high) in ranges.items()},
            set(state.get("undefined", ())) & set(self._all),
        )
        courses = {str(n): Course.from_state(kept) for n, kept in state.get("courses", {}).items()}

        def assign() -> None:
            self._standings, self._known, self._courses = standings, known, courses
            self._asked = None
            if found:
                logger.warning(
                    "the state of rules that Guard(rules=) does not have now was not loaded: %s",
                    ", ".join(found),
                )

        return assign

    def _keys(self) -> list[str]:
        """Return a name for each rule: its condition, numbered where several have the same."""
        seen: Counter[str] = Counter()
        keys = []
        for rule in self._rules:
            condition = str(rule.when)
            seen[condition] += 1
            keys.append(f"{condition} #{seen[condition]}" if seen[condition] > 1 else condition)
        return keys


def _finding(rule: SignalRule, known: _Known) -> Finding:
    leaves = dict.fromkeys((leaf.metric, _is_upper(leaf)) for leaf in rule.leaves())
    values = [(metric, known.value(metric, largest=upper)) for metric, upper in leaves]
    numbers = [(metric, value) for metric, value in values if value is not None]
    now = " and ".join(f"{metric} is {value:.4g}" for metric, value in numbers)
    times = f", {rule.patience} times in a row" if rule.patience > 1 else ""
    return Finding(
        kind="rule",
        message=f"{now}: {rule.when}{times}",
        scope=Scope.RULE,
        value=numbers[0][1] if numbers else None,
        response=rule.response,
    )


def _is_upper(leaf: Leaf) -> bool:
    return isinstance(leaf, Limit) and leaf.is_upper
