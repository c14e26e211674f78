"""Carry events from the training loop to the writers without making it wait."""

from __future__ import annotations

import logging
import queue
import threading
from functools import partial
from operator import methodcaller
from typing import TYPE_CHECKING, Any

from stableopt.telemetry.writer import wants, write_summary

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stableopt.telemetry.writer import Writer
    from stableopt.types import Event

logger = logging.getLogger("stableopt")

CAPACITY = 10_000
"""Events that may wait for a slow writer before new ones are dropped and counted."""

PATIENCE = 5.0
"""Seconds that closing waits for a writer that hangs."""


class Dispatcher:
    """One daemon thread that feeds every writer from a bounded queue.

    The training loop only appends to the queue. A writer that is slow loses events (they
    are counted), one that raises is reported once (and tried again with the next event),
    one that hangs is left behind when the run ends.

    Args:
        writers: Who receives events.
    """

    def __init__(self, writers: Sequence[Writer]) -> None:
        self._writers = tuple(writers)
        self._queue: queue.Queue[Callable[[], None]] = queue.Queue(CAPACITY)
        self._reported: set[int] = set()
        self._closed = False
        self._finished = False
        self.dropped = 0
        self.failed = 0
        # Started now: at interpreter exit, when many a run is closed, no thread can start.
        self._thread = threading.Thread(target=self._run, name="stableopt", daemon=True)
        self._thread.start()

    def wants(self, step: int) -> bool:
        """Tell whether any writer wants a healthy step."""
        return not self._closed and any(wants(w, step) for w in self._writers)

    def send(self, event: Event) -> None:
        """Queue an event for every writer; never blocks."""
        if not self._offer(partial(self._each, partial(_write, event=event))):
            self.dropped += 1
            if self.dropped == 1:
                logger.warning("telemetry: writers are too slow; events are dropped and counted")

    def send_summary(self, summary: dict[str, Any]) -> None:
        """Queue a summary for the writers that take one; never blocks."""
        self._offer(partial(self._each, partial(write_summary, summary=summary)))

    def flush(self, timeout: float = PATIENCE) -> bool:
        """Wait until everything queued so far was handed over; ``False`` if it took too long."""
        done = threading.Event()
        return self._offer(done.set, timeout) and done.wait(timeout)

    def close(self, summary: dict[str, Any], timeout: float = PATIENCE) -> None:
        """Hand over what is queued and a last summary, and close the writers.

        Args:
            summary: The last summary.
            timeout: Seconds to wait for writers that are slow.
        """
        if self._closed:
            return
        self._offer(partial(self._finish, summary), timeout)
        self._closed = True
        self._thread.join(timeout)
        if self._thread.is_alive():
            logger.warning(
                "telemetry: a writer did not finish within %g s; up to %d events are lost",
                timeout,
                self._queue.qsize(),
            )

    def losses(self) -> dict[str, int]:
        """Return how many events were dropped, and how often a writer failed."""
        return {"dropped": self.dropped, "failed": self.failed}

    def _offer(self, job: Callable[[], None], timeout: float = 0.0) -> bool:
        if self._closed:
            return True
        try:
            self._queue.put(job, block=timeout > 0, timeout=timeout or None)
        except queue.Full:
            return False
        return True

    def _run(self) -> None:
        while not self._finished:
            self._queue.get()()

    def _finish(self, summary: dict[str, Any]) -> None:
        self._each(partial(write_summary, summary=summary))
        self._each(methodcaller("close"))
        self._finished = True

    def _each(self, call: Callable[[Writer], None]) -> None:
        for index, writer in enumerate(self._writers):
            try:
                call(writer)
            except Exception as error:  # noqa: BLE001 - nothing a writer does may end a run
                self.failed += 1
                if index not in self._reported:
                    self._reported.add(index)
                    logger.warning(
                        "telemetry: %s failed (%s: %s); training goes on, its failures are "
                        "counted in the summary and not reported again",
                        type(writer).__name__,
                        type(error).__name__,
                        error,
                    )


def _write(writer: Writer, event: Event) -> None:
    if event.intervened or wants(writer, event.step):
        writer.write(event)
