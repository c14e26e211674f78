"""An attempt: one call of ``step()``, from what was observed to what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from stableopt.health.spectra.sensed import Sensed
from stableopt.types import Finding, Observation

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from stableopt.health.judge import Alone
    from stableopt.types import Verdict

NOTHING = Observation()
"""What is known of a step that left no trace but its count."""


class Fate(Enum):
    """What has become of the inner step by the time it is judged."""

    OPEN = "open"
    """It is taken if the verdict says so."""
    TAKEN = "taken"
    """It was taken, and its buffers kept: it is too late to skip it."""
    LEFT_OUT = "left out"
    """The device has left it out, and restored its buffers: something was not finite."""


@dataclass(slots=True)
class Attempt:
    """One call of ``step()``.

    Attributes:
        observation: What is known about it.
        numbers: What the judge asked for, on the host.
        sensed: What the sensors have read since the call before.
        fate: What has become of the inner step.
        closure: The closure of an optimizer that is given it.
        loss: What the closure returned.
        result: What the inner optimizer returned.
        lr: The learning rates it was taken with, where they may have changed since.
        found: What is known to be wrong before anything is judged.
        alone: What this rank sees of it by itself, once the ranks have agreed on what is observed.
        flags: What at least one rank has said of it.
        verdict: The verdict, where it was clear from the start.
        seen: Whether anything is known of it but that it was taken.
        of_graph: Whether a graph has taken it: its loss may be that of several steps.
        scans_all: Whether the judge looks at all tensors, and not at the part that is due.
    """

    observation: Observation = NOTHING
    numbers: Sequence[float] = ()
    sensed: Sensed = field(default_factory=Sensed)
    fate: Fate = Fate.OPEN
    closure: Callable[[], Any] | None = None
    loss: Any = None
    result: Any = None
    lr: tuple[float, ...] | None = None
    found: tuple[Finding, ...] = ()
    alone: Alone | None = None
    flags: Collection[str] = ()
    verdict: Verdict | None = None
    seen: bool = True
    of_graph: bool = False
    scans_all: bool = False
