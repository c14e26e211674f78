"""Which writers have a run already: each records one, once."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from stableopt.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stableopt.telemetry.writer import Writer

_IN_USE, _CLOSED = "in use", "closed"

# By identity: writers of others may be equal to each other, or not hashable.
_states: dict[int, str] = {}


def check_free(writers: Sequence[Writer]) -> None:
    """Refuse writers that record a run, or have recorded one.

    Raises:
        ConfigError: One of them does, or is there twice.
    """
    for number, writer in enumerate(writers):
        name = f"telemetry={type(writer).__name__} object"
        if any(writer is other for other in writers[:number]):
            raise ConfigError(f"{name} is in the list twice: give each writer once")
        state = _states.get(id(writer))
        if state == _CLOSED:
            raise ConfigError(
                f"{name} was closed at the end of the training before this one: make a new writer "
                "for each training, or give a directory, which gets new files for each"
            )
        if state == _IN_USE:
            raise ConfigError(
                f"{name} is in use by another optimizer, whose run it would mix with this one: "
                "make a writer for each optimizer, or close() the other one and make a new writer"
            )


def claim(writers: Sequence[Writer]) -> None:
    """Take writers for a run.

    Raises:
        ConfigError: One of them is taken.
    """
    check_free(writers)
    for writer in writers:
        _states[id(writer)] = _IN_USE


def release(writer: Writer) -> None:
    """Remember that a writer was closed, as long as it is there."""
    number = id(writer)
    if _states.pop(number, None) is None:
        return
    try:
        weakref.finalize(writer, _states.pop, number, None).atexit = False
    except TypeError:
        return  # no weak reference, so it is not known when its number is free again
    _states[number] = _CLOSED
