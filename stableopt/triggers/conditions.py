"""When to act: limits on metrics and signals, their algebra, hysteresis and severity."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from stableopt.errors import ConfigError, require_number
from stableopt.types import FOLLOWED

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableSet

    from stableopt.types import Drift


class Evidence(Protocol):
    """The readings and signals of one weight."""

    def value(self, metric: str, *, largest: bool) -> float | None:
        """Return the newest value of a metric or a signal; ``None`` if there is none.

        Args:
            metric: Its name.
            largest: Whether to return the largest of many values, or the smallest.
        """

    def drift(self, metric: str) -> Drift | None:
        """Return the confirmed drift of a metric, if there is one."""


@runtime_checkable
class Trigger(Protocol):
    """Decides whether to act on a weight, and how hard."""

    def leaves(self) -> Iterator[Leaf]:
        """Return its single conditions."""

    def severity(self, evidence: Evidence, held: MutableSet[str]) -> float | None:
        """Return how bad it is, from 0 to 1; ``None`` if it does not trigger.

        Args:
            evidence: About one weight.
            held: The conditions of that weight that hold; updated.
        """


class _Combinable:
    """Gives triggers their ``|`` and ``&``."""

    def __or__(self, other: Trigger) -> Trigger:
        return AnyOf((check_trigger("trigger", self), other))

    def __and__(self, other: Trigger) -> Trigger:
        return AllOf((check_trigger("trigger", self), other))


@dataclass(frozen=True)
class Limit(_Combinable):
    """A bound on one metric, with hysteresis; see :func:`below` and :func:`above`.

    Attributes:
        metric: What is bounded.
        limit: The bound, above 0.
        is_upper: Whether values above it trigger, or those below.
        release: The value at which it stops triggering again.
        fixed: Severity whenever it triggers; computed if ``None``.
    """

    metric: str
    limit: float
    is_upper: bool
    release: float
    fixed: float | None = None

    def leaves(self) -> Iterator[Leaf]:
        """Return itself."""
        yield self

    def severity(self, evidence: Evidence, held: MutableSet[str]) -> float | None:
        """Return ``(limit - v)/limit`` below a bound, ``min(1, ln(v/limit))`` above one."""
        value = evidence.value(self.metric, largest=self.is_upper)
        bound = self.release if str(self) in held else self.limit
        if value is None or not self._beyond(value, bound):
            held.discard(str(self))
            return None
        held.add(str(self))
        if self.fixed is not None:
            return self.fixed
        if not self._beyond(value, self.limit):
            return 0.0
        if self.is_upper:
            return 1.0 if math.isinf(value) else min(1.0, math.log(value / self.limit))
        return min(1.0, (self.limit - value) / self.limit)

    def _beyond(self, value: float, bound: float) -> bool:
        return value > bound if self.is_upper else value < bound

    def __str__(self) -> str:
        release = "" if self.release == self.limit else f" release {_plain(self.release)}"
        return f"{self.metric} {'>' if self.is_upper else '<'} {_plain(self.limit)}{release}"


def _plain(number: float) -> str:
    """Return a number as text that means the same number."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


@dataclass(frozen=True)
class Drifted(_Combinable):
    """A metric that has left its own course; see :func:`drift`.

    Attributes:
        metric: Whose course is followed.
    """

    metric: str

    def leaves(self) -> Iterator[Leaf]:
        """Return itself."""
        yield self

    def severity(self, evidence: Evidence, held: MutableSet[str]) -> float | None:
        """Return ``min(1, |ln(v/limit)|)``: how far beyond its limit it is."""
        drift = evidence.drift(self.metric)
        if drift is None:
            return None
        if min(drift.value, drift.limit) <= 0:
            return 1.0
        return min(1.0, abs(math.log(drift.value / drift.limit)))

    def __str__(self) -> str:
        return f"{self.metric} drifts"


Leaf = Limit | Drifted


@dataclass(frozen=True)
class _Combined(_Combinable):
    parts: tuple[Trigger, ...]

    def __post_init__(self) -> None:
        """Replace parts of the same kind by their own parts."""
        found: list[Trigger] = []
        for part in self.parts:
            found += (
                part.parts if isinstance(part, type(self)) else [check_trigger("trigger", part)]
            )
        if not found:
            raise ConfigError(f"parts={self.parts!r} must be at least one trigger")
        object.__setattr__(self, "parts", tuple(found))

    def leaves(self) -> Iterator[Leaf]:
        """Return the leaves of all parts."""
        for part in self.parts:
            yield from part.leaves()

    def _severities(self, evidence: Evidence, held: MutableSet[str]) -> list[float]:
        """Return those of the parts that trigger, after all were evaluated."""
        found = [part.severity(evidence, held) for part in self.parts]
        return [severity for severity in found if severity is not None]

    def _text(self, sign: str, in_parentheses: type) -> str:
        inner = (f"({p})" if isinstance(p, in_parentheses) else str(p) for p in self.parts)
        return sign.join(inner)


class AnyOf(_Combined):
    """Triggers when one of its parts does; the severity is the largest.

    Attributes:
        parts: The parts.
    """

    def severity(self, evidence: Evidence, held: MutableSet[str]) -> float | None:
        """Return the largest severity of the parts that trigger."""
        return max(self._severities(evidence, held), default=None)

    def __str__(self) -> str:
        return self._text(" | ", AllOf)


class AllOf(_Combined):
    """Triggers when all of its parts do; the severity is the smallest.

    Attributes:
        parts: The parts.
    """

    def severity(self, evidence: Evidence, held: MutableSet[str]) -> float | None:
        """Return the smallest severity of the parts, if all of them trigger."""
        found = self._severities(evidence, held)
        return min(found) if len(found) == len(self.parts) else None

    def __str__(self) -> str:
        return self._text(" & ", AnyOf)


def below(
    metric: str, limit: float, *, release: float | None = None, severity: float | None = None
) -> Limit:
    """Trigger while ``metric`` is below ``limit``.

    The severity is ``(limit - v) / limit``: 0 at the limit, 1 at zero. Once it has triggered it
    stops at ``release`` only, so that it does not flicker around the limit. A value that is
    undefined or not known triggers nothing.

    Args:
        metric: Of a sensor (the documentation lists them), or a signal of ``observe()``.
        limit: Above 0.
        release: At least ``limit``; the same if not given.
        severity: In [0, 1], in place of the computed one.

    Raises:
        ConfigError: A value is out of range.

    Example:
        >>> str(below("relative_rank", 0.45) | above("spectral_norm", 10.0))
        'relative_rank < 0.45 | spectral_norm > 10'
    """
    return _limit(metric, limit, False, release, severity)


def above(
    metric: str, limit: float, *, release: float | None = None, severity: float | None = None
) -> Limit:
    """Trigger while ``metric`` is above ``limit``.

    The severity is ``min(1, ln(v / limit))``: 0 at the limit, 1 from e times the limit on. Once
    it has triggered it stops at ``release`` only.

    Args:
        metric: Of a sensor (the documentation lists them), or a signal of ``observe()``.
        limit: Above 0.
        release: Above 0 and at most ``limit``; the same if not given.
        severity: In [0, 1], in place of the computed one.

    Raises:
        ConfigError: A value is out of range.

    Example:
        >>> above("spectral_norm", 0)
        Traceback (most recent call last):
        ...
        stableopt.errors.ConfigError: limit=0 must be a number above 0: the bound on spectral_norm
    """
    return _limit(metric, limit, True, release, severity)


def drift(metric: str) -> Drifted:
    """Trigger while ``metric`` is off the course that its own past predicts, twice in a row.

    Args:
        metric: One whose course is followed: see :mod:`stableopt.health.spectra.drift`.

    Raises:
        ConfigError: The course of that metric is not followed.

    Example:
        >>> str(drift("spectral_norm") & above("spectral_norm", 4.0))
        'spectral_norm drifts & spectral_norm > 4'
    """
    if not isinstance(metric, str) or metric not in FOLLOWED:
        known = ", ".join(FOLLOWED)
        raise ConfigError(f"metric={metric!r} has no course that is followed: use one of {known}")
    return Drifted(metric)


def check_trigger(name: str, value: object) -> Trigger:
    """Return ``value`` if it is a trigger, and parse it if it is the text of one.

    Raises:
        ConfigError: It is not.
    """
    if isinstance(value, str):
        from stableopt.triggers.text import parse_trigger

        return parse_trigger(name, value)
    if isinstance(value, type) or not isinstance(value, Trigger):
        raise ConfigError(
            f"{name}={value!r} must be a trigger, e.g. above('spectral_norm', 10.0) or "
            "'spectral_norm > 10': see stableopt.triggers.conditions"
        )
    return value


def _limit(
    metric: str, limit: float, is_upper: bool, release: float | None, severity: float | None
) -> Limit:
    """Return a checked limit whose numbers are plain floats, whatever they were given as."""
    if not isinstance(metric, str) or not metric:
        raise ConfigError(f"metric={metric!r} must be the name of a metric or a signal")
    require_number("limit", limit, math.inf, f"the bound on {metric}")
    if limit > sys.float_info.max:
        raise ConfigError(f"limit={limit!r} must be finite: nothing is beyond it")
    if release is None:
        release = limit
    require_number("release", release, sys.float_info.max, "where it stops triggering")
    if (release > limit) if is_upper else (release < limit):
        least = "at most" if is_upper else "at least"
        raise ConfigError(
            f"release={release!r} must be {least} limit={limit!r}: it is where it stops triggering"
        )
    is_number = isinstance(severity, (int, float)) and not isinstance(severity, bool)
    if severity is not None and not (is_number and 0 <= severity <= 1):
        raise ConfigError(f"severity={severity!r} must be a number from 0 to 1, or None")
    fixed = None if severity is None else float(severity)
    return Limit(metric, float(limit), is_upper, float(release), fixed)
