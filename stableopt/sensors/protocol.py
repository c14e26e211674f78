"""What a sensor is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One weight that is about to be measured.

    Attributes:
        name: Of the parameter.
        weight: Detached, of at least two dimensions; must not be written.
        seed: Of this weight: the same at every visit, whatever the order of parameters.
        draw: Of this visit: another one at every step.
        memory: What the sensor left behind at its last visit of this weight; ``None`` at
            the first one.
    """

    name: str
    weight: Tensor
    seed: int
    draw: int
    memory: Tensor | None = None


class Result(NamedTuple):
    """The result of a visit.

    Attributes:
        values: A number for every metric of the sensor; NaN where it is undefined.
        memory: For the next visit of this weight; restored by a rollback.
    """

    values: Mapping[str, float]
    memory: Tensor | None = None


class Measurement(NamedTuple):
    """A visit that has been started.

    Attributes:
        sent: Small tensors that are to be brought to the host.
        finish: Makes the result from them once they are there. It is called at the next step:
            it must not read the weight any more.
    """

    sent: Sequence[Tensor]
    finish: Callable[[Sequence[Tensor]], Result]


@runtime_checkable
class Sensor(Protocol):
    """Reads some metrics from a weight.

    Attributes:
        metrics: Their names.
        on_suspicion: Whether only weights are visited that other sensors suspect.
    """

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names."""

    @property
    def on_suspicion(self) -> bool:
        """Whether only suspected weights are visited."""

    def start(self, visit: Visit) -> Measurement:
        """Queue the work on the device of ``visit.weight``; must not wait for it.

        An exception is logged, and the metrics are undefined for this visit.
        """
