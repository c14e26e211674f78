"""Several ranks as threads of one process: real wrappers, and calls that only meet at a barrier."""

from __future__ import annotations

import threading

from stableopt.ranks.group import Ranks

PATIENCE = 20
"""Seconds after which a call that some thread does not make breaks."""


class Meeting:
    """What threads exchange.

    Attributes:
        calls: What every rank asked for, in its order.
    """

    def __init__(self, size):
        self.size = size
        self.barrier = threading.Barrier(size)
        self.items = [None] * size
        self.calls = [[] for _ in range(size)]

    def exchange(self, rank, item, what):
        """Return the items of all ranks."""
        self.calls[rank].append(what)
        self.items[rank] = item
        self.barrier.wait(PATIENCE)
        found = list(self.items)
        self.barrier.wait(PATIENCE)
        return found


class ThreadRanks(Ranks):
    """The ranks of a :class:`Meeting`, as one of its threads sees them."""

    def __init__(self, meeting, number):
        super().__init__()
        self.meeting, self.number = meeting, number

    writes = property(lambda self: self.number == 0)

    def expected(self):
        """Return how many there are."""
        return self.meeting.size

    def join(self):
        """Meet."""
        if self._joined:
            return False
        self._joined, self.size, self.rank = True, self.meeting.size, self.number
        return True

    def sum(self, numbers, what):
        """Add up numbers, in the order of the ranks."""
        self.sums += 1
        parts = self.meeting.exchange(self.number, list(numbers), what)
        assert len({len(part) for part in parts}) == 1, what
        return [sum(values) for values in zip(*parts, strict=True)]

    def gather(self, item, what):
        """Return the items of all ranks."""
        self.gathers += 1
        return self.meeting.exchange(self.number, item, what)


def run(size, function):
    """Return what ``function(rank, meeting)`` returns in every thread, and the meeting."""
    meeting, found, errors = Meeting(size), [None] * size, []

    def enter(rank):
        try:
            found[rank] = function(rank, meeting)
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=enter, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    broken = [e for e in errors if not isinstance(e, threading.BrokenBarrierError)]
    for error in [*broken, *errors]:
        raise error
    return found, meeting
