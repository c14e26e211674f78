"""What of ours lies beside the inner optimizer's state in a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from stableopt.errors import ConfigError
from stableopt.guard import Guard
from stableopt.guard.policy import Policy
from stableopt.health.spectra.sensing import check_sensing
from stableopt.health.steps.spikes import SpikeDetector
from stableopt.telemetry.ledger import clocks_of
from stableopt.transforms.chain import check_transforming
from stableopt.triggers.rule_book import RuleBook

KEY = "stableopt"
"""Under which name it lies there."""


def check_checkpoint(state: object) -> None:
    """Refuse what no ``state_dict()`` of ours has written, before anything is loaded.

    Args:
        state: Plain data: the clocks, the counts of the policy, the detectors' baselines.

    Raises:
        ConfigError: It is broken.
    """
    try:
        if isinstance(state, Mapping):
            clocks_of(state)
            int(state.get("calm", 0))
            RuleBook(()).load_state_dict(state.get("rules", {}))
            Policy(Guard()).load_state_dict(_numbers(state.get("policy", {})))
            if "baselines" in state:
                SpikeDetector(None, None).load_state_dict(_numbers(state["baselines"]))
            if "sensing" in state:
                check_sensing(state["sensing"])
            if "transforms" in state:
                check_transforming(state["transforms"])
            return
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    raise ConfigError(
        f"state_dict[{KEY!r}]={state!r:.200} is not what state_dict() writes: "
        "delete the key to start our clocks and counts anew"
    )


def _numbers(value: Any) -> Any:
    """Return ``value`` if it is nested plain data of finite numbers."""
    for item in value.values() if isinstance(value, Mapping) else value:
        if isinstance(item, (Mapping, list)):
            _numbers(item)
        elif item is not None and not math.isfinite(item):
            raise ValueError(item)
    return value
