"""The options of the guard."""

from __future__ import annotations

from dataclasses import dataclass

from stableopt.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """Options of the guard, which judges every step before it is taken.

    Attributes:
        max_skips: How many steps in a row may be skipped; the next bad one stops the run
            with :class:`~stableopt.DivergenceError`. At least 0.

    Example:
        >>> Guard(max_skips=2)
        Guard(max_skips=2)
        >>> Guard(max_skips=-1)
        Traceback (most recent call last):
            ...
        stableopt.errors.ConfigError: max_skips=-1 must be an int of at least 0: \
how many bad steps in a row may be skipped before the run stops
    """

    max_skips: int = 6

    def __post_init__(self) -> None:
        if isinstance(self.max_skips, bool) or not isinstance(self.max_skips, int):
            self._refuse()
        if self.max_skips < 0:
            self._refuse()

    def _refuse(self) -> None:
        raise ConfigError(
            f"max_skips={self.max_skips!r} must be an int of at least 0: "
            "how many bad steps in a row may be skipped before the run stops"
        )
