"""How much memory weights, gradients, optimizer state and snapshots take."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from stableopt.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Mapping

STATE: Mapping[str, float] = {
    "adadelta": 2,
    "adafactor": 0.002,
    "adagrad": 1,
    "adam": 2,
    "adamax": 2,
    "adamw": 2,
    "amsgrad": 3,
    "asgd": 1,
    "lion": 1,
    "muon": 1,
    "nadam": 2,
    "radam": 2,
    "rmsprop": 1,
    "rprop": 2,
    "sgd": 0,
    "sgd-momentum": 1,
}
"""Numbers that an optimizer keeps for each trained parameter.

Adafactor keeps a row and a column for each matrix: counted as for one of 1,000 x 1,000.
"""

WIDTHS: Mapping[str, int] = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number."""

_SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Memory in bytes.

    Attributes:
        weights: All parameters, frozen ones included.
        gradients: Of the trained ones.
        state: Of the inner optimizer.
        slot: One snapshot.
        snapshots: All of them.
        buffers: The copy of the buffers that a skipped step restores.
        bare: What a training takes without stableopt, activations not included.
        total: What it takes with it.
    """

    weights: int
    gradients: int
    state: int
    slot: int
    snapshots: int
    buffers: int
    bare: int
    total: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


def estimate_memory(
    params: float,
    *,
    trainable: float | None = None,
    dtype: str = "float32",
    optimizer: str = "adamw",
    slots: int = 3,
    buffers: float = 0,
) -> Estimate:
    """Return what a training takes, with ``slots`` snapshots.

    A snapshot holds the parameters that the optimizer was given, its state, and the buffers::

        slot  = (trainable + state per parameter * trainable + buffers) * bytes of a number
        total = weights + gradients + state + buffers + slots * slot + one more copy of the buffers

    Activations are not included; step counters (4 bytes for each tensor) are left out.

    Args:
        params: Parameters of the model.
        trainable: Those that the optimizer was given; ``None`` for all.
        dtype: Of parameters, gradients, state and buffers.
        optimizer: A key of ``STATE``, in upper or lower case.
        slots: ``Guard.slots``: 0, or at least 2.
        buffers: Numbers in the buffers of the model.

    Raises:
        ConfigError: A value is out of range, or a name is not known.

    Example:
        >>> estimate_memory(7e9, dtype="bfloat16").snapshots == 3 * 3 * 7 * 10**9 * 2
        True
    """
    trained = params if trainable is None else trainable
    _require("params", params, 1, math.inf, "the parameters of the model")
    _require("trainable", trained, 0, params, "no more than params")
    _require("buffers", buffers, 0, math.inf, "numbers in the buffers of the model")
    if slots != 0 and slots < 2:
        raise ConfigError(f"slots={slots} must be 0 or at least 2: how many snapshots are kept")
    if dtype not in WIDTHS:
        raise unknown_name("dtype", dtype, WIDTHS)
    if optimizer.lower() not in STATE:
        raise unknown_name("optimizer", optimizer, STATE)
    width = WIDTHS[dtype]
    weights, gradients, kept = (round(n) * width for n in (params, trained, buffers))
    state = round(STATE[optimizer.lower()] * trained) * width
    slot = gradients + state + kept
    bare = weights + gradients + state + kept
    return Estimate(
        weights=weights,
        gradients=gradients,
        state=state,
        slot=slot,
        snapshots=slots * slot,
        buffers=kept,
        bare=bare,
        total=bare + slots * slot + kept,
    )


def parse_count(name: str, text: str) -> float:
    """Return the number in ``"7e9"``, ``"7B"``, ``"350M"``, ``"7_000_000"``.

    Args:
        name: Of the option, for the error.
        text: A number, with K, M, B or T behind it or not.

    Raises:
        ConfigError: It is none.

    Example:
        >>> parse_count("params", "7B") == parse_count("params", "7e9") == 7e9
        True
    """
    number, suffix = text.strip(), ""
    if number and number[-1].upper() in _SUFFIXES:
        number, suffix = number[:-1], number[-1].upper()
    try:
        return float(number) * _SUFFIXES[suffix]
    except ValueError:
        raise ConfigError(
            f"{name}={text!r} must be a number such as 7e9, 7B or 350M: write it without spaces"
        ) from None


def _require(name: str, value: float, least: float, most: float, meaning: str) -> None:
    if not (least <= value <= most and math.isfinite(value)):
        top = f" and at most {most:g}" if math.isfinite(most) else ""
        raise ConfigError(f"{name}={value:g} must be at least {least:g}{top}: {meaning}")
