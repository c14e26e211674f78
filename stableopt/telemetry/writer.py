"""What a writer is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from stableopt.types import Event


@runtime_checkable
class Writer(Protocol):
    """Receives events on a thread of its own, in order.

    An exception from a writer is reported once and counted; it never reaches the training
    loop. An optional attribute ``every`` (an int, 1 if absent) says how often healthy steps
    are wanted; interventions always come. An optional method ``write_summary(summary)``
    receives the summary at the start, at each intervention and at the end.
    """

    def write(self, event: Event) -> None:
        """Record one event."""

    def close(self) -> None:
        """Release what the writer holds; called once."""


def wants(writer: Writer, step: int) -> bool:
    """Tell whether ``writer`` wants a healthy step."""
    return step % int(getattr(writer, "every", 1)) == 0


def write_summary(writer: Writer, summary: dict[str, Any]) -> None:
    """Hand ``summary`` to a writer that takes one."""
    method = getattr(writer, "write_summary", None)
    if method is not None:
        method(summary)
