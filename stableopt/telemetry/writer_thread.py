"""One queue and one thread for each writer, so that training never waits for it."""

from __future__ import annotations

import math
import random
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, TypeAlias

from stableopt.runtime.once import warn_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Work: TypeAlias = Callable[[], Iterable[Any] | None]

CAPACITY = 10_000
"""Entries that may wait for a slow writer; beyond that the oldest are dropped and counted."""

PATIENCE = 5.0
"""Seconds to wait for a writer when the run ends; four fifths of it if deliveries fail."""

SUMMARY_INTERVAL = 1.0
"""Least seconds between two summaries."""

_HURRY = 0.5
"""Longest pause in seconds while closing."""


class RefusedError(Exception):
    """Records are refused for good: the delivery is not repeated.

    Args:
        message: The reason.
        lost: How many records of the batch are refused; all if not given.
    """

    def __init__(self, message: str, lost: int | None = None) -> None:
        super().__init__(message)
        self.lost = lost


class Channel:
    """Runs the methods of one writer on a daemon thread, in order.

    :meth:`put` only appends a function to a queue. The thread calls it, and passes the records that
    it returns to ``deliver``. A delivery that fails is repeated after a pause; meanwhile up to
    ``capacity`` entries wait, beyond that the oldest is dropped and counted. Only the first failure
    is logged. No exception ends the thread.

    Args:
        deliver: Takes the records of a batch; raises :class:`RefusedError` if it must not be
            repeated, any other exception if it may succeed later.
        name: Of the writer, for warnings.
        batch: Entries at most in one delivery.
        interval: Least seconds from the start of one delivery to that of the next.
        backoff: First and longest pause in seconds; it doubles in between.
        capacity: Entries that may wait; :data:`CAPACITY` if not given.

    Attributes:
        dropped: Entries and records that were lost.
        failed: Calls and deliveries that failed.
    """

    def __init__(
        self,
        deliver: Callable[[list[Any]], None],
        *,
        name: str,
        batch: int = 1,
        interval: float = 0.0,
        backoff: tuple[float, float] = (0.1, 10.0),
        capacity: int | None = None,
    ) -> None:
        self.dropped = 0
        self.failed = 0
        self._deliver = deliver
        self._name = name
        self._batch, self._interval, self._backoff = batch, interval, backoff
        self._capacity = CAPACITY if capacity is None else capacity
        self._queue: deque[Work] = deque()
        self._summary: Work | None = None
        self._end: Work | None = None
        self._began = self._summarized = -math.inf
        self._gives_up = math.inf
        self._in_delivery = 0
        self._busy = self._hurried = self._failing = False
        self._closing = self._given_up = self._abandoned = False
        self._said: set[object] = set()
        self._changed = threading.Condition()
        # Started now: no thread can start at interpreter exit, when some runs are closed.
        self._thread = threading.Thread(target=self._run, name=f"stableopt {name}", daemon=True)
        self._thread.start()

    def put(self, work: Work) -> bool:
        """Queue ``work`` to be called on the thread; never blocks.

        Returns:
            Whether it was queued: after :meth:`finish` it is dropped and counted.
        """
        with self._changed:
            if not self._closing:
                self._queue.append(work)
            full = len(self._queue) > self._capacity
            if full:
                self._queue.popleft()
            self.dropped += full or self._closing
            self._changed.notify_all()
        if full:
            self._warn("is too slow; the oldest events are dropped")
        return not self._closing

    def summarize(self, work: Work) -> None:
        """Queue ``work``, called once a second at most; a newer one replaces one that waits."""
        with self._changed:
            self._summary = work
            self._changed.notify_all()

    def hurry(self) -> None:
        """Deliver everything in the queue now."""
        with self._changed:
            self._hurried = not self._is_idle()
            self._changed.notify_all()

    def wait(self, timeout: float) -> bool:
        """Return whether everything was delivered in time; blocks.

        Args:
            timeout: Seconds; while deliveries fail, :data:`PATIENCE` at most.
        """
        usual = min(timeout, PATIENCE)
        with self._changed:
            if not self._changed.wait_for(self._is_idle, usual):
                self._changed.wait_for(lambda: self._failing or self._is_idle(), timeout - usual)
            return self._is_idle()

    def finish(self, end: Work, patience: float) -> None:
        """Deliver everything in the queue, then call ``end``, then end the thread; never blocks.

        Args:
            end: Its records are delivered, too.
            patience: Seconds that :meth:`join` will wait.
        """
        with self._changed:
            self._end, self._closing = end, True
            self._gives_up = time.monotonic() + 0.8 * min(patience, PATIENCE)
            self._changed.notify_all()

    def join(self, timeout: float) -> None:
        """Wait for the thread after :meth:`finish`; count what is lost on timeout."""
        if self._thread is threading.current_thread():
            return  # the garbage collector may close a run anywhere
        self._thread.join(max(0.0, timeout))
        with self._changed:
            if not self._thread.is_alive():
                return
            self._abandoned = self._given_up = True
            lost = len(self._queue) + self._in_delivery + (self._end is not None)
            self.dropped += lost
        self._warn(f"did not finish in time; {lost} events were not written")

    def _is_idle(self) -> bool:
        return not self._queue and self._summary is None and not self._busy

    def _run(self) -> None:
        while works := self._take():
            records = [record for work in works for record in self._call(work)]
            self._in_delivery = len(records)
            if records:
                self._deliver_all(records)
            with self._changed:
                self._in_delivery, self._busy = 0, False
                self._hurried = self._hurried and not self._is_idle()
                self._changed.notify_all()

    def _take(self) -> list[Work]:
        """Wait for the next batch; an empty batch ends the thread."""
        with self._changed:
            while (seconds := self._seconds_left()) > 0:
                self._changed.wait(None if seconds == math.inf else seconds)
            now = time.monotonic()
            works = [self._queue.popleft() for _ in range(min(self._batch, len(self._queue)))]
            self._began = now
            due = now >= self._summarized + SUMMARY_INTERVAL
            if self._hurried or self._closing:
                due = not self._queue
            if self._summary is not None and due:
                works.append(self._summary)
                self._summary, self._summarized = None, now
            if self._end is not None and not self._queue:
                works.append(self._end)
                self._end = None
            self._busy = bool(works)
            return works

    def _seconds_left(self) -> float:
        """Return the seconds until there is something to do."""
        if self._closing or self._hurried or len(self._queue) >= self._batch:
            return 0.0
        batch = self._began + self._interval if self._queue else math.inf
        summary = math.inf if self._summary is None else self._summarized + SUMMARY_INTERVAL
        return min(batch, summary) - time.monotonic()

    def _call(self, work: Work) -> list[Any]:
        try:
            return list(work() or ())
        except BaseException as error:  # noqa: BLE001 - no writer may end a run
            self._fail(error)
            return []

    def _deliver_all(self, records: list[Any]) -> None:
        pause = self._backoff[0]
        while not self._given_up:
            try:
                self._deliver(records)
                self._failing = False
                return
            except RefusedError as error:
                lost = len(records) if error.lost is None else error.lost
                self._lose(lost, f"was refused ({_short(error)})")
                return
            except BaseException as error:  # noqa: BLE001 - no writer may end a run
                self._failing = True
                self._fail(error)
            self._pause(pause * random.uniform(0.75, 1.25))  # noqa: S311 - a jitter
            pause = min(2 * pause, self._backoff[1])
        self._lose(len(records), "did not finish in time")

    def _pause(self, seconds: float) -> None:
        """Wait before the next attempt, or give up if there is no time for another."""
        with self._changed:
            self._changed.notify_all()
            if not self._closing:  # closing ends the pause
                self._changed.wait_for(lambda: self._closing, seconds)
                return
        seconds = min(seconds, _HURRY)
        self._given_up = self._given_up or time.monotonic() + seconds >= self._gives_up
        if not self._given_up:
            time.sleep(seconds)

    def _fail(self, error: BaseException) -> None:
        self.failed += 1
        self._warn(f"failed ({type(error).__name__}: {_short(error)})")

    def _lose(self, count: int, why: str) -> None:
        with self._changed:
            if self._abandoned:  # counted by join() already
                return
            self.dropped += count
        self._warn(why)

    def _warn(self, what: str) -> None:
        message = (
            "telemetry: %s %s; training goes on, what is lost is counted in the summary and "
            "not reported again"
        )
        warn_once(self._said, "lost", message, self._name, what)


def _short(error: BaseException, longest: int = 200) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= longest else f"{text[:longest]}…"
