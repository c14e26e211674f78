"""Findings about tensors, as sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from stableopt.runtime.words import listed
from stableopt.types import Finding, Scope

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence


class Label(NamedTuple):
    """Which tensor it is.

    Attributes:
        kind: ``"weight"``, ``"frozen"``, ``"state"``, ``"buffer"`` or ``"tracked"``.
        owner: The place of the parameter, or the key or name of anything else.
        key: Of an entry of a parameter's state; otherwise empty.
    """

    kind: str
    owner: Hashable
    key: str = ""


_SAYS = {
    "nonfinite": "{} not finite",
    "huge": "{} absurdly large",
    "jumped": "{} many times as large as some steps ago (if on purpose: Guard(weight_jump=None))",
    "vanished": "{} smaller than decay allows (if on purpose: Guard(moment_drop=None))",
    "negative_moment": "{} negative, which squares never are",
    "moment_bound": "{} larger than the second moment allows",
}


_SUBJECTS = {
    "weight": "the weights of",
    "frozen": "the frozen weights of",
    "buffer": "the buffers",
    "tracked": "the tracked tensors",
}


def describe(
    faults: Sequence[tuple[str, Label]], name: Callable[[Label], str]
) -> tuple[Finding, ...]:
    """Return one finding per kind of fault and kind of tensor.

    Args:
        faults: Returned by :meth:`Inspection.faults`.
        name: Returns the name of a tensor.
    """
    together: dict[tuple[str, str, str], list[str]] = {}
    for kind, label in faults:
        names = together.setdefault((kind, label.kind, label.key), [])
        if (called := name(label)) not in names:
            names.append(called)
    findings = []
    for (kind, what, key), names in together.items():
        subject = _SUBJECTS.get(what) or (f"{key} of" if key else "the optimizer's")
        verb = "is" if what == "state" else "are"
        says = next(text for start, text in _SAYS.items() if kind.startswith(start)).format(verb)
        if what == "frozen":
            says += ", and no snapshot holds them"
        message = f"{subject} {listed(names)} {says}"
        findings.append(Finding(kind=kind, message=message, scope=Scope.STATE, where=tuple(names)))
    return tuple(findings)
