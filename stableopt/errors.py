"""Errors, and checks whose messages say what was given, the constraint and what to do."""

from __future__ import annotations

import math
import numbers
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from stableopt.types import Event


class StableOptError(Exception):
    """Root of every error that stableopt raises on purpose."""


class ConfigError(StableOptError, ValueError):
    """An invalid setting; raised before training starts.

    The message has the form ``name=value``, the constraint, what to do.
    """


class DivergenceError(StableOptError, RuntimeError):
    """The run cannot go on: it failed more often than the guard allows.

    Attributes:
        event: The :class:`~stableopt.types.Event` that stopped the run.
        ledger: Every intervention of the run so far, the last one included.
    """

    def __init__(self, message: str, event: Event, ledger: Sequence[Event]) -> None:
        super().__init__(message)
        self.event = event
        self.ledger = tuple(ledger)

    def __reduce__(self) -> tuple[type[DivergenceError], tuple[object, ...]]:
        """Keep event and ledger when the error crosses a process boundary."""
        return type(self), (self.args[0], self.event, self.ledger)


class RanksError(StableOptError, RuntimeError):
    """The ranks of a job cannot take one verdict: one is missing, or they are out of step.

    Args:
        message: What is wrong, and what to do.
        cause: The message of ``torch.distributed``, where there is one.
    """

    def __init__(self, message: str, cause: str = "") -> None:
        super().__init__(f"{message} ({cause})" if cause else message)


class MissingExtraError(StableOptError, ImportError):
    """An optional dependency is not installed; the message has the pip command.

    Args:
        feature: What was asked for, e.g. ``"stableopt demo"``.
        extra: The extra of ``pyproject.toml`` that brings it, e.g. ``"cli"``.
    """

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs packages that are not installed. "
            f"Install them with: pip install 'stableopt[{extra}]'"
        )
        self.feature = feature
        self.extra = extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        """Rebuild from the arguments, not from the finished message."""
        return type(self), (self.feature, self.extra)


def unknown_name(what: str, given: object, known: Iterable[str]) -> ConfigError:
    """Build the error for a name that is not one of ``known``, with the nearest one."""
    names = sorted(known)
    near = get_close_matches(str(given), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ConfigError(f"{what}={given!r} is not known: use one of {', '.join(names)}{hint}")


def require_int(name: str, value: Any, least: int, meaning: str) -> None:
    """Raise ``ConfigError`` unless ``value`` is an int of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}={value!r} must be an int of at least {least}: {meaning}")


def require_number(name: str, value: Any, most: float, meaning: str) -> None:
    """Raise ``ConfigError`` unless ``value`` is a number above 0 and at most ``most``."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not 0 < value <= most:
        top = "" if math.isinf(most) else f" and at most {most:g}"
        raise ConfigError(f"{name}={value!r} must be a number above 0{top}: {meaning}")


def finite(value: Any) -> float:
    """Return a number of a checkpoint if it is finite.

    Raises:
        TypeError, ValueError: It is not a finite number.
    """
    if not math.isfinite(value):
        raise ValueError(f"{value!r} is not finite")
    return value  # type: ignore[no-any-return]
