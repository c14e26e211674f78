"""Triggers as text, for configuration files: ``"spectral_norm > 10 | fiedler < 0.4"``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from stableopt.errors import ConfigError
from stableopt.triggers.conditions import AllOf, AnyOf, Limit, above, below, drift

if TYPE_CHECKING:
    from stableopt.triggers.conditions import Trigger

_NAME = re.compile(r"[^\W\d][\w./-]*")
_TOKEN = re.compile(rf"\s*([|&()<>]|{_NAME.pattern}|[-+]?[\d.]+(?:[eE][-+]?\d+)?)")
_GRAMMAR = (
    "metric < number, metric > number, metric > number release number, metric drifts, |, & and "
    "parentheses"
)


def parse_trigger(name: str, text: str) -> Trigger:
    """Parse a trigger, as ``str(trigger)`` writes it.

    ``&`` binds before ``|``.

    Args:
        name: Of the argument, for the message.
        text: The text.

    Raises:
        ConfigError: It is not a trigger.

    Example:
        >>> parse_trigger("when", "spectral_norm > 10").limit
        10.0
    """
    return _Parser(name, text).parse()


class _Parser:
    def __init__(self, name: str, text: str) -> None:
        self._name, self._text = name, text
        self._tokens: list[str] = []
        rest = text.rstrip()
        while rest:
            found = _TOKEN.match(rest)
            if found is None:
                raise self.error(f"{rest.strip()!r} is not understood")
            self._tokens.append(found[1])
            rest = rest[found.end() :]

    def error(self, what: str) -> ConfigError:
        return ConfigError(f"{self._name}={self._text!r} is no trigger, {what}: use {_GRAMMAR}")

    def parse(self) -> Trigger:
        found = self._any_of()
        if self._tokens:
            raise self.error(f"{self._tokens[0]!r} is left over")
        return found

    def _any_of(self) -> Trigger:
        parts = [self._all_of()]
        while self._next_is("|"):
            parts.append(self._all_of())
        return parts[0] if len(parts) == 1 else AnyOf(tuple(parts))

    def _all_of(self) -> Trigger:
        parts = [self._one()]
        while self._next_is("&"):
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else AllOf(tuple(parts))

    def _one(self) -> Trigger:
        if self._next_is("("):
            inner = self._any_of()
            if not self._next_is(")"):
                raise self.error("a parenthesis is not closed")
            return inner
        metric = self._take("a metric")
        if not _NAME.fullmatch(metric):
            raise self.error(f"{metric!r} is where a metric should be")
        sign = self._take("'<', '>' or 'drifts'")
        if sign == "drifts":
            return drift(metric)
        if sign not in ("<", ">"):
            raise self.error(f"{sign!r} is where '<', '>' or 'drifts' should be")
        return self._limit(metric, sign)

    def _limit(self, metric: str, sign: str) -> Limit:
        limit = self._number()
        release = self._number() if self._next_is("release") else None
        return (below if sign == "<" else above)(metric, limit, release=release)

    def _number(self) -> float:
        number = self._take("a number")
        try:
            return float(number)
        except ValueError:
            raise self.error(f"{number!r} is where a number should be") from None

    def _next_is(self, token: str) -> bool:
        found = self._tokens[:1] == [token]
        del self._tokens[:found]
        return found

    def _take(self, what: str) -> str:
        if not self._tokens:
            raise self.error(f"it ends where {what} should be")
        return self._tokens.pop(0)
