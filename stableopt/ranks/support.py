"""What ranks that take one verdict must have in common, and what cannot work among them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from stableopt.errors import ConfigError
from stableopt.update.closures import requires_closure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn
    from torch.optim import Optimizer

    from stableopt.ranks.group import Ranks

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_ALONE = "pass guard=False to train without the guard"


def check_support(optimizer: Optimizer, *, lags: bool, model: nn.Module | None = None) -> None:
    """Refuse what several ranks cannot judge together.

    Args:
        optimizer: The inner optimizer.
        lags: Whether ``sync="lagged"`` was asked for.
        model: The model, if it was given.

    Raises:
        ConfigError: With what to do instead.
    """
    name = type(optimizer).__name__
    if name == "ZeroRedundancyOptimizer":
        raise ConfigError(
            f"optimizer={name} must not be used with a guard: a snapshot does not see its moments, "
            f"which it hides; use torch.distributed.fsdp.fully_shard, or {_ALONE}"
        )
    if requires_closure(optimizer):
        raise ConfigError(
            f"optimizer={name} must not be used with a guard on several ranks: its line search "
            f"takes other points on each of them; {_ALONE}"
        )
    if lags:
        raise ConfigError(
            "sync='lagged' must not be asked for on several ranks: they agree on a step before it "
            "is taken; use sync='exact'"
        )
    if getattr(getattr(model, "_join_config", None), "enable", False):
        raise ConfigError(
            "model.join() must not be used with a guard: a rank that has run out of batches would "
            "not call step() any more; give all ranks as many batches (drop_last=True)"
        )
    params = [p for group in optimizer.param_groups for p in group["params"]]
    if any(hasattr(p, "_fsdp_flattened") for p in params):
        raise ConfigError(
            "the parameters are those of FullyShardedDataParallel, which the guard cannot judge: "
            f"use torch.distributed.fsdp.fully_shard, or {_ALONE}"
        )


def check_same(ranks: Ranks, options: Mapping[str, str]) -> None:
    """Refuse ranks that were given other options than the first.

    Args:
        ranks: All of them call this at once.
        options: What has to be the same, as text.

    Raises:
        ConfigError: On every rank.
    """
    everybody = ranks.gather(dict(options), "the first step")
    for rank, theirs in enumerate(everybody):
        for name, value in everybody[0].items():
            if _plain(theirs.get(name, "")) != _plain(value):
                raise ConfigError(
                    f"{name}={theirs.get(name)} on rank {rank} must be the same on all ranks: it "
                    f"is {value} on rank 0; give every rank the same options, or group=False to "
                    "let each decide for itself"
                )


def _plain(text: str) -> str:
    """Return the ``repr`` of something without its address in memory."""
    return _ADDRESS.sub("", text)
