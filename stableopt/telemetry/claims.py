"""Which writers have a run: each writer records one."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from stableopt.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stableopt.telemetry.writer import Writer

_IN_USE = (
    "is in use by another optimizer, whose run it would mix with this one: make a writer for each "
    "optimizer, or close() the other one and make a new writer"
)
_CLOSED = (
    "was closed at the end of the training before this one: make a new writer for each training, "
    "or give a directory, which gets new files for each"
)

# By identity: writers of others may be equal to each other, or not hashable.
_states: dict[int, str] = {}


def check_free(writers: Sequence[Writer]) -> None:
    """Refuse writers that record a run, or have recorded one.

    Raises:
        ConfigError: One of them does, or is in the list twice.
    """
    for number, writer in enumerate(writers):
        is_twice = any(writer is other for other in writers[:number])
        refusal = "is in the list twice: give each writer once" if is_twice else None
        if refusal := refusal or _states.get(id(writer)):
            raise ConfigError(f"telemetry={type(writer).__name__} object {refusal}")


def claim(writers: Sequence[Writer]) -> None:
    """Take writers for a run.

    Raises:
        ConfigError: One of them is taken.
    """
    check_free(writers)
    _states.update((id(writer), _IN_USE) for writer in writers)


def release(writer: Writer) -> None:
    """Remember that a writer was closed, for as long as it exists."""
    number = id(writer)
    if _states.pop(number, None) is None:
        return
    try:
        weakref.finalize(writer, _states.pop, number, None).atexit = False
    except TypeError:
        return  # no weak reference: its id may be reused without notice
    _states[number] = _CLOSED
