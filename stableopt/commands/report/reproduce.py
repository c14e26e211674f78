"""The configuration of a run, as ``from_config`` takes it."""

from __future__ import annotations

import ast
from typing import Any, NamedTuple

from stableopt.recorded.run import Run
from stableopt.recorded.values import dict_of, list_of

_SENSING = ("sampler", "budget", "params", "heads")


class Recipe(NamedTuple):
    """How to build the same wrapper again.

    Attributes:
        config: For :meth:`stableopt.StableOptimizer.from_config`.
        beyond: What it does not hold, one sentence each.
    """

    config: dict[str, Any]
    beyond: list[str]


def recipe_of(run: Run) -> Recipe:
    """Return the configuration of a run, from its summary.

    Args:
        run: Whose; without a summary the configuration is empty.

    Example:
        >>> from pathlib import Path
        >>> from stableopt.recorded.run import Run
        >>> run = Run(Path("telemetry.jsonl"))
        >>> run.summary = {"guard": False, "transforms": [{"transform": "UpdateCap(ratio=0.1)"}]}
        >>> recipe_of(run).config
        {'guard': False, 'transforms': [{'UpdateCap': {'ratio': 0.1}}]}
    """
    config: dict[str, Any] = {}
    beyond: list[str] = []
    if (guard := run.setting("guard")) is not None:
        config["guard"] = guard
    if transforms := list_of(run.setting("transforms")):
        config["transforms"] = []
        for entry in map(dict_of, transforms):
            text = str(entry.get("transform", ""))
            if "group" in entry:
                beyond.append(f"{text} belongs to parameter group {entry['group']}.")
            elif entry:
                config["transforms"] += _read(text, beyond)
    sensors = run.setting("sensors")
    if sensors is False:
        config["sensors"] = False
    elif isinstance(sensors, dict):
        known = {key: sensors.get(key) for key in _SENSING if sensors.get(key) is not None}
        if "budget" in sensors and sensors["budget"] is None:
            known["budget"] = None  # no limit, which is not the default
        if "judged_by" in sensors:
            known["risk"] = sensors["judged_by"]
        use = map(str, list_of(sensors.get("use")))
        config["sensors"] = {"use": [e for text in use for e in _read(text, beyond)], **known}
    if run.setting("compiled"):
        config["compile"] = True
    return Recipe(config, beyond)


def _read(text: str, beyond: list[str]) -> list[dict[str, Any]]:
    """Return the entry of a config that an object's ``repr`` stands for, or none."""
    found = read_call(text)
    if found is None:
        beyond.append(f"{text} has options that a config cannot hold.")
    return [] if found is None else [found]


def read_call(text: str) -> dict[str, Any] | None:
    """Return ``{name: options}`` of an object's ``repr``; ``None`` if it is not that plain.

    Options that are ``None`` are left out: nothing was asked for. Nothing is executed.

    Example:
        >>> read_call("ClipGradNorm(max_norm=1.0, params=None)")
        {'ClipGradNorm': {'max_norm': 1.0}}
        >>> read_call("SpectralCap(limit=2, when=above('kappa_p10', 10))") is None
        True
    """
    try:
        call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            return None
        options = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords if k.arg}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if len(options) != len(call.keywords):
        return None
    return {call.func.id: {key: value for key, value in options.items() if value is not None}}
