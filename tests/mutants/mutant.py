"""What a mutant is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One change of one module.

    Attributes:
        module: Its dotted name.
        old: Text that occurs exactly once in it.
        new: What takes its place.
        tests: Arguments of pytest; at least one of the tests must fail.
    """

    module: str
    old: str
    new: str
    tests: tuple[str, ...]
