"""A wrapper from a plain dict, as YAML or Hydra gives it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from stableopt.config.arc_sections import SECTIONS, read_sections
from stableopt.config.checks import transforms_on_top
from stableopt.errors import ConfigError, unknown_name
from stableopt.guard import Guard, SignalRule
from stableopt.presets import PRESETS
from stableopt.sensors import Sampler, Sensors
from stableopt.sensors.registry import SENSORS
from stableopt.telemetry.json_lines import JsonLines
from stableopt.transforms.registry import TRANSFORMS

if TYPE_CHECKING:
    from stableopt.transforms import Transform

_T = TypeVar("_T")

_EXAMPLES = {
    "config": "{'guard': {...}, 'transforms': [...], 'telemetry': ...}",
    "guard": "its options, e.g. {'max_skips': 6}; or False for no guard",
    "transforms entry": "{'ClipGradNorm': {'max_norm': 1.0}}",
    "sensors entry": "{'SampledSpectrum': {'rows': 64}}",
    "use entry": "{'SampledSpectrum': {'rows': 64}}",
}


def arguments_from(config: object) -> dict[str, Any]:
    """Turn a plain dict (YAML, Hydra) into keyword arguments of ``StableOptimizer``.

    ``preset`` names one of :mod:`stableopt.presets`; what is given beside it comes on top,
    the options of the guard one by one.
    """
    options = dict(_mapping("config", config))
    rules, clamps = read_sections({key: options.pop(key) for key in SECTIONS if key in options})
    preset = _read_preset(options.pop("preset", None))
    readers: dict[str, Callable[[Any], Any]] = {
        "guard": partial(_read_guard, preset=preset.get("guard")),
        "sensors": partial(_read_sensors, preset=preset.get("sensors")),
        "transforms": partial(read_transforms, preset=preset.get("transforms", ())),
        "telemetry": _read_telemetry,
        "compile": lambda value: value,
    }
    for key in options:
        if key not in readers:
            raise unknown_name("config key", key, ["preset", *readers, *SECTIONS])
    found = {**preset, **{key: readers[key](value) for key, value in options.items()}}
    if clamps:
        found["transforms"] = [*found.get("transforms", ()), *clamps]
    return {**found, "guard": _with_rules(found.get("guard"), rules)} if rules else found


def _with_rules(guard: Guard | bool | None, rules: list[SignalRule]) -> Guard:
    if guard is False:
        raise ConfigError("guard=False leaves meta_escalation nobody to ask: use a guard")
    known = guard if isinstance(guard, Guard) else Guard()
    return replace(known, rules=(*known.rules, *rules))


def _read_preset(name: Any) -> dict[str, Any]:
    if name is None:
        return {}
    if not isinstance(name, str) or name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return PRESETS[name]()


def _read_guard(value: Any, preset: Guard | None = None) -> Guard | bool | None:
    if value is None or value is True:
        return preset
    if value is False or isinstance(value, Guard):
        return value
    given = dict(_mapping("guard", value))
    if isinstance(given.get("rules"), (list, tuple)):
        given["rules"] = [_read_rule(entry) for entry in given["rules"]]
    known = {} if preset is None else {f.name: getattr(preset, f.name) for f in fields(preset)}
    return _build("guard", Guard, {**known, **given})


def _read_rule(value: Any) -> Any:
    if isinstance(value, str):
        return SignalRule(value)
    return _build("rule", SignalRule, value) if isinstance(value, Mapping) else value


def read_transforms(value: Any, preset: Iterable[Transform] = ()) -> list[Transform]:
    """Read transforms, on top of those of a preset that move something else."""
    given = [] if value is None else _read_named("transforms", value, TRANSFORMS)
    return list(transforms_on_top(given, preset))


def _read_sensors(value: Any, preset: Sensors | None = None) -> Any:
    if value is None or value is True:
        return preset
    if value is False:
        return ()
    if not isinstance(value, Mapping):
        return _read_named("sensors", value, SENSORS)
    given = dict(value)
    if isinstance(given.get("use"), list):
        given["use"] = _read_named("use", given["use"], SENSORS)
    if isinstance(given.get("sampler"), Mapping):
        given["sampler"] = _build("sampler", Sampler, given["sampler"])
    known = {} if preset is None else {f.name: getattr(preset, f.name) for f in fields(preset)}
    return _build("sensors", Sensors, {**known, **given})


def _read_named(where: str, value: Any, known: Mapping[str, Callable[..., _T]]) -> list[_T]:
    """Build a list of objects from ``{name: options}`` each, or a bare name."""
    example = _EXAMPLES[f"{where} entry"]
    if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
        raise ConfigError(f"{where}={value!r} must be a list with one entry each, e.g. [{example}]")
    found = []
    for entry in value:
        item = {entry: {}} if isinstance(entry, str) else _mapping(f"{where} entry", entry)
        if len(item) != 1:
            raise ConfigError(
                f"{where} entry={dict(item)!r} must have one key, the name, e.g. {example}"
            )
        ((name, options),) = item.items()
        if name not in known:
            raise unknown_name(where.removesuffix("s"), name, known)
        found.append(_build(name, known[name], _mapping(name, options or {})))
    return found


def _read_telemetry(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _build("telemetry", JsonLines, value)
    return None if value is False else value


def _build(where: str, make: Callable[..., _T], options: Mapping[str, Any]) -> _T:
    """Call ``make`` with options that are checked against its signature first."""
    parameters = inspect.signature(make).parameters
    for key in options:
        if key not in parameters:
            raise unknown_name(f"{where} option", key, parameters)
    needed = [n for n, p in parameters.items() if p.default is p.empty and n not in options]
    if needed:
        raise ConfigError(
            f"{where}={dict(options)!r} lacks {', '.join(needed)}: give every option that has "
            "no default"
        )
    return make(**options)


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        example = _EXAMPLES.get(name, "its options by name")
        raise ConfigError(f"{name}={value!r} must be a dict: {example}")
    return value
