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
    """What is known about one weight."""

    def value(self, metric: str, *, largest: bool) -> float | None:
        """Return the newest value of a metric or a signal; ``None`` if nothing is known.

        Args:
            metric: Its name.
            largest: Whether it is the largest of many values that counts, or the smallest.
        """

    def drift(self, metric: str) -> Drift | None:
        """Return the confirmed drift of a metric, if there is one."""


@runtime_checkable
class Trigger(Protocol):
    """Decides whether to act on a weight, and how hard."""

    def leaves(self) -> Iterator[Leaf]:
        """Return the single conditions that it is made of."""

    def severity(self, evidence: Evidence, held: MutableSet[str]) -> float | None:
        """Return how bad it is, from 0 to 1, or ``None`` where there is nothing to do.

        Args:
            evidence: About one weight.
            held: Which conditions of that weight hold; updated.
        """


class _Combinable:
    """Gives triggers their ``|`` and ``&``."""

    def __or__(self, other: Trigger) -> Trigger:
        return AnyOf((_trigger(self), _trigger(other)))

    def __and__(self, other: Trigger) -> Trigger:
        return AllOf((_trigger(self), _trigger(other)))


@dataclass(frozen=True)
class Limit(_Combinable):
    """A bound on one metric, with hysteresis; see :func:`below` and :func:`above`.

    Attributes:
        metric: What is bounded.
        limit: The bound, above 0.
        is_upper: Whether values above it trigger, or those below.
        release: The value at which it lets go again.
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
        """Return ``min(1, |ln(v/limit)|)``: how far beyond the limit of its course it is."""
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
class AnyOf(_Combinable):
    """Triggers when one of its parts does; the severity is the largest.

    Attributes:
        parts: The parts.
    """

    parts: tuple[Trigger, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", _flat(self.parts, AnyOf))

    def leaves(self) -> Iterator[Leaf]:
        """Return the leaves of all parts."""
        for part in self.parts:
            yield from part.leaves()

    def severity(self, evidence: Evidence, held: MutableSet[str]) -> float | None:
        """Return the largest severity of the parts that trigger."""
        found = [part.severity(evidence, held) for part in self.parts]
        return max((severity for severity in found if severity is not None), default=None)

    def __str__(self) -> str:
        return " | ".join(_inside(part, AllOf) for part in self.parts)


@dataclass(frozen=True)
class AllOf(_Combinable):
    """Triggers when all of its parts do; the severity is the smallest.

    Attributes:
        parts: The parts.
    """

    parts: tuple[Trigger, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", _flat(self.parts, AllOf))

    def leaves(self) -> Iterator[Leaf]:
        """Return the leaves of all parts."""
        for part in self.parts:
            yield from part.leaves()

    def severity(self, evidence: Evidence, held: MutableSet[str]) -> float | None:
        """Return the smallest severity of the parts, if all of them trigger."""
        found = [part.severity(evidence, held) for part in self.parts]
        present = [severity for severity in found if severity is not None]
        return min(present) if len(present) == len(found) else None

    def __str__(self) -> str:
        return " & ".join(_inside(part, AnyOf) for part in self.parts)


def below(
    metric: str, limit: float, *, release: float | None = None, severity: float | None = None
) -> Limit:
    """Trigger while ``metric`` is below ``limit``.

    The severity is ``(limit - v) / limit``: 0 at the limit, 1 at zero. Once it has triggered it
    lets go at ``release`` only, so that what was just corrected does not flicker. A value that
    is undefined or not known triggers nothing.

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
    _check_limit(metric, limit, release, severity)
    if release is not None and release < limit:
        raise ConfigError(
            f"release={release!r} must be at least limit={limit!r}: it says where it lets go"
        )
    return _limit(metric, limit, False, release, severity)


def above(
    metric: str, limit: float, *, release: float | None = None, severity: float | None = None
) -> Limit:
    """Trigger while ``metric`` is above ``limit``.

    The severity is ``min(1, ln(v / limit))``: 0 at the limit, 1 from e times the limit on. Once
    it has triggered it lets go at ``release`` only.

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
    _check_limit(metric, limit, release, severity)
    if release is not None and release > limit:
        raise ConfigError(
            f"release={release!r} must be at most limit={limit!r}: it says where it lets go"
        )
    return _limit(metric, limit, True, release, severity)


def drift(metric: str) -> Drifted:
    """Trigger while ``metric`` is off the course that its own past predicts, two visits running.

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
    """Return ``value`` if it is a trigger, or what it means if it is the text of one.

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


def _trigger(value: object) -> Trigger:
    return check_trigger("trigger", value)


def _inside(part: Trigger, kind: type) -> str:
    return f"({part})" if isinstance(part, kind) else str(part)


def _flat(parts: tuple[Trigger, ...], kind: type[AnyOf] | type[AllOf]) -> tuple[Trigger, ...]:
    """Return the parts, with those of parts of the same kind in their place."""
    found: list[Trigger] = []
    for part in parts:
        found += part.parts if isinstance(part, kind) else [_trigger(part)]
    if not found:
        raise ConfigError(f"parts={parts!r} must be at least one trigger: there is nothing to ask")
    return tuple(found)


def _limit(
    metric: str, limit: float, is_upper: bool, release: float | None, severity: float | None
) -> Limit:
    """Return a limit whose numbers are plain floats, whatever numbers they were given as."""
    lets_go = float(limit if release is None else release)
    return Limit(
        metric, float(limit), is_upper, lets_go, None if severity is None else float(severity)
    )


def _check_limit(metric: object, limit: object, release: object, severity: object) -> None:
    if not isinstance(metric, str) or not metric:
        raise ConfigError(f"metric={metric!r} must be the name of a metric or a signal")
    require_number("limit", limit, math.inf, f"the bound on {metric}")
    if limit > sys.float_info.max:  # type: ignore[operator]
        raise ConfigError(f"limit={limit!r} must be finite: nothing is beyond it")
    if release is not None:
        require_number("release", release, sys.float_info.max, "the value at which it lets go")
    is_number = isinstance(severity, (int, float)) and not isinstance(severity, bool)
    if severity is not None and not (is_number and 0 <= severity <= 1):  # type: ignore[operator]
        raise ConfigError(f"severity={severity!r} must be a number from 0 to 1, or None")
