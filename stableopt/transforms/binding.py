"""Find the parameters of each transform, and refuse what cannot work."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, NamedTuple

from stableopt.errors import ConfigError
from stableopt.runtime.shards import is_sharded
from stableopt.runtime.words import listed
from stableopt.sensors.registry import METRICS
from stableopt.transforms.previous import Previous
from stableopt.transforms.protocol import Found, Transform
from stableopt.transforms.selection import NothingSelectedError
from stableopt.transforms.site import Site
from stableopt.transforms.where_found import WhereFound
from stableopt.types import Act

logger = logging.getLogger("stableopt")


@dataclass(eq=False)
class Entry:
    """A transform in the chain, and what is kept about it.

    Attributes:
        transform: The transform.
        position: In the list that it was given in.
        group: Number of the parameter group that it was given with, if any.
        memory: What it remembers; restored by a rollback and saved in checkpoints.
        warned: What it has warned about.
        worked: Whether it has found parameters before. It may find none for now, where all of
            them are frozen.
        steps: In how many steps it has acted.
        changes: On how many parameters, all steps together.
        last: Number of the call in which it has acted last.
        newest: What it did then.
    """

    transform: Transform
    position: int
    group: int | None = None
    memory: dict[str, Any] = field(default_factory=dict)
    warned: set[str] = field(default_factory=set)
    worked: bool = False
    steps: int = 0
    changes: int = 0
    last: int | None = None
    newest: Act | None = None

    @property
    def kind(self) -> str:
        """The name of its type."""
        return type(getattr(self.transform, "transform", self.transform)).__name__

    @property
    def key(self) -> str:
        """Its key in checkpoints, e.g. ``"0.UpdateCap"`` or ``"1.QKClip@group2"``."""
        group = "" if self.group is None else f"@group{self.group}"
        return f"{self.position}.{self.kind}{group}"

    def refusal(self, why: str) -> ConfigError:
        """Return the error that says why the transform cannot work."""
        return ConfigError(f"transforms has {self.transform!r}, {why}")


class Bound(NamedTuple):
    """A transform that has found its parameters.

    Attributes:
        entry: The transform.
        found: What its ``find()`` returned.
        sensed: The metrics that it reads from sensors.
        observed: Those that it reads from signals of ``observe()``.
        previous: Copies of the weights before a step, if it needs them.
    """

    entry: Entry
    found: Found
    sensed: tuple[str, ...]
    observed: tuple[str, ...]
    previous: Previous | None

    def summary(self) -> dict[str, Any]:
        """Return the transform and what it has done as plain values."""
        entry = self.entry
        return {
            "transform": repr(entry.transform),
            **({} if entry.group is None else {"group": entry.group}),
            "parameters": len(self.found.targets),
            "steps": entry.steps,
            "changes": entry.changes,
            "newest": None if entry.newest is None else entry.newest.to_dict(),
        }


def bind(
    site: Site, entries: Sequence[Entry], measured: Mapping[str, Collection[str]]
) -> list[Bound]:
    """Have every transform find its parameters; return those that have some.

    Args:
        site: All parameters.
        entries: The transforms, in the order in which they act.
        measured: By metric, the names of the weights that a sensor visits.

    Raises:
        ConfigError: A transform finds no parameter, reads what no sensor measures, or has the
            same metric as another one of the same parameter.
    """
    found = [b for entry in entries if (b := _bind(site, entry, measured)) is not None]
    owners: dict[tuple[str, str], Entry] = {}
    for bound in found:
        transform = bound.entry.transform
        for target in bound.found.targets:
            owner = owners.setdefault((transform.metric, target.name), bound.entry)
            if owner is not bound.entry:
                raise ConfigError(
                    f"transforms={[owner.transform, transform]!r} both move the "
                    f"{transform.metric} of {target.name}: leave one of them out there, or give "
                    "them different params="
                )
    return found


def _bind(site: Site, entry: Entry, measured: Mapping[str, Collection[str]]) -> Bound | None:
    needs = entry.transform.needs
    try:
        found = _find(site, entry)
    except NothingSelectedError as nothing:
        if site.lazy:
            return None  # tried again once more parameters have a shape
        if not entry.worked and not isinstance(entry.transform, WhereFound):
            raise
        logger.info("%r is left out: %s", entry.transform, nothing)
        return None
    sensed = tuple(metric for metric in needs.metrics if _is_sensed(metric, entry, measured))
    for metric in sensed:
        missed = [target.name for target in found.targets if target.name not in measured[metric]]
        if missed:
            raise entry.refusal(
                f"which acts on {listed(missed, 1)}, where no sensor reads {metric!r}: widen "
                "Sensors(params=), or narrow the params= of the transform"
            )
    observed = tuple(metric for metric in needs.metrics if metric not in sensed)
    return Bound(entry, found, sensed, observed, Previous() if needs.previous else None)


def check_sharded(site: Site, bound: Bound, *, agrees: bool) -> None:
    """Refuse what cannot act on sharded weights.

    Args:
        site: All parameters.
        bound: A transform and its parameters.
        agrees: Whether ranks agree on what it acts on.

    Raises:
        ConfigError: No rank knows what the others do, or only some gradients are clipped.
    """
    targets, entry = bound.found.targets, bound.entry
    sharded = [t.name for t in targets if is_sharded(site.parameter(t))]
    if sharded and not agrees:
        raise entry.refusal(
            f"which acts on weights that are sharded ({listed(sharded, 1)}): the ranks have to "
            "agree on it; leave guard=False out"
        )
    if sharded and entry.kind == "ClipGradNorm" and len(targets) < len(site.targets):
        raise entry.refusal(
            f"which clips some of the gradients, where they are sharded ({listed(sharded, 1)}): "
            "leave params= out"
        )


def _find(site: Site, entry: Entry) -> Found:
    found = entry.transform.find(site.part(entry.transform.params, entry.group))
    if not isinstance(found, Found):
        raise entry.refusal(
            f"whose find() returned {found!r}: it must return stableopt.transforms.Found(targets)"
        )
    if not found.targets:
        raise NothingSelectedError(
            f"transforms has {entry.transform!r}, which finds no parameter that it can act on: "
            "leave it out, or widen params="
        )
    return found


def _is_sensed(metric: str, entry: Entry, measured: Mapping[str, Collection[str]]) -> bool:
    """Return whether a metric comes from a sensor; else it is a signal.

    Raises:
        ConfigError: It is a metric of a sensor that is not used.
    """
    if metric in measured:
        return True
    if metric in METRICS:
        raise entry.refusal(
            f"which reads {metric!r}, and no sensor measures it: add {METRICS[metric]}() to "
            "sensors=, or leave sensors= out for the default set"
        )
    near = get_close_matches(metric, [*METRICS, *measured], n=1, cutoff=0.8)
    if near:
        raise entry.refusal(
            f"which reads {metric!r}: no sensor knows it; did you mean {near[0]!r}?"
        )
    return False
