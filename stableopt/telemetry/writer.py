"""The interface of telemetry writers."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from stableopt.telemetry import writer_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from stableopt.types import Event


@runtime_checkable
class Writer(Protocol):
    """Receives events on a separate thread, in order.

    An exception from a writer is logged once and counted; it never reaches the training loop. Two
    members are optional: an int ``every`` (1 if absent): one healthy step out of so many is
    recorded, interventions always; and a method ``write_summary(summary)``, called at the start, at
    interventions and at the end. A writer that needs more derives from :class:`BaseWriter`.
    """

    def write(self, event: Event) -> object:
        """Record one event."""

    def close(self) -> object:
        """Release resources; called once, as a writer records one run."""


class BaseWriter:
    """Base class of writers that hand events to another system.

    All methods but :meth:`begin` and :meth:`flush` are called on the thread of the writer.
    :meth:`write`, :meth:`write_summary` and :meth:`close` may return records: these are handed to
    :meth:`deliver` in batches, and again if that fails.

    Attributes:
        name: Of the writer in warnings; its type if empty.
        every: One healthy step out of so many is recorded; interventions always.
        first: Whether the first step of a run is always recorded.
        patience: Seconds that closing the run waits; 5 if ``None``.
        batch: Events at most in one delivery.
        interval: Seconds from one delivery to the next, at least.
        capacity: Events that may wait; 10,000 if ``None``.
    """

    name: str = ""
    every: int = 1
    first: bool = False
    patience: float | None = None
    batch: int = 1
    interval: float = 0.0
    capacity: int | None = None

    @cached_property
    def channel(self) -> writer_thread.Channel:
        """The queue and the thread of this writer, started on first use."""
        return writer_thread.Channel(
            self.deliver,
            name=self.name or type(self).__name__,
            batch=self.batch,
            interval=self.interval,
            capacity=self.capacity,
        )

    @property
    def dropped(self) -> int:
        """Events that were lost."""
        return self.channel.dropped

    @property
    def failed(self) -> int:
        """Calls and deliveries that failed; deliveries are tried again."""
        return self.channel.failed

    def begin(self, others: Sequence[Writer], close: Callable[[], None]) -> None:
        """Prepare for a run, before its first event, on the thread that trains.

        Args:
            others: The other writers of the run.
            close: Closes the telemetry of the run.
        """

    def write(self, event: Event) -> Iterable[Any] | None:
        """Record one event."""
        raise NotImplementedError

    def write_summary(self, summary: dict[str, Any]) -> Iterable[Any] | None:
        """Record a summary."""

    def close(self) -> Iterable[Any] | None:
        """Release resources."""

    def deliver(self, records: Sequence[Any]) -> None:
        """Take records.

        Raises:
            RefusedError: The records are never delivered again.
            Exception: The same records are delivered again.
        """

    def flush(self, timeout: float | None = None) -> bool:
        """Return whether everything was delivered in time; blocks."""
        self.channel.hurry()
        return self.channel.wait(timeout or self.patience or writer_thread.PATIENCE)


class PlainWriter(BaseWriter):
    """Adapts a :class:`Writer` that does not derive from :class:`BaseWriter`.

    Args:
        writer: The writer.
    """

    def __init__(self, writer: Writer) -> None:
        self.name = type(writer).__name__
        self.every = int(getattr(writer, "every", 1))
        self._writer = writer

    def write(self, event: Event) -> None:
        """Record one event."""
        self._writer.write(event)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Record a summary, if the writer takes one."""
        getattr(self._writer, "write_summary", super().write_summary)(summary)

    def close(self) -> None:
        """Release resources."""
        self._writer.close()
