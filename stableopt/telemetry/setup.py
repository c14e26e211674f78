"""The setup of a run as flat parameters, by which trackers compare runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from stableopt.telemetry.encode import plain
from stableopt.telemetry.metrics import flat

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.optim import Optimizer

NORMALIZERS = ("SpectralNormalization", "SpectralCap")
"""The transforms that bound the spectral norm of weights."""

_SETUP = ("parameters", "compiled", "guard", "versions")


def hyperparameters(optimizer: Optimizer) -> dict[str, Any]:
    """Return the options of an optimizer as plain values.

    The defaults that it was built with, and under ``groups`` the options of parameter groups that
    differ (learning rates as they were before any schedule), if there are any.

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
    transforms, sensors = summary.get("transforms") or (), summary.get("sensors") or {}
    return {
        **{key: summary[key] for key in ("optimizer",) if key in summary},
        **flat(summary.get("hyperparameters", {})),
        "spectral_norm": uses_spectral_norm(summary),
        **flat({key: summary[key] for key in _SETUP if key in summary}),
        **{f"transforms/{n}": entry["transform"] for n, entry in enumerate(transforms)},
        **{f"sensors/{n}": sensor for n, sensor in enumerate(sensors.get("use", ()))},
    }


def uses_spectral_norm(summary: Mapping[str, Any]) -> bool:
    """Return whether the transforms of a run bound the spectral norm of weights."""
    names = [str(entry["transform"]) for entry in summary.get("transforms") or ()]
    return any(name.partition("(")[0] in NORMALIZERS for name in names)
