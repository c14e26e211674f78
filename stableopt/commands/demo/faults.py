"""What can go wrong in the demo, and where in a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

POISONED = 5
"""Batches in a row that the fault ``batch`` replaces."""

EXPONENT = 30
"""The bit of a float32 that multiplies what is below 2 in magnitude by 2¹²⁸."""


class Inject(str, Enum):
    """Which fault to inject."""

    NONE = "none"
    NAN_GRAD = "nan-grad"
    INF_GRAD = "inf-grad"
    WEIGHTS = "weights"
    BIT_FLIP = "bit-flip"
    MOMENTS = "moments"
    BUFFERS = "buffers"
    BATCH = "batch"


class Stage(Enum):
    """Where in a step a fault strikes."""

    BATCH = "before the forward pass"
    GRADIENT = "between the backward pass and the optimizer's step"
    STATE = "after the step, before the next forward pass"


class Kind(NamedTuple):
    """One kind of fault.

    Attributes:
        stage: Where in a step it strikes.
        says: What happens, as a sentence without its time.
        label: The same for a legend.
        lasts: Steps in a row that it strikes.
        place: When it strikes by default, as a share of all steps.
    """

    stage: Stage
    says: str
    label: str
    lasts: int = 1
    place: float = 0.5


_FLIP = f"bit {EXPONENT} of one weight flips: it is still finite, and absurdly large"
_MOMENT = "one element of AdamW's second moments becomes Inf: its weight learns no more"
_BUFFER = "one element of the table of positions, a buffer, becomes NaN"
_NOISE = f"noise replaces the text of {POISONED} batches in a row"

KINDS: Mapping[Inject, Kind] = {
    Inject.NAN_GRAD: Kind(
        Stage.GRADIENT, "one element of one gradient becomes NaN", "NaN in one gradient"
    ),
    Inject.INF_GRAD: Kind(
        Stage.GRADIENT, "one element of one gradient becomes Inf", "Inf in one gradient"
    ),
    Inject.WEIGHTS: Kind(Stage.STATE, "one weight becomes NaN", "one weight becomes NaN"),
    Inject.BIT_FLIP: Kind(Stage.STATE, _FLIP, "one bit of one weight flips"),
    # An Inf in the second moment divides every update of one weight by infinity: the weight
    # never moves again, and neither the loss nor a gradient shows it.
    Inject.MOMENTS: Kind(Stage.STATE, _MOMENT, "Inf in one second moment"),
    Inject.BUFFERS: Kind(Stage.STATE, _BUFFER, "NaN in one buffer"),
    # Later than the others: a loss is a spike if it stands out from the last 128, and from
    # those at the very beginning, when nothing is learned yet, not even noise does.
    Inject.BATCH: Kind(Stage.BATCH, _NOISE, f"{POISONED} batches of noise", POISONED, 0.7),
}
"""Every fault that can be injected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong once, and when.

    Attributes:
        kind: What; not ``Inject.NONE``.
        at: In which step, from 1, or after it.
    """

    kind: Inject
    at: int

    @property
    def does(self) -> Kind:
        """Where and how it strikes."""
        return KINDS[self.kind]


def announce_fault(fault: Fault) -> str:
    """Return what will happen, and when, as a sentence."""
    kind = fault.does
    when = {Stage.BATCH: "From step", Stage.GRADIENT: "In step", Stage.STATE: "After step"}
    return f"{when[kind.stage]} {fault.at} {'on ' if kind.lasts > 1 else ''}{kind.says}."
