"""Send events from the training loop to the writers without blocking it."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from stableopt.telemetry import writer_thread
from stableopt.telemetry.claims import check_free, claim, release
from stableopt.telemetry.ending import Ending
from stableopt.telemetry.writer import BaseWriter, PlainWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stableopt.telemetry.writer import Writer
    from stableopt.types import Event


class Dispatcher:
    """Sends events and summaries to every writer through its channel.

    The training loop only appends to queues. A writer that is slow loses events (they are counted),
    an exception is logged once, a writer that hangs is abandoned when the run ends; other writers
    are not affected.

    Args:
        writers: They receive the events.

    Attributes:
        closed: Whether :meth:`close` was called.
        ending: How the run ends.

    Raises:
        ConfigError: A writer records another run, or has recorded one.
    """

    def __init__(self, writers: Sequence[Writer]) -> None:
        check_free(writers)
        self._given = tuple(writers)
        self._writers = [w if isinstance(w, BaseWriter) else PlainWriter(w) for w in writers]
        self.closed = False
        self._begun = False
        self.ending = Ending()

    def begin(self, close: Callable[[], None]) -> None:
        """Claim the writers for a run, and start their threads.

        Args:
            close: Closes the run, for writers whose library shuts down early at interpreter exit.

        Raises:
            ConfigError: Another run has claimed one of them.
        """
        claim(self._given)
        for number, writer in enumerate(self._writers):
            writer.begin([*self._given[:number], *self._given[number + 1 :]], close)
            _ = writer.channel

    def wants(self, step: int) -> bool:
        """Return whether any writer records a healthy step."""
        return not self.closed and any(self._wanted(writer, step) for writer in self._writers)

    def send(self, event: Event, *, always: bool = False) -> None:
        """Queue an event for every writer that wants it, or for all of them; never blocks."""
        for writer in () if self.closed else self._writers:
            if always or not event.routine or self._wanted(writer, event.step):
                writer.channel.put(partial(writer.write, event))
        self._begun = True

    def send_summary(self, summary: dict[str, Any]) -> None:
        """Queue a summary; a newer one replaces one that waits; never blocks."""
        for writer in () if self.closed else self._writers:
            writer.channel.summarize(partial(self._write_summary, writer, summary))

    def flush(self, timeout: float | None = None) -> bool:
        """Return whether everything sent was written in time; blocks."""
        if self.closed:
            return True
        deadline = time.monotonic() + (writer_thread.PATIENCE if timeout is None else timeout)
        for writer in self._writers:
            writer.channel.hurry()
        waits = [w.channel.wait(max(0.0, deadline - time.monotonic())) for w in self._writers]
        return all(waits)

    def close(self, summary: dict[str, Any], timeout: float | None = None) -> None:
        """Write queued events and the last summary, and close the writers.

        Args:
            summary: The last one.
            timeout: Seconds to wait for writers without ``patience``.
        """
        if self.closed:
            return
        self.send_summary(summary)
        self.closed = True
        began, usual = time.monotonic(), writer_thread.PATIENCE if timeout is None else timeout
        waits = [usual if w.patience is None else w.patience for w in self._writers]
        for given, writer, seconds in zip(self._given, self._writers, waits, strict=True):
            writer.channel.finish(writer.close, seconds)
            release(given)
        for writer, seconds in zip(self._writers, waits, strict=True):
            writer.channel.join(began + seconds - time.monotonic())

    def losses(self) -> dict[str, int]:
        """Return how many events were dropped, and how often a writer failed."""
        return {
            "dropped": sum(writer.dropped for writer in self._writers),
            "failed": sum(writer.failed for writer in self._writers),
        }

    def _wanted(self, writer: BaseWriter, step: int) -> bool:
        return (writer.first and not self._begun) or step % writer.every == 0

    def _write_summary(self, writer: BaseWriter, summary: dict[str, Any]) -> Any:
        # Losses are counted up to the moment of writing.
        return writer.write_summary({**summary, "telemetry": self.losses()})
