"""Bring transforms and parameters together, and refuse what cannot work."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NamedTuple

from stableopt.errors import ConfigError
from stableopt.runtime.names import parameter_names
from stableopt.runtime.storage import has_data
from stableopt.sensors.registry import METRICS
from stableopt.transforms.previous import Previous
from stableopt.transforms.protocol import Actuator, Target
from stableopt.transforms.selection import NothingSelectedError, selection
from stableopt.transforms.where_found import WhereFound

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from stableopt.transforms.protocol import Transform
    from stableopt.types import Act

logger = logging.getLogger("stableopt")


class Given(NamedTuple):
    """A transform, and the number of the parameter group it was given with, if any."""

    transform: Transform
    group: int | None = None


@dataclass
class Bound:
    """A transform at work.

    Attributes:
        given: What it is.
        actuator: What acts for it.
        sensed: The metrics that it reads from sensors.
        told: Those that it reads from what is told to ``observe()``.
        previous: The weights before a step, if it asks for them.
        steps: In how many steps it has acted.
        changes: On how many parameters, all steps together.
        last: The call in which it has acted last.
        newest: What it did then.
    """

    given: Given
    actuator: Actuator
    sensed: tuple[str, ...]
    told: tuple[str, ...] = ()
    previous: Previous | None = None
    steps: int = 0
    changes: int = 0
    last: int | None = None
    newest: Act | None = field(default=None, repr=False)

    def count_on(self, before: Bound) -> None:
        """Go on with the counts of the same transform, as it was bound before."""
        self.steps, self.changes = before.steps, before.changes
        self.last, self.newest = before.last, before.newest

    @property
    def key(self) -> str:
        """What it is remembered by: the same in every process."""
        group = "" if self.given.group is None else f"{self.given.group}: "
        return group + re.sub(r" at 0x[0-9a-fA-F]+", "", repr(self.given.transform))

    def summary(self) -> dict[str, Any]:
        """Return what it is and has done, as plain values."""
        return {
            "transform": repr(self.given.transform),
            **({} if self.given.group is None else {"group": self.given.group}),
            "parameters": len(self.actuator.targets),
            "steps": self.steps,
            "changes": self.changes,
            "newest": None if self.newest is None else self.newest.to_dict(),
        }


class Field:
    """The parameters of an optimizer by name, as of now.

    Args:
        optimizer: Whose they are.
        model: Gives names.

    Attributes:
        targets: All of them that are trained: not frozen, and with values already.
        lazy: How many have none yet.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module | None) -> None:
        self._optimizer = optimizer
        self.model = model
        names = parameter_names(optimizer, model)
        every = [Target(name, place) for place, name in _unique(names).items()]
        shaped = [target for target in every if has_data(self.parameter(target))]
        self.lazy = len(every) - len(shaped)
        self._shaped = shaped
        self.targets = [target for target in shaped if self.parameter(target).requires_grad]

    def parameter(self, target: Target) -> Tensor:
        """Return the parameter as it is now."""
        group, index = target.place
        found: Tensor = self._optimizer.param_groups[group]["params"][index]
        return found

    def select(self, given: Given) -> _Site:
        """Return what a transform may act on.

        Raises:
            ConfigError: A pattern matches nothing.
        """
        inside = [t for t in self._shaped if given.group in (None, t.place[0])]
        chosen = selection("params", given.transform.params).among(inside, self.model)
        return _Site(self, [t for t in chosen if self.parameter(t).requires_grad])


class _Site:
    """The part of a field that a transform may act on."""

    def __init__(self, whole: Field, targets: Sequence[Target]) -> None:
        self._whole = whole
        self.targets = targets

    @property
    def model(self) -> nn.Module | None:
        return self._whole.model

    @property
    def everything(self) -> Sequence[Target]:
        return self._whole.targets

    def parameter(self, target: Target) -> Tensor:
        return self._whole.parameter(target)


def _unique(names: Mapping[tuple[int, int], str]) -> dict[tuple[int, int], str]:
    """Return names of which no two are the same: what is remembered goes by them."""
    seen: set[str] = set()
    found = {}
    for (group, index), name in names.items():
        found[group, index] = f"{name} ({group}.{index})" if name in seen else name
        seen.add(name)
    return found


def bind(
    field: Field,
    transforms: Sequence[Given],
    measured: Mapping[str, Collection[str]],
    rested: Collection[int] = (),
) -> list[Bound]:
    """Bind every transform to its parameters.

    Args:
        field: The parameters.
        transforms: In the order in which they act.
        measured: By metric, the names of the weights that a sensor visits.
        rested: Positions of transforms that may find nothing: they did once, and all that they
            acted on is frozen for now.

    Raises:
        ConfigError: A transform finds no parameter, reads what nobody measures, or moves what
            another one moves already.
    """
    found: list[Bound] = []
    owners: dict[tuple[str, str], Transform] = {}
    for i, given in enumerate(transforms):
        bound = _bind(field, given, measured, may_rest=i in rested)
        if bound is None:
            continue
        for target in bound.actuator.targets:
            mine = (given.transform.metric, target.name)
            if mine in owners:
                raise ConfigError(
                    f"transforms={[owners[mine], given.transform]!r} both move the "
                    f"{given.transform.metric} of {target.name}: leave one of them out there, or "
                    "give them different params="
                )
            owners[mine] = given.transform
        found.append(bound)
    return found


def _bind(
    field: Field, given: Given, measured: Mapping[str, Collection[str]], *, may_rest: bool
) -> Bound | None:
    transform = given.transform
    try:
        actuator = _actuator(field, given)
    except NothingSelectedError as nothing:
        if field.lazy:
            return None  # asked again once there are more parameters
        if not may_rest and not isinstance(transform, WhereFound):
            raise
        logger.info("%r is left out: %s", transform, nothing)
        return None
    needs = transform.needs
    sensed = tuple(metric for metric in needs.metrics if _is_sensed(metric, given, measured))
    for metric in sensed:
        _check_visited(metric, given, actuator, measured[metric])
    previous = Previous() if needs.previous else None
    told = tuple(metric for metric in needs.metrics if metric not in sensed)
    return Bound(given, actuator, sensed, told, previous)


def _actuator(field: Field, given: Given) -> Actuator:
    """Return what acts for a transform.

    Raises:
        NothingSelectedError: There is nothing to act on.
        ConfigError: It is no actuator.
    """
    transform = given.transform
    actuator = transform.bind(field.select(given))
    if not isinstance(actuator, Actuator):
        raise ConfigError(
            f"transforms has {transform!r}, whose bind() returned {actuator!r}: it must return "
            "what stableopt.transforms.Actuator describes"
        )
    if not actuator.targets:
        raise NothingSelectedError(
            f"transforms has {transform!r}, which finds no parameter that it can act on: "
            "leave it out, or widen params="
        )
    return actuator


def _is_sensed(metric: str, given: Given, measured: Mapping[str, Collection[str]]) -> bool:
    """Tell whether a metric comes from a sensor; else it is a signal.

    Raises:
        ConfigError: It would have to come from a sensor that is not there.
    """
    if metric in measured:
        return True
    if metric in METRICS:
        raise ConfigError(
            f"transforms has {given.transform!r}, which reads {metric!r}, and no sensor measures "
            f"it: add {METRICS[metric]}() to sensors=, or leave sensors= out for the default set"
        )
    near = get_close_matches(metric, [*METRICS, *measured], n=1, cutoff=0.8)
    if near:
        raise ConfigError(
            f"transforms has {given.transform!r}, which reads {metric!r}: no sensor knows it; "
            f"did you mean {near[0]!r}?"
        )
    return False


def _check_visited(metric: str, given: Given, actuator: Actuator, visited: Collection[str]) -> None:
    missed = [target.name for target in actuator.targets if target.name not in visited]
    if missed:
        raise ConfigError(
            f"transforms has {given.transform!r}, which acts on {missed[0]}"
            f"{f' and {len(missed) - 1} more' if len(missed) > 1 else ''}, where no sensor reads "
            f"{metric!r}: widen Sensors(params=), or narrow the params= of the transform"
        )
