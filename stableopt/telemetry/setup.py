"""What a run was set up with, as the flat parameters that trackers compare runs by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from stableopt.telemetry.encode import plain

if TYPE_CHECKING:
    from torch.optim import Optimizer

NORMALIZERS = ("SpectralNormalization", "SpectralCap")
"""The transforms that bound the spectral norm of weights."""

_SETUP = ("optimizer", "parameters", "compiled", "guard", "versions")


def hyperparameters(optimizer: Optimizer) -> dict[str, Any]:
    """Return the options of an optimizer as plain values.

    The defaults that it was built with, and under ``groups`` what parameter groups have
    otherwise (their learning rate before any schedule), if any does.

    Args:
        optimizer: Any.

    Example:
        >>> import torch
        >>> sgd = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(1))]}], lr=0.1)
        >>> hyperparameters(sgd)["lr"]
        0.1
    """
    defaults = _options(optimizer.defaults)
    groups = [_options(group) for group in optimizer.param_groups]
    if isinstance(optimizer.defaults.get("lr"), Tensor) and groups:
        defaults["lr"] = groups[0]["lr"]  # a schedule writes into the default, too
    differ = {
        str(number): {k: v for k, v in group.items() if k in defaults and v != defaults[k]}
        for number, group in enumerate(groups)
    }
    differ = {number: options for number, options in differ.items() if options}
    return {**defaults, **({"groups": differ} if differ else {})}


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: _option(value) for key, value in group.items() if key != "params"}
    if group.get("initial_lr") is not None:
        found["lr"] = _option(group["initial_lr"])
    return {key: value for key, value in found.items() if value is not None}


def _option(value: Any) -> Any:
    if isinstance(value, Tensor):
        return plain(float(value)) if value.numel() == 1 else None
    if isinstance(value, (bool, int, float, str)):
        return plain(value)
    if isinstance(value, (list, tuple)) and len(value) <= 8:
        items = [_option(item) for item in value]
        return None if None in items else items
    return None


def flat_setup(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the setup in a summary as one level of plain values, names joined by ``/``.

    Args:
        summary: What ``opt.summary()`` returns.

    Example:
        >>> flat_setup({"optimizer": "SGD", "guard": {"slots": 3}, "hyperparameters": {"lr": 0.1}})
        {'optimizer': 'SGD', 'lr': 0.1, 'spectral_norm': False, 'guard/slots': 3}
    """
    setup: dict[str, Any] = {}
    if "optimizer" in summary:
        setup["optimizer"] = summary["optimizer"]
    setup.update(_flat(summary.get("hyperparameters", {})))
    setup["spectral_norm"] = uses_spectral_norm(summary)
    for key in _SETUP[1:]:
        if key in summary:
            setup.update(_flat({key: summary[key]}))
    for number, entry in enumerate(summary.get("transforms") or ()):
        setup[f"transforms/{number}"] = entry["transform"]
    sensors = summary.get("sensors")
    for number, sensor in enumerate(sensors["use"] if isinstance(sensors, Mapping) else ()):
        setup[f"sensors/{number}"] = sensor
    return setup


def uses_spectral_norm(summary: Mapping[str, Any]) -> bool:
    """Return whether the transforms of a run bound the spectral norm of weights."""
    names = [str(entry["transform"]) for entry in summary.get("transforms") or ()]
    return any(name.partition("(")[0] in NORMALIZERS for name in names)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found.update(_flat(value, f"{prefix}{name}/"))
        else:
            found[f"{prefix}{name}"] = value
    return found
