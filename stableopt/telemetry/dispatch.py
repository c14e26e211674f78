"""Carry events from the training loop to the writers without making it wait."""

from __future__ import annotations

import logging
import queue
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from stableopt.telemetry.claims import check_free, claim, release
from stableopt.telemetry.ending import Ending
from stableopt.telemetry.writer import (
    flush,
    introduce,
    losses,
    patience,
    wants,
    write_summary,
)
from stableopt.types import Event

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stableopt.telemetry.writer import Writer

logger = logging.getLogger("stableopt")

CAPACITY = 10_000
"""Events that may wait for a slow writer before new ones are dropped and counted."""

PATIENCE = 5.0
"""Seconds that closing waits for writers that hang."""

SUMMARY_INTERVAL = 1.0
"""Seconds between two summaries of a run that intervenes again and again."""


class Dispatcher:
    """Feeds every writer from a queue and a thread of its own.

    The training loop only appends to queues. A writer that is slow loses events (they are
    counted), one that raises is reported once (and tried again with the next event), one
    that hangs is left behind when the run ends; the others notice none of it.

    Args:
        writers: Who receives events.

    Attributes:
        closed: Whether it has been.
        ending: How the run ends.

    Raises:
        ConfigError: A writer has another run, or has had one.
    """

    def __init__(self, writers: Sequence[Writer]) -> None:
        check_free(writers)
        introduce(writers)
        self._channels = [_Channel(writer) for writer in writers]
        self.closed = False
        self._begun = False
        self.ending = Ending()

    def claim(self) -> None:
        """Keep others from using the writers, now that there is a run.

        Raises:
            ConfigError: Somebody was quicker.
        """
        claim([channel.writer for channel in self._channels])

    def wants(self, step: int) -> bool:
        """Tell whether any writer wants a healthy step."""
        return not self.closed and any(self._wanted(c.writer, step) for c in self._channels)

    def send(self, event: Event, *, always: bool = False) -> None:
        """Queue an event for every writer that wants it, or for all of them; never blocks."""
        for channel in () if self.closed else self._channels:
            if always or not event.routine or self._wanted(channel.writer, event.step):
                channel.send(event)
        self._begun = True

    def send_summary(self, make: Callable[[], dict[str, Any]]) -> None:
        """Ask for a summary to be written soon, made when it is written; never blocks."""
        for channel in () if self.closed else self._channels:
            channel.summarize(make)

    def flush(self, timeout: float = PATIENCE) -> bool:
        """Wait until all that was sent is written; ``False`` if that took too long."""
        if self.closed:
            return True
        deadline = time.monotonic() + timeout
        waiting = [channel.flush() for channel in self._channels]
        return all(done.wait(max(0.0, deadline - time.monotonic())) for done in waiting)

    def before_exit(self, close: Callable[[], None]) -> None:
        """Give ``close`` to the writers that have to be closed early when the interpreter exits."""
        for channel in self._channels:
            method = getattr(channel.writer, "before_exit", None)
            if method is not None:
                method(close)

    def close(self, make: Callable[[], dict[str, Any]], timeout: float = PATIENCE) -> None:
        """Write what is queued and a last summary, and close the writers.

        Args:
            make: Makes the last summary.
            timeout: Seconds to wait for writers that are slow, and do not say how slow.
        """
        if self.closed:
            return
        self.send_summary(make)
        self.closed = True
        began = time.monotonic()
        for channel in self._channels:
            channel.finish()
            release(channel.writer)
        for channel in self._channels:
            left = began + patience(channel.writer, timeout) - time.monotonic()
            channel.join(max(0.0, left))

    def _wanted(self, writer: Writer, step: int) -> bool:
        return wants(writer, step, first=not self._begun)

    def losses(self) -> dict[str, int]:
        """Return how many events were dropped, and how often a writer failed."""
        theirs = [losses(channel.writer) for channel in self._channels]
        return {
            "dropped": sum(c.dropped for c in self._channels) + sum(d for d, _ in theirs),
            "failed": sum(c.failed for c in self._channels) + sum(f for _, f in theirs),
        }


class _Channel:
    """The queue and the thread of one writer."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.dropped = 0
        self.failed = 0
        self._make_summary: Callable[[], dict[str, Any]] | None = None
        self._lock = threading.Lock()
        self._summarized = -SUMMARY_INTERVAL
        self._reported = False
        self._finishing = False
        self._queue: queue.Queue[Event | threading.Event | None] = queue.Queue()
        # Started now: at interpreter exit, when many a run is closed, no thread can start.
        self._thread = threading.Thread(target=self._run, name="stableopt", daemon=True)
        self._thread.start()

    def send(self, event: Event) -> None:
        if self._queue.qsize() < CAPACITY:
            self._queue.put(event)
            return
        self.dropped += 1
        if self.dropped == 1:
            logger.warning(
                "telemetry: %s is too slow; events are dropped and counted in the summary", self
            )

    def summarize(self, make: Callable[[], dict[str, Any]]) -> None:
        with self._lock:
            idle, self._make_summary = self._make_summary is None, make
        if idle:
            self._queue.put(None)  # wakes a thread that waits without end

    def flush(self) -> threading.Event:
        done = threading.Event()
        self._queue.put(done)
        return done

    def finish(self) -> None:
        self._finishing = True
        self._queue.put(None)

    def join(self, timeout: float) -> None:
        self._thread.join(timeout)
        if self._thread.is_alive():
            # What else is queued are marks of flush and finish.
            lost = sum(isinstance(item, Event) for item in tuple(self._queue.queue))
            self.dropped += lost
            logger.warning("telemetry: %s did not finish in time; %d events are lost", self, lost)

    def _run(self) -> None:
        while not (self._finishing and self._queue.empty()):
            try:
                item = self._queue.get(timeout=SUMMARY_INTERVAL if self._make_summary else None)
            except queue.Empty:
                item = None
            if isinstance(item, threading.Event):
                self._write_summary()
                self._try(lambda: flush(self.writer))
                item.set()
            elif item is not None:
                self._try(partial(self.writer.write, item))
            if time.monotonic() - self._summarized >= SUMMARY_INTERVAL:
                self._write_summary()
        self._write_summary()
        self._try(self.writer.close)

    def _write_summary(self) -> None:
        with self._lock:
            make, self._make_summary = self._make_summary, None
        if make is not None:
            self._try(lambda: write_summary(self.writer, make()))
            self._summarized = time.monotonic()

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - nothing a writer does may end a run
            self.failed += 1
            if not self._reported:
                self._reported = True
                logger.warning(
                    "telemetry: %s failed (%s: %s); training goes on, its failures are counted "
                    "in the summary and not reported again",
                    self,
                    type(error).__name__,
                    error,
                )

    def __str__(self) -> str:
        return type(self.writer).__name__
