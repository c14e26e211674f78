"""What a transform is: options that are bound to parameters, and what then acts on them."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from stableopt.transforms.selection import Select
    from stableopt.triggers.conditions import Evidence
    from stableopt.types import GradientNorms


class Phase(str, Enum):
    """When a transform acts in a step that is taken."""

    GRADIENT = "gradient"
    """Before the inner optimizer's step, on gradients; where a line search evaluates the closure
    many times, after each evaluation."""
    UPDATE = "update"
    """After it, on the way that weights have gone in it: before all that bounds weights."""
    WEIGHT = "weight"
    """After it, on weights."""


class Needs(NamedTuple):
    """What must be there for a transform to act.

    Attributes:
        metrics: That its trigger reads; from sensors, or signals of ``observe()``.
        previous: Whether it compares the weights with those before the step.
        lr: Whether it asks for learning rates.
    """

    metrics: tuple[str, ...] = ()
    previous: bool = False
    lr: bool = False


class Target(NamedTuple):
    """A parameter that is acted on.

    Attributes:
        name: For people, and the key of what is remembered about it.
        place: ``(group, index)`` in the optimizer. Trainers swap parameters under an optimizer:
            they are never held, but looked up in every step.
    """

    name: str
    place: tuple[int, int]


class Change(NamedTuple):
    """What was done to one parameter.

    Attributes:
        name: Of the parameter; empty if it concerns all of them at once.
        before: The metric of the transform before it acted.
        after: And after.
    """

    name: str
    before: float
    after: float


class Moment(Protocol):
    """What can be known while a transform acts."""

    @property
    def step(self) -> int:
        """Updates behind the weights, this one included; goes back with a rollback."""

    @property
    def gradients(self) -> GradientNorms | None:
        """The norms of the gradients, measured anew where another transform has changed them.

        ``None`` without gradients.
        """

    @property
    def signals(self) -> Mapping[str, Any]:
        """What was told to ``observe()`` for this step."""

    def parameter(self, target: Target) -> Tensor:
        """Return the parameter as it is now; it may be written in place."""

    def gradient(self, target: Target) -> Tensor | None:
        """Return its gradient, if it has one; it may be written in place."""

    def previous(self) -> Sequence[Tensor]:
        """Return copies of its targets from before the step, to do with as it likes."""

    def lr(self, target: Target) -> float | None:
        """Return the learning rate that the step was taken with; ``None`` if there is none."""

    def peak_lr(self, target: Target) -> float | None:
        """Return the largest learning rate of its group so far, before any backoff of ours."""

    def evidence(self, target: Target) -> Evidence:
        """Return what sensors and signals say about it."""

    def is_fresh(self, target: Target, metrics: Sequence[str]) -> bool:
        """Tell whether any of ``metrics`` was read or told since the last step was taken."""


class Site(Protocol):
    """Where a transform is to act."""

    @property
    def model(self) -> nn.Module | None:
        """The model, if it is known."""

    @property
    def targets(self) -> Sequence[Target]:
        """The parameters that are selected."""

    @property
    def everything(self) -> Sequence[Target]:
        """All parameters that are trained."""

    def parameter(self, target: Target) -> Tensor:
        """Return the parameter as it is now."""


@runtime_checkable
class Actuator(Protocol):
    """A transform that has found its parameters."""

    @property
    def targets(self) -> Sequence[Target]:
        """The parameters that it acts on."""

    def act(self, moment: Moment) -> Sequence[Change]:
        """Change gradients or weights in place, under ``no_grad``; return what was changed.

        What need not be changed must stay as it is, bit for bit.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered as plain data, by the names of parameters."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what a checkpoint or a snapshot remembers; what it lacks starts anew."""


class Stateless:
    """What an actuator inherits that remembers nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing."""


@runtime_checkable
class Transform(Protocol):
    """The options of a transform; may be given to any number of optimizers."""

    @property
    def params(self) -> Select:
        """Which parameters; ``None`` for all that it can act on."""

    @property
    def phase(self) -> Phase:
        """When it acts."""

    @property
    def metric(self) -> str:
        """What it moves. No parameter may have two transforms that move the same."""

    @property
    def routine(self) -> bool:
        """Whether acting is what it does in healthy training, too, and no intervention."""

    @property
    def needs(self) -> Needs:
        """What must be there."""

    def bind(self, site: Site) -> Actuator:
        """Find the parameters to act on.

        Raises:
            NothingSelectedError: There are none.
            ConfigError: They are not what it can act on.
        """
