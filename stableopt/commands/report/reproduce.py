"""What a run was configured with, in the form that ``from_config`` takes."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stableopt.recorded.run import Run


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
    guard = run.setting("guard")
    if guard is not None:
        config["guard"] = guard
    transforms = run.setting("transforms")
    if isinstance(transforms, list) and transforms:
        found = [_transform(entry, beyond) for entry in transforms if isinstance(entry, dict)]
        config["transforms"] = [entry for entry in found if entry is not None]
    sensors = run.setting("sensors")
    if sensors is False:
        config["sensors"] = False
    elif isinstance(sensors, dict):
        known = {key: sensors.get(key) for key in _SENSING if sensors.get(key) is not None}
        if "budget" in sensors and sensors["budget"] is None:
            known["budget"] = None  # no limit, which is not the default
        if "judged_by" in sensors:
            known["risk"] = sensors["judged_by"]
        config["sensors"] = {"use": list(_sensors(sensors.get("use"), beyond)), **known}
    compiled = run.setting("compiled")
    if compiled:
        config["compile"] = True
    return Recipe(config, beyond)


def _transform(entry: dict[str, Any], beyond: list[str]) -> dict[str, Any] | None:
    text = str(entry.get("transform", ""))
    if "group" in entry:
        beyond.append(f"{text} belongs to parameter group {entry['group']}.")
        return None
    found = read_call(text)
    if found is None:
        beyond.append(f"{text} has options that a config cannot hold.")
    return found


def _sensors(use: Any, beyond: list[str]) -> Iterable[dict[str, Any]]:
    for text in use if isinstance(use, list) else ():
        found = read_call(str(text))
        if found is None:
            beyond.append(f"{text} has options that a config cannot hold.")
        else:
            yield found


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
