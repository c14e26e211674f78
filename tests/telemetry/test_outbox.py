"""A queue that delivers, tries again, and loses what it must, counted."""

from __future__ import annotations

import threading

import pytest

from stableopt.telemetry.outbox import Outbox, RefusedError

QUICK = (0.001, 0.01)


class Receiver:
    """Takes batches; fails, hangs or refuses where it is told to."""

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


def test_everything_arrives_once_and_in_order(receiver):
    outbox = Outbox(receiver, name="Test", batch=7)
    for item in range(100):
        outbox.put(item)
    outbox.close()
    assert receiver.items == list(range(100))
    assert max(len(batch) for batch in receiver.batches) <= 7
    assert (outbox.dropped, outbox.failed) == (0, 0)


def test_items_wait_for_each_other_but_not_for_a_flush(receiver):
    outbox = Outbox(receiver, name="Test", interval=3600)
    outbox.put("first")  # there was no delivery that it could share
    while not receiver.batches:
        receiver.entered.wait()
    for item in range(5):
        outbox.put(item)
    assert outbox.flush()
    assert receiver.batches == [["first"], [0, 1, 2, 3, 4]]
    outbox.put(5)
    outbox.close()
    assert receiver.batches[2:] == [[5]]


def test_a_full_batch_does_not_wait(receiver):
    outbox = Outbox(receiver, name="Test", interval=3600, batch=3)
    outbox.put(0)
    outbox.flush()
    outbox.put_all([1, 2])
    assert receiver.batches == [[0]]
    outbox.put(3)
    while len(receiver.batches) < 2:
        receiver.entered.wait()
    outbox.close()
    assert receiver.batches == [[0], [1, 2, 3]]


def test_what_fails_is_tried_again_and_told_once(receiver, caplog):
    receiver.failures = [OSError("down"), OSError("down"), None, OSError("again")]
    outbox = Outbox(receiver, name="Test", batch=1, backoff=QUICK)
    outbox.put_all("ab")
    assert outbox.flush()
    outbox.put("c")
    outbox.close()
    assert receiver.items == list("abc")
    assert (outbox.dropped, outbox.failed) == (0, 3)
    assert [r.message for r in caplog.records] == [
        "telemetry: Test failed (OSError: down) and tries again; training goes on, what is lost "
        "is counted in the summary and not reported again"
    ]


def test_what_is_refused_is_not_tried_again(receiver, caplog):
    receiver.failures = [RefusedError("no such run"), RefusedError("two of them", lost=2)]
    outbox = Outbox(receiver, name="Test", batch=3, backoff=QUICK)
    outbox.put_all("abc")
    outbox.flush()
    outbox.put_all("def")
    outbox.flush()
    outbox.put_all("ghi")
    outbox.close()
    assert receiver.items == list("ghi")
    assert (outbox.dropped, outbox.failed) == (3 + 2, 0)
    assert len(caplog.records) == 1
    assert "no such run" in caplog.text


def test_what_does_not_fit_is_dropped_the_oldest_first(receiver, caplog):
    receiver.gate.clear()
    outbox = Outbox(receiver, name="Test", capacity=4, batch=1, keeps=lambda item: item == "keep")
    outbox.put("in flight")
    receiver.entered.wait()
    outbox.put_all(["keep", 1, 2, 3, 4])
    assert outbox.dropped == 2
    receiver.gate.set()
    outbox.close()
    assert receiver.items == ["in flight", "keep", 3, 4]
    assert len(caplog.records) == 1


def test_a_receiver_that_stays_down_is_given_up_at_the_end(caplog):
    def down(batch):
        raise OSError("down")

    outbox = Outbox(down, name="Test", batch=10, backoff=QUICK)
    outbox.put_all(range(25))
    outbox.close(timeout=0.1)
    assert outbox.dropped == 25
    assert outbox.failed > 1
    assert len(caplog.records) == 1
    outbox.put("late")
    assert outbox.dropped == 26


def test_one_that_hangs_is_left_behind_and_what_it_holds_is_counted_once(receiver, caplog):
    receiver.gate.clear()
    receiver.failures = [OSError("down")]
    outbox = Outbox(receiver, name="Test", batch=2, backoff=QUICK)
    outbox.put_all([1, 2])
    receiver.entered.wait()
    outbox.put_all([3, 4])
    assert not outbox.flush(timeout=0.01)
    outbox.close(timeout=0.01)
    assert outbox.dropped == 4
    receiver.gate.set()
    outbox._thread.join()
    assert outbox.dropped == 4
    assert len(caplog.records) == 1


def test_closing_wakes_one_that_waits_before_it_tries_again(receiver):
    receiver.failures = [OSError("down")]
    outbox = Outbox(receiver, name="Test", backoff=(3600, 3600))
    outbox.put(1)
    while not outbox.failed:
        receiver.entered.wait()
    outbox.close(timeout=60)
    assert receiver.items == [1]


def test_not_even_an_exit_ends_the_thread(receiver):
    receiver.failures = [SystemExit(3)]
    outbox = Outbox(receiver, name="Test", backoff=QUICK)
    outbox.put(1)
    outbox.close()
    assert receiver.items == [1]


def test_a_flush_waits_for_what_is_slow_and_not_for_what_fails(receiver, monkeypatch):
    monkeypatch.setattr("stableopt.telemetry.outbox.PATIENCE", 0.01)
    receiver.gate.clear()
    outbox = Outbox(receiver, name="Test", backoff=(3600, 3600))
    outbox.put(1)
    receiver.entered.wait()
    threading.Timer(0.05, receiver.gate.set).start()
    assert outbox.flush(timeout=60)
    receiver.failures = [OSError("down")]
    outbox.put(2)
    assert not outbox.flush(timeout=60)
    monkeypatch.undo()
    outbox.close(timeout=60)
    assert receiver.items == [1, 2]
