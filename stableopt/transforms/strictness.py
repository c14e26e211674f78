"""How strictly a bound is held that is computed from weights, and how often."""

from __future__ import annotations

from stableopt.errors import ConfigError, require_int, require_number


def check_strictness(slack: float, every: int) -> None:
    """Refuse what no bound from weights can be held with.

    Args:
        slack: How far above the limit the bound may be.
        every: Updates from one look at the weights to the next.

    Raises:
        ConfigError: One of them is out of range.
    """
    require_number("slack", slack, 1e6, "how far above the limit the bound may be")
    if slack < 1:
        raise ConfigError(f"slack={slack!r} must be at least 1, which holds the limit")
    require_int("every", every, 1, "updates from one look at the weights to the next")
