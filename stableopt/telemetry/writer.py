"""What a writer is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stableopt.types import Event


@runtime_checkable
class Writer(Protocol):
    """Receives events on a thread of its own, in order.

    An exception from a writer is reported once and counted; it never reaches the training
    loop. An optional attribute ``every`` (an int, 1 if absent) says how often healthy steps
    are wanted; interventions always come, and where an optional attribute ``first`` is true, so
    does the first step of the run. An optional method ``write_summary(summary)`` receives the
    summary at the start, at each intervention and at the end.

    A writer that hands events on may have more: a method ``flush()`` that returns once they are
    there; attributes ``dropped`` and ``failed``, counts that join those of the summary; an
    attribute ``patience``, seconds that closing the run waits for it (5 if absent); a method
    ``beside(writers)`` that is told once, before the first event, who else receives events; a
    method ``before_exit(close)`` that is given what closes the telemetry of the run, for a writer
    whose library shuts down earlier in the exit of the interpreter than the run is closed.
    """

    def write(self, event: Event) -> None:
        """Record one event."""

    def close(self) -> None:
        """Release what the writer holds; called once: a writer has one run."""


def wants(writer: Writer, step: int, *, first: bool = False) -> bool:
    """Tell whether ``writer`` wants a healthy step, which may be the first of its run."""
    if first and getattr(writer, "first", False) is True:
        return True
    return step % int(getattr(writer, "every", 1)) == 0


def flush(writer: Writer) -> None:
    """Have a writer that hands events on hand them on now."""
    method = getattr(writer, "flush", None)
    if method is not None:
        method()


def introduce(writers: Sequence[Writer]) -> None:
    """Tell the writers that ask who else receives events."""
    for writer in writers:
        method = getattr(writer, "beside", None)
        if method is not None:
            method([other for other in writers if other is not writer])


def losses(writer: Writer) -> tuple[int, int]:
    """Return how many events a writer has dropped, and how often it failed, as it says."""
    return int(_number(writer, "dropped", 0)), int(_number(writer, "failed", 0))


def patience(writer: Writer, usual: float) -> float:
    """Return how many seconds closing the run waits for a writer."""
    return _number(writer, "patience", usual)


def _number(writer: Writer, name: str, usual: float) -> float:
    # A writer of somebody else's may mean something else by the name.
    value = getattr(writer, name, usual)
    return value if isinstance(value, (int, float)) else usual


def write_summary(writer: Writer, summary: dict[str, Any]) -> None:
    """Hand ``summary`` to a writer that takes one."""
    method = getattr(writer, "write_summary", None)
    if method is not None:
        method(summary)
