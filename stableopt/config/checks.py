"""Check what is wrapped before training starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from stableopt.errors import ConfigError, unknown_name
from stableopt.update.closures import requires_closure

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
    """Check that the updates of a parameter group are not part of the autograd graph."""
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


def check_compile(given: object, optimizer: Optimizer) -> Mapping[str, Any] | None:
    """Return the options of the ``compile=`` argument, or ``None`` not to compile."""
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


def _type_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
