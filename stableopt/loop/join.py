"""The first step on several ranks: they meet, and compare what they were given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stableopt.ranks.support import check_same, check_support
from stableopt.runtime import version

if TYPE_CHECKING:
    from stableopt.loop.parts import Parts


def join_ranks(parts: Parts) -> None:
    """Meet the other ranks: process groups may be made after the optimizer.

    Args:
        parts: Of this rank.

    Raises:
        ConfigError: The ranks were given other options, or cannot agree with these.
        RanksError: A rank is missing.
    """
    if parts.decider is None or not parts.ranks.join():
        return
    check_support(parts.optimizer, lags=parts.lags, model=parts.model)
    options = {
        "stableopt": version.__version__,
        "guard": repr(parts.guard),
        "sensors": repr(None if parts.sensing is None else parts.sensing.options),
        "transforms": repr([item["transform"] for item in parts.transforms.summary()]),
    }
    check_same(parts.ranks, options)
    replicas = parts.decider.replicas
    replicas.parts()
    parts.shares = parts.decider.agree.share(replicas.holders())
    if parts.sensing is not None:
        parts.sensing.meet()
    parts.look_at_graph()
