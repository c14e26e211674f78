"""The options of a wrapper: objects, or plain data as YAML and Hydra give it."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from stableopt.errors import ConfigError, unknown_name
from stableopt.guard import Guard, SignalRule
from stableopt.sensors import Sampler, Sensors
from stableopt.sensors.registry import SENSORS
from stableopt.telemetry.dispatch import Dispatcher
from stableopt.telemetry.json_lines import JsonLines
from stableopt.telemetry.writer import Writer
from stableopt.transforms.protocol import Transform

_T = TypeVar("_T")
_KEYS = ("guard", "sensors", "transforms", "telemetry", "compile")
_ARC = ("meta_escalation", "hyper_lora", "recursive_solver", "loss_weights")


def arguments_from(config: object) -> dict[str, Any]:
    """Turn a plain dict into keyword arguments of ``StableOptimizer``.

    ``preset`` names one of :mod:`stableopt.presets`; other keys override it, options of the guard
    and of the sensors one by one.

    Raises:
        ConfigError: A key or a preset is unknown.
    """
    from stableopt.presets import PRESETS  # imports every transform

    given = dict(_mapping("config", config, "{'guard': {...}, 'transforms': [...]}"))
    name = given.pop("preset", None)
    if name is not None and (not isinstance(name, str) or name not in PRESETS):
        raise unknown_name("preset", name, PRESETS)
    found = {} if name is None else PRESETS[name]()
    for key, value in given.items():
        if key in _ARC:
            raise ConfigError(
                f"{key}={value!r} is a section of an ARC solver's configuration: read it with "
                "examples/arc_config.py, which returns keyword arguments of StableOptimizer"
            )
        if key not in _KEYS:
            raise unknown_name("config key", key, ["preset", *_KEYS])
        if value is None or (value is True and key in ("guard", "sensors")):
            continue  # the default, or that of the preset
        if key == "transforms":
            found[key] = transforms_on_top(make_transforms(value), found.get(key, ()))
        elif key in found and isinstance(value, Mapping):
            known = {field.name: getattr(found[key], field.name) for field in fields(found[key])}
            found[key] = {**known, **value}
        else:
            found[key] = () if value is False and key in ("sensors", "telemetry") else value
    return found


def make_guard(guard: object) -> Guard | None:
    """Return the guard for the ``guard=`` argument, or ``None`` for no guard."""
    if guard is None:
        return Guard()
    if guard is False:
        return None
    if isinstance(guard, Guard):
        return guard
    if not isinstance(guard, Mapping):
        raise ConfigError(
            f"guard={guard!r} must be a dict of its options, e.g. {{'max_skips': 6}}, a "
            "stableopt.Guard, None for the default one, or False for no guard"
        )
    options = dict(guard)
    if isinstance(options.get("rules"), (list, tuple)):
        options["rules"] = [_rule(entry) for entry in options["rules"]]
    return _build("guard", Guard, options)


def _rule(entry: Any) -> Any:
    if isinstance(entry, str):
        return SignalRule(entry)
    return _build("rule", SignalRule, entry) if isinstance(entry, Mapping) else entry


def make_sensors(sensors: object, guard: Guard | None) -> Sensors | None:
    """Return the options for the ``sensors=`` argument, or ``None`` for no sensors."""
    if sensors is None or sensors is True:
        made = Sensors()
    elif sensors is False:
        made = Sensors(use=())
    elif isinstance(sensors, Sensors):
        made = sensors
    elif isinstance(sensors, Mapping):
        options = dict(sensors)
        if isinstance(options.get("use"), list):
            options["use"] = _listed("use", options["use"], lambda: SENSORS)
        if isinstance(options.get("sampler"), Mapping):
            options["sampler"] = _build("sampler", Sampler, options["sampler"])
        made = _build("sensors", Sensors, options)
    else:
        made = Sensors(use=tuple(_listed("sensors", sensors, lambda: SENSORS)))
    if not made.use and guard is not None and guard.answers_risk:
        what = "act_on_risk=True" if guard.act_on_risk else f"responses={guard.responses!r}"
        raise ConfigError(
            f"{what} needs sensors to read a risk from: leave sensors= out for the default set, "
            "or that option"
        )
    return made if made.use else None


def make_transforms(transforms: object) -> tuple[Transform, ...]:
    """Return the transforms for the ``transforms=`` argument, or of a parameter group."""
    items = tuple(_listed("transforms", transforms, _transforms_by_name))
    for item in items:
        if isinstance(item, type) or not isinstance(item, Transform):
            raise ConfigError(
                f"transforms has {item!r}, which is no transform: see "
                "stableopt.transforms.Transform for what it needs, as ClipGradNorm(1.0) has it"
            )
    return items


def group_transforms(group: Mapping[str, Any]) -> tuple[Transform, ...]:
    """Return the transforms that a parameter group has."""
    return make_transforms(group.get("transforms") or ())


def transforms_on_top(
    given: Iterable[Transform], known: Iterable[Transform]
) -> tuple[Transform, ...]:
    """Return those known that move something else than those given, and those given."""
    added = tuple(given)
    moved = {transform.metric for transform in added}
    return (*(transform for transform in known if transform.metric not in moved), *added)


def make_telemetry(telemetry: object) -> Dispatcher | None:
    """Return what carries events for the ``telemetry=`` argument."""
    if telemetry is None:
        return None
    if isinstance(telemetry, Mapping):
        telemetry = _build("telemetry", JsonLines, telemetry)
    if isinstance(telemetry, (str, os.PathLike)):
        if not os.fspath(telemetry):
            raise ConfigError("telemetry='' is no directory: name one, or give None for none")
        telemetry = JsonLines(telemetry)
    writers: list[Any] = list(telemetry) if isinstance(telemetry, (list, tuple)) else [telemetry]
    for writer in writers:
        if isinstance(writer, type) or not isinstance(writer, Writer):
            raise ConfigError(
                f"telemetry={writer!r} must be None, a directory, or a writer or a list of "
                "writers; a writer has the methods write(event) and close()"
            )
    return Dispatcher(writers) if writers else None


def _transforms_by_name() -> Mapping[str, Callable[..., Transform]]:
    from stableopt.transforms.registry import TRANSFORMS  # imports every transform

    return TRANSFORMS


def _listed(where: str, given: object, known: Callable[[], Mapping[str, Any]]) -> list[Any]:
    """Return a list of objects, after making those that are given by name."""
    if isinstance(given, (str, bool, Mapping)) or not isinstance(given, Iterable):
        kind = "transforms" if where == "transforms" else "sensors"
        entry = {"transforms": {"ClipGradNorm": {"max_norm": 1.0}}, "sensors": "SpectralNorm"}[kind]
        raise ConfigError(
            f"{where}={given!r} must be a list of {kind}, as objects or by name, e.g. "
            f"{[entry]}, or () for none"
        )
    found = []
    for entry in given:
        if not isinstance(entry, (str, Mapping)):
            found.append(entry)
            continue
        item = {entry: None} if isinstance(entry, str) else entry
        if len(item) != 1:
            raise ConfigError(f"{where} entry={dict(item)!r} must have one key, which is the name")
        ((name, options),) = item.items()
        if name not in known():
            raise unknown_name(f"{where} entry", name, known())
        found.append(_build(name, known()[name], options or {}))
    return found


def _build(where: str, make: Callable[..., _T], options: object) -> _T:
    """Call ``make`` with options that are checked against its signature first."""
    given = _mapping(where, options, "its options by name")
    parameters = inspect.signature(make).parameters
    for key in given:
        if key not in parameters:
            raise unknown_name(f"{where} option", key, parameters)
    needed = [n for n, p in parameters.items() if p.default is p.empty and n not in given]
    if needed:
        raise ConfigError(
            f"{where}={dict(given)!r} lacks {', '.join(needed)}: give every option that has "
            "no default"
        )
    return make(**given)


def _mapping(where: str, value: object, example: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}={value!r} must be a dict: {example}")
    return value
