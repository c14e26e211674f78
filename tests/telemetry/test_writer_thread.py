"""A queue that delivers, tries again, and loses what it must, counted."""

from __future__ import annotations

import threading

import pytest

from stableopt.telemetry.writer_thread import Channel, RefusedError

QUICK = (0.001, 0.01)


class Receiver:
    """Takes batches; fails, hangs or refuses on request."""

    def __init__(self):
        self.batches = []
        self.failures = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def __call__(self, batch):
        self.entered.set()
        self.gate.wait()
        if self.failures:
            failure = self.failures.pop(0)
            if failure is not None:
                raise failure
        self.batches.append(list(batch))

    @property
    def items(self):
        return [item for batch in self.batches for item in batch]


@pytest.fixture
def receiver():
    return Receiver()


class Sender(Channel):
    """A channel whose entries are records."""

    def send(self, *records):
        with self._changed:  # they arrive together
            for record in records:
                self.put(lambda record=record: [record])

    def flush(self, timeout=4.0):
        self.hurry()
        return self.wait(timeout)

    def close(self, timeout=4.0, last=()):
        self.finish(lambda: last, timeout)
        self.join(timeout)


def test_everything_arrives_once_and_in_order(receiver):
    channel = Sender(receiver, name="Test", batch=7)
    for item in range(100):
        channel.send(item)
    channel.close()
    assert receiver.items == list(range(100))
    assert max(len(batch) for batch in receiver.batches) <= 7
    assert (channel.dropped, channel.failed) == (0, 0)


def test_items_wait_for_each_other_but_not_for_a_flush(receiver):
    channel = Sender(receiver, name="Test", interval=3600, batch=100)
    channel.send("first")  # there was no delivery that it could share
    while not receiver.batches:
        receiver.entered.wait()
    for item in range(5):
        channel.send(item)
    assert channel.flush()
    assert receiver.batches == [["first"], [0, 1, 2, 3, 4]]
    channel.send(5)
    channel.close()
    assert receiver.batches[2:] == [[5]]


def test_a_full_batch_does_not_wait(receiver):
    channel = Sender(receiver, name="Test", interval=3600, batch=3)
    channel.send(0)
    channel.flush()
    channel.send(1, 2)
    assert receiver.batches == [[0]]
    channel.send(3)
    while len(receiver.batches) < 2:
        receiver.entered.wait()
    channel.close()
    assert receiver.batches == [[0], [1, 2, 3]]


def test_what_fails_is_tried_again_and_logged_once(receiver, caplog):
    receiver.failures = [OSError("down"), OSError("down"), None, OSError("again")]
    channel = Sender(receiver, name="Test", batch=1, backoff=QUICK)
    channel.send(*"ab")
    assert channel.flush()
    channel.send("c")
    channel.close()
    assert receiver.items == list("abc")
    assert (channel.dropped, channel.failed) == (0, 3)
    assert [r.message for r in caplog.records] == [
        "telemetry: Test failed (OSError: down); training goes on, what is lost "
        "is counted in the summary and not reported again"
    ]


def test_what_is_refused_is_not_tried_again(receiver, caplog):
    receiver.failures = [RefusedError("no such run"), RefusedError("two of them", lost=2)]
    channel = Sender(receiver, name="Test", batch=3, backoff=QUICK)
    channel.send(*"abc")
    channel.flush()
    channel.send(*"def")
    channel.flush()
    channel.send(*"ghi")
    channel.close()
    assert receiver.items == list("ghi")
    assert (channel.dropped, channel.failed) == (3 + 2, 0)
    assert len(caplog.records) == 1
    assert "no such run" in caplog.text


def test_what_does_not_fit_is_dropped_the_oldest_first(receiver, caplog):
    receiver.gate.clear()
    channel = Sender(receiver, name="Test", capacity=4, batch=1)
    channel.send("in flight")
    receiver.entered.wait()
    channel.summarize(lambda: ["old summary"])
    channel.send(1, 2, 3, 4, 5, 6)
    channel.summarize(lambda: ["summary"])
    assert channel.dropped == 2
    receiver.gate.set()
    channel.close(last=["end"])
    assert receiver.items == ["in flight", 3, 4, 5, 6, "summary", "end"]
    assert len(caplog.records) == 1


def test_a_receiver_that_stays_down_is_given_up_at_the_end(caplog):
    def down(batch):
        raise OSError("down")

    channel = Sender(down, name="Test", batch=10, backoff=QUICK)
    channel.send(*range(25))
    channel.close(timeout=0.1)
    assert channel.dropped == 25
    assert channel.failed > 1
    assert len(caplog.records) == 1
    channel.send("late")
    assert channel.dropped == 26


def test_one_that_hangs_is_left_behind_and_what_it_holds_is_counted_once(receiver, caplog):
    receiver.gate.clear()
    receiver.failures = [OSError("down")]
    channel = Sender(receiver, name="Test", batch=2, backoff=QUICK)
    channel.send(1, 2)
    receiver.entered.wait()
    channel.send(3, 4)
    assert not channel.flush(timeout=0.01)
    channel.close(timeout=0.01)
    assert channel.dropped == 4 + 1  # and the end
    receiver.gate.set()
    channel._thread.join()
    assert channel.dropped == 4 + 1
    assert len(caplog.records) == 1


def test_closing_wakes_one_that_waits_before_it_tries_again(receiver):
    receiver.failures = [OSError("down")]
    channel = Sender(receiver, name="Test", backoff=(3600, 3600))
    channel.send(1)
    while not channel.failed:
        receiver.entered.wait()
    channel.close(timeout=60)
    assert receiver.items == [1]


def test_not_even_an_exit_ends_the_thread(receiver):
    receiver.failures = [SystemExit(3)]
    channel = Sender(receiver, name="Test", backoff=QUICK)
    channel.send(1)
    channel.close()
    assert receiver.items == [1]


def test_a_flush_waits_for_what_is_slow_and_not_for_what_fails(receiver, monkeypatch):
    monkeypatch.setattr("stableopt.telemetry.writer_thread.PATIENCE", 0.01)
    receiver.gate.clear()
    channel = Sender(receiver, name="Test", backoff=(3600, 3600))
    channel.send(1)
    receiver.entered.wait()
    threading.Timer(0.05, receiver.gate.set).start()
    assert channel.flush(timeout=60)
    receiver.failures = [OSError("down")]
    channel.send(2)
    assert not channel.flush(timeout=60)
    monkeypatch.undo()
    channel.close(timeout=60)
    assert receiver.items == [1, 2]
