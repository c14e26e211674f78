"""Check what the user gave before training starts, and read it from plain dicts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from stableopt.errors import ConfigError, unknown_name
from stableopt.guard import Guard
from stableopt.sensors import Sensors
from stableopt.telemetry.dispatch import Dispatcher
from stableopt.telemetry.json_lines import JsonLines
from stableopt.telemetry.writer import Writer
from stableopt.transforms.protocol import Transform
from stableopt.update.closures import requires_closure

if TYPE_CHECKING:
    from torch.optim import Optimizer

_T = TypeVar("_T")
COMPILE_OPTIONS = ("backend", "mode", "options")
"""What ``compile=`` may choose; the rest follows from what an update is."""


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
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        raise ConfigError(
            f"optimizer={_type_name(optimizer)} object must be an optimizer of its own, and has "
            "never called Optimizer.__init__: wrap the one that it passes on to; where it comes "
            "from accelerator.prepare(), wrap first, and prepare the StableOptimizer"
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


def transforms_on_top(
    given: Iterable[Transform], known: Iterable[Transform]
) -> tuple[Transform, ...]:
    """Return those known that move something else than those given, and those given."""
    added = tuple(given)
    moved = {transform.metric for transform in added}
    return (*(transform for transform in known if transform.metric not in moved), *added)


def group_transforms(group: Mapping[str, Any]) -> tuple[Transform, ...]:
    """Return the transforms that a parameter group brings, as objects or as in a config."""
    given = group.get("transforms") or ()
    plain = isinstance(given, (list, tuple)) and any(isinstance(i, (str, Mapping)) for i in given)
    if not plain:
        return make_transforms(given)
    from stableopt.config.reader import read_transforms  # builds on everything there is

    return make_transforms(read_transforms(given))


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


def _type_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
