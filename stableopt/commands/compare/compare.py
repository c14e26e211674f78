"""Several runs beside each other: how they ended, and what was configured differently."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from stableopt.recorded.files import Place
from stableopt.recorded.run import Run
from stableopt.recorded.status import BAD, FINE, Status, status_of

_SETTINGS = (
    "optimizer",
    "hyperparameters",
    "parameters",
    "guard",
    "sensors",
    "transforms",
    "compiled",
    "versions",
)
_RESULTS = frozenset({"steps", "changes", "newest"})
_SENSED = frozenset({"use"})


class Comparison(NamedTuple):
    """Several runs, and how they differ.

    Attributes:
        titles: Of the runs, in the order given.
        statuses: Their states.
        differences: By setting, the value of each run; ``None`` where it has none.
    """

    titles: list[str]
    statuses: list[Status]
    differences: dict[str, list[Any]]

    @property
    def exit_code(self) -> int:
        """1 if one of the runs is bad, else 0."""
        return BAD if any(status.bad for status in self.statuses) else FINE

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, NaN and Inf among them."""
        runs = [
            {"title": title, **status.to_dict()}
            for title, status in zip(self.titles, self.statuses, strict=True)
        ]
        return {"runs": runs, "differences": self.differences}


def compare_runs(runs: Sequence[tuple[Place, Run]]) -> Comparison:
    """Compare runs that were read.

    Args:
        runs: With the places that they were read from.
    """
    settings = [dict(settings_of(run)) for _, run in runs]
    names = dict.fromkeys(name for found in settings for name in found)
    values = {name: [found.get(name) for found in settings] for name in names}
    has = {name: _having(name, settings) for name in names}
    return Comparison(
        titles=[place.title for place, _ in runs],
        statuses=[status_of(run) for _, run in runs],
        differences={
            name: given
            for name, given in values.items()
            if any(given[i] != given[has[name][0]] for i in has[name])
        },
    )


def _having(name: str, settings: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the runs that have the section of a setting: a guard that is off has no options."""
    section, dot, _ = name.partition(".")
    return [i for i, found in enumerate(settings) if not dot or found.get(section) is not False]


def settings_of(run: Run) -> Iterator[tuple[str, Any]]:
    """Yield name and value of what a run was configured with, dotted, results left out."""
    for key in _SETTINGS:
        value = run.setting(key)
        if key == "sensors" and isinstance(value, dict):
            value = {name: value[name] for name in _SENSED if name in value}
        if key == "transforms" and isinstance(value, list):
            value = list(_without_results(value))
        if value is not None:
            yield from _flat(key, value)


def _without_results(transforms: Iterable[Any]) -> Iterator[Any]:
    for entry in transforms:
        if isinstance(entry, dict):
            kept = {key: value for key, value in entry.items() if key not in _RESULTS}
            yield kept.get("transform") if kept.keys() <= {"transform", "parameters"} else kept


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        nested: Mapping[str, Any] = value
        if "." not in name:
            yield name, "on"
        for key, inner in nested.items():
            yield from _flat(f"{name}.{key}", inner)
    else:
        yield name, value
