"""Check what the user gave before training starts, and read it from plain dicts."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from stableopt.config_sections import SECTIONS, read_sections
from stableopt.errors import ConfigError, unknown_name
from stableopt.guard import Guard, SignalRule
from stableopt.inner import requires_closure
from stableopt.presets import PRESETS
from stableopt.sensors import Sampler, Sensors
from stableopt.sensors.known import SENSORS
from stableopt.telemetry import JsonLines, Writer
from stableopt.telemetry.dispatch import Dispatcher
from stableopt.transforms import Transform
from stableopt.transforms.known import TRANSFORMS

if TYPE_CHECKING:
    from torch.optim import Optimizer

_T = TypeVar("_T")
COMPILE_OPTIONS = ("backend", "mode", "options")
"""What ``compile=`` may choose; the rest follows from what an update is."""

_EXAMPLES = {
    "config": "{'guard': {...}, 'transforms': [...], 'telemetry': ...}",
    "guard": "its options, e.g. {'max_skips': 6}; or False for no guard",
    "transforms entry": "{'ClipGradNorm': {'max_norm': 1.0}}",
    "sensors entry": "{'SampledSpectrum': {'rows': 64}}",
    "use entry": "{'SampledSpectrum': {'rows': 64}}",
}


def check_optimizer(optimizer: object) -> Optimizer:
    """Return ``optimizer`` if it can be wrapped, else raise ``ConfigError``."""
    if isinstance(optimizer, type):
        raise ConfigError(
            f"optimizer={optimizer.__name__} is a class: "
            f"give an instance, e.g. {optimizer.__name__}(model.parameters(), lr=...)"
        )
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            f"optimizer={_type_name(optimizer)} object must be a torch.optim.Optimizer: "
            "give the optimizer itself, e.g. torch.optim.AdamW(model.parameters())"
        )
    for group in optimizer.param_groups:
        check_group(group)
    if optimizer.defaults.get("differentiable"):
        check_group(optimizer.defaults)
    return optimizer


def check_group(group: Mapping[str, Any]) -> None:
    """Refuse a parameter group whose updates are part of the autograd graph."""
    if group.get("differentiable"):
        raise ConfigError(
            "differentiable=True cannot be wrapped: a step that may be skipped has no "
            "gradient; build the optimizer with differentiable=False"
        )


def check_model(model: object, optimizer: Optimizer) -> nn.Module | None:
    """Return ``model`` if it is ``None`` or the module that ``optimizer`` trains."""
    if model is None:
        return None
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model={_type_name(model)} object must be a torch.nn.Module or None")
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in trained for p in model.parameters()):
        raise ConfigError(
            f"model={type(model).__name__} shares no parameter with the optimizer: "
            "give the module whose parameters the optimizer was built from"
        )
    return model


def check_single_process(optimizer: Optimizer) -> None:
    """Refuse several ranks: they do not yet agree on one verdict."""
    advice = "pass guard=False to train without the guard until ranks can agree on a verdict"
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        size = distributed.get_world_size()
        if size > 1:
            raise ConfigError(f"world_size={size} must be 1 with a guard: {advice}")
    kinds = {type(p.data).__name__ for group in optimizer.param_groups for p in group["params"]}
    if "DTensor" in kinds:
        raise ConfigError(f"parameters are DTensors, which the guard cannot judge yet: {advice}")


def make_guard(guard: object) -> Guard | None:
    """Return the guard for the ``guard=`` argument; ``None`` stands for no guard."""
    if guard is None:
        return Guard()
    if guard is False:
        return None
    if isinstance(guard, Guard):
        return guard
    raise ConfigError(
        f"guard={guard!r} must be a stableopt.Guard, None for the default one, "
        "or False for no guard"
    )


def check_compile(given: object, optimizer: Optimizer) -> Mapping[str, Any] | None:
    """Return the options of the ``compile=`` argument; ``None`` stands for not to compile."""
    if given is False:
        return None
    if requires_closure(optimizer):
        raise ConfigError(
            f"compile={given!r} must be False for {type(optimizer).__name__}: it evaluates a "
            "closure inside its step, which cannot be one graph"
        )
    if given is True:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"compile={given!r} must be True, False or a dict of options for torch.compile, e.g. "
            "{'backend': 'inductor'}"
        )
    for key in given:
        if key not in COMPILE_OPTIONS:
            raise unknown_name("compile option", key, COMPILE_OPTIONS)
    return dict(given)


def make_sensors(sensors: object, guard: Guard | None) -> Sensors | None:
    """Return the options for the ``sensors=`` argument; ``None`` stands for no sensors."""
    made = _make_sensors(sensors)
    if made is None and guard is not None and guard.answers_risk:
        what = "act_on_risk=True" if guard.act_on_risk else f"responses={guard.responses!r}"
        raise ConfigError(
            f"{what} needs sensors to read a risk from: leave sensors= out for the default set, "
            "or that option"
        )
    return made


def _make_sensors(sensors: object) -> Sensors | None:
    if sensors is None:
        return Sensors()
    if isinstance(sensors, Sensors):
        return sensors if sensors.use else None
    if isinstance(sensors, (str, bool)) or not isinstance(sensors, Iterable):
        raise ConfigError(
            f"sensors={sensors!r} must be a list of sensors, e.g. [SpectralNorm()], () for none, "
            "None for the default set, or stableopt.sensors.Sensors"
        )
    use = tuple(sensors)
    return Sensors(use=use) if use else None


def make_transforms(transforms: object) -> tuple[Transform, ...]:
    """Return the transforms for the ``transforms=`` argument."""
    if isinstance(transforms, str) or not isinstance(transforms, Iterable):
        raise ConfigError(
            f"transforms={transforms!r} must be a list of transforms, "
            "e.g. transforms=[ClipGradNorm(1.0)]"
        )
    items = tuple(transforms)
    for item in items:
        if isinstance(item, type) or not isinstance(item, Transform):
            raise ConfigError(
                f"transforms has {item!r}, which is no transform: see "
                "stableopt.transforms.Transform for what it needs, as ClipGradNorm(1.0) has it"
            )
    return items


def group_transforms(group: Mapping[str, Any]) -> tuple[Transform, ...]:
    """Return the transforms that a parameter group brings, as objects or as in a config."""
    given = group.get("transforms") or ()
    plain = isinstance(given, (list, tuple)) and any(isinstance(i, (str, Mapping)) for i in given)
    return make_transforms(_read_transforms(given) if plain else given)


def make_telemetry(telemetry: object) -> Dispatcher | None:
    """Return what carries events for the ``telemetry=`` argument."""
    if telemetry is None:
        return None
    if isinstance(telemetry, (str, os.PathLike)):
        if not os.fspath(telemetry):
            raise ConfigError("telemetry='' is no directory: name one, or give None for none")
        return Dispatcher([JsonLines(telemetry)])
    given = telemetry if isinstance(telemetry, (list, tuple)) else [telemetry]
    writers = [_check_writer(writer) for writer in given]
    return Dispatcher(writers) if writers else None


def _check_writer(writer: object) -> Writer:
    if isinstance(writer, type) or not isinstance(writer, Writer):
        raise ConfigError(
            f"telemetry={writer!r} must be None, a directory, or a writer or a list of "
            "writers; a writer has the methods write(event) and close()"
        )
    return writer


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
        "transforms": partial(_read_transforms, preset=preset.get("transforms", ())),
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


def _read_transforms(value: Any, preset: Iterable[Transform] = ()) -> list[Transform]:
    """Read transforms, on top of those of a preset that move something else."""
    given = [] if value is None else _read_named("transforms", value, TRANSFORMS)
    moved = {transform.metric for transform in given}
    return [*(transform for transform in preset if transform.metric not in moved), *given]


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


def _type_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
