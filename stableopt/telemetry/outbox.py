"""A bounded queue with a thread that delivers what is in it, and tries again."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

logger = logging.getLogger("stableopt")

T = TypeVar("T")

PATIENCE = 4.0
"""Seconds for which closing tries again what fails; less than the dispatcher's own."""

_HURRY = 0.5
"""Longest pause in seconds while closing."""


class RefusedError(Exception):
    """What was delivered will never be taken: trying again is no use.

    Args:
        message: Why.
        lost: How many of the batch; all of it if not given.
    """

    def __init__(self, message: str, lost: int | None = None) -> None:
        super().__init__(message)
        self.lost = lost


class Outbox(Generic[T]):
    """Delivers items in order and in batches, on a thread of its own.

    ``put`` never blocks and never raises. A delivery that fails is tried again after a pause that
    doubles from ``backoff[0]`` to ``backoff[1]`` seconds; meanwhile items wait, at most
    ``capacity`` of them: then the oldest that may be dropped is, and counted. The first failure
    is a warning; nothing else is said.

    Args:
        deliver: Takes a batch; raises :class:`RefusedError` if there is no use in trying again,
            anything else if there is.
        name: Who delivers, for the warning.
        capacity: Items that may wait.
        batch: Items at most in one delivery.
        interval: Seconds from the beginning of one delivery to that of the next, at least: items
            that come faster share one.
        backoff: First and longest pause in seconds.
        keeps: Tells of an item that it must not be dropped for being old.

    Attributes:
        dropped: Items that were never delivered, and never will be.
        failed: Deliveries that failed.
    """

    def __init__(
        self,
        deliver: Callable[[list[T]], None],
        *,
        name: str,
        capacity: int = 10_000,
        batch: int = 100,
        interval: float = 0.0,
        backoff: tuple[float, float] = (0.1, 10.0),
        keeps: Callable[[T], bool] = lambda item: False,
    ) -> None:
        self.dropped = 0
        self.failed = 0
        self._deliver = deliver
        self._name = name
        self._capacity, self._batch, self._interval = capacity, batch, interval
        self._backoff, self._keeps = backoff, keeps
        self._queue: deque[T] = deque()
        self._began = -math.inf
        self._changed = threading.Condition()
        self._in_flight = 0
        self._hurried = False
        self._deadline: float | None = None
        self._gives_up = math.inf
        self._warned = self._abandoned = self._failing = False
        # Started now: at interpreter exit, when many a run is closed, no thread can start.
        self._thread = threading.Thread(target=self._run, name=f"stableopt {name}", daemon=True)
        self._thread.start()

    def put(self, item: T) -> None:
        """Have an item delivered soon, or dropped and counted; never blocks."""
        self.put_all([item])

    def put_all(self, items: Iterable[T]) -> None:
        """Have items delivered soon; see :meth:`put`."""
        with self._changed:
            for item in items:
                if self._deadline is not None:
                    self.dropped += 1
                    continue
                if len(self._queue) + self._in_flight >= self._capacity:
                    self._make_room()
                self._queue.append(item)
            self._changed.notify_all()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all is delivered; ``False`` if that took too long.

        Args:
            timeout: As in :meth:`close`.
        """
        timeout = PATIENCE if timeout is None else timeout
        with self._changed:
            self._hurried = True
            self._changed.notify_all()
            try:
                if not self._changed.wait_for(self._is_idle, min(timeout, PATIENCE)):
                    left = max(0.0, timeout - PATIENCE)
                    self._changed.wait_for(lambda: self._failing or self._is_idle(), left)
                return self._is_idle()
            finally:
                self._hurried = False

    def close(self, timeout: float | None = None) -> None:
        """Deliver what is left; count what could not be.

        Args:
            timeout: Seconds to wait for deliveries that are slow; those that fail are given up
                after :data:`PATIENCE` at the latest, and that is what it is if not given.
        """
        timeout = PATIENCE if timeout is None else timeout
        with self._changed:
            if self._deadline is None:
                now = time.monotonic()
                self._deadline, self._gives_up = now + timeout, now + min(timeout, PATIENCE)
            self._changed.notify_all()
        self._thread.join(timeout)
        with self._changed:
            # What is in flight in a thread that hangs may still arrive; nobody will know.
            self._abandoned = self._thread.is_alive()
            lost = len(self._queue) + (self._in_flight if self._abandoned else 0)
            self._queue.clear()
            self.dropped += lost
        if lost:
            self._warn(f"did not finish in time; {lost} records are lost")

    def _is_idle(self) -> bool:
        return not self._queue and not self._in_flight

    def _make_room(self) -> None:
        for position, item in enumerate(self._queue):
            if not self._keeps(item):
                del self._queue[position]
                self.dropped += 1
                self._warn("is too slow; the oldest records are dropped and counted")
                return

    def _run(self) -> None:
        while batch := self._take():
            try:
                self._try(batch)
            finally:
                with self._changed:
                    self._in_flight = 0
                    self._changed.notify_all()

    def _take(self) -> list[T]:
        """Wait for a batch; an empty one is the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._deadline is not None)
            while self._waits_for_more():
                self._changed.wait(self._left())
            self._began = time.monotonic()
            batch = [self._queue.popleft() for _ in range(min(self._batch, len(self._queue)))]
            if self._deadline is not None and time.monotonic() >= self._deadline:
                self.dropped += len(batch)
                return []
            self._in_flight = len(batch)
            return batch

    def _waits_for_more(self) -> bool:
        hurried = self._hurried or self._deadline is not None
        full = len(self._queue) >= self._batch
        return bool(self._queue) and not hurried and not full and self._left() > 0

    def _left(self) -> float:
        return self._began + self._interval - time.monotonic()

    def _try(self, batch: list[T]) -> None:
        pause = self._backoff[0]
        while True:
            try:
                self._deliver(batch)
                self._failing = False
                return
            except RefusedError as error:
                lost = len(batch) if error.lost is None else error.lost
                self._lose(lost, f"was refused ({_short(error)})")
                return
            except BaseException as error:  # noqa: BLE001 - nothing out there may end a run
                self.failed += 1
                self._fail()
                self._warn(f"failed ({type(error).__name__}: {_short(error)}) and tries again")
            if not self._pause(pause * random.uniform(0.75, 1.25)):  # noqa: S311 - a jitter
                self._lose(len(batch), "did not finish in time")
                return
            pause = min(2 * pause, self._backoff[1])

    def _pause(self, seconds: float) -> bool:
        """Wait before the next attempt; ``False`` if there is no time for one."""
        with self._changed:
            if self._deadline is None:
                self._changed.wait_for(lambda: self._deadline is not None, seconds)
                return True  # closing is a reason to try at once
            seconds = min(seconds, _HURRY)
            left = self._gives_up - time.monotonic()
            if left <= seconds:
                self._deadline = time.monotonic()  # nor is there any for the others
                return False
        time.sleep(seconds)
        return True

    def _fail(self) -> None:
        with self._changed:
            self._failing = True
            self._changed.notify_all()

    def _lose(self, count: int, why: str) -> None:
        with self._changed:
            if self._abandoned:  # counted by close() already
                return
            self.dropped += count
        self._warn(why)

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "telemetry: %s %s; training goes on, what is lost is counted in the summary and "
                "not reported again",
                self._name,
                what,
            )


def _short(error: BaseException, longest: int = 200) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= longest else f"{text[:longest]}…"
