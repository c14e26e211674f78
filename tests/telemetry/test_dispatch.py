"""Writers never slow or break a step."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading

import pytest
import torch

from stableopt import DivergenceError, Guard, StableOptimizer
from stableopt.telemetry import writer_thread
from stableopt.telemetry.writer import BaseWriter


def make(telemetry):
    w = torch.nn.Parameter(torch.ones(2))
    w.grad = torch.ones(2)
    guard = Guard(max_rollbacks=0)
    return StableOptimizer(torch.optim.SGD([w], lr=0.1), telemetry=telemetry, guard=guard)


def test_events_arrive_in_order_at_every_writer(events):
    class Other(type(events)):
        every = 3

    other = Other()
    opt = make([events, other])
    opt._loop.recorder.telemetry.flush()  # else the first summary may be made at the end
    for _ in range(7):
        opt.step()
    opt.close()
    assert [e.step for e in events.seen] == [1, 2, 3, 4, 5, 6, 7]
    assert [e.step for e in other.seen] == [3, 6]
    assert events.closed == other.closed == 1
    assert events.summaries[0]["status"] == "running"
    assert events.summaries[-1]["status"] == "closed"


def test_a_writer_that_raises_is_reported_once_and_counted(events, caplog):
    class Broken:
        def write(self, event):
            raise ValueError("no such table")

        def close(self):
            raise ValueError("not open")

    opt = make([Broken(), events])
    for _ in range(5):
        opt.step()
    opt.close()
    assert len(events.seen) == 5
    reports = [r.message for r in caplog.records if "no such table" in r.message]
    assert len(reports) == 1
    assert "Broken failed (ValueError: no such table)" in reports[0]
    assert opt.summary()["telemetry"]["failed"] == 6


def test_a_writer_that_hangs_does_not_stop_the_loop(caplog, monkeypatch):
    monkeypatch.setattr(writer_thread, "CAPACITY", 4)
    release, entered = threading.Event(), threading.Event()

    class Stuck:
        def write(self, event):
            entered.set()
            release.wait()

        def close(self):
            pass

    opt = make(Stuck())
    opt.step()
    entered.wait()
    for _ in range(20):
        opt.step()
    assert opt.summary()["telemetry"]["dropped"] == 16
    assert sum("too slow" in r.message for r in caplog.records) == 1
    opt._loop.recorder.telemetry.close({}, timeout=0.01)
    assert opt.summary()["telemetry"]["dropped"] == 21  # the last summary, too
    assert sum("telemetry: Stuck" in r.message for r in caplog.records) == 1
    release.set()


def test_a_writer_that_hangs_at_the_end_is_reported(caplog):
    release = threading.Event()

    class Stuck:
        def write(self, event):
            release.wait()

        def close(self):
            pass

    opt = make(Stuck())
    opt.step()
    opt._loop.recorder.telemetry.close({}, timeout=0.01)
    assert sum("Stuck did not finish in time" in r.message for r in caplog.records) == 1
    release.set()


def test_after_close_the_optimizer_goes_on_and_sends_nothing(events):
    opt = make(events)
    opt.step()
    opt.close()
    p = opt.param_groups[0]["params"][0]
    p.grad = torch.full((2,), torch.nan)
    for _ in range(6):
        opt.step()
    with pytest.raises(DivergenceError):
        opt.step()
    assert len(events.seen) == 1
    assert opt.summary()["skips"] == 6
    (writer,) = opt._loop.recorder.telemetry._writers
    assert not writer.channel._queue


def test_a_slow_writer_holds_up_no_other(events, monkeypatch):
    monkeypatch.setattr(writer_thread, "PATIENCE", 0.01)
    release = threading.Event()

    class Stuck(type(events)):
        def write(self, event):
            release.wait()

    opt = make([Stuck(), events])
    for _ in range(30):
        opt.step()
    opt._loop.recorder.telemetry.close({"status": "closed"}, timeout=2.0)
    assert len(events.seen) == 30
    assert events.summaries[-1]["status"] == "closed"
    assert events.closed == 1
    release.set()


def test_not_even_an_exit_inside_a_writer_ends_its_thread(events, caplog):
    class Exit(type(events)):
        def write(self, event):
            raise SystemExit(3)

    writer = Exit()
    opt = make([writer, events])
    for _ in range(5):
        opt.step()
    opt.close()
    assert len(events.seen) == 5
    assert writer.closed == 1
    assert opt.summary()["telemetry"]["failed"] == 5


def test_summaries_are_few_and_short_however_often_a_run_intervenes(events):
    opt = make(events)
    p = opt.param_groups[0]["params"][0]
    for step in range(600):
        p.grad = torch.full((2,), torch.nan if step % 2 else 1.0)
        opt.step()
    opt.close()
    assert len(events.summaries) < 60
    assert events.summaries[-1]["skips"] == 300
    assert len(events.summaries[-1]["ledger"]) == 100
    assert len(opt.ledger) == 300


def test_the_event_that_stops_a_run_is_written_before_the_error(events):
    w = torch.nn.Parameter(torch.ones(2))
    w.grad = torch.full((2,), torch.nan)
    opt = StableOptimizer(torch.optim.SGD([w], lr=0.1), telemetry=events, guard=Guard(max_skips=0))
    with pytest.raises(DivergenceError):
        opt.step()
    assert [e.action.value for e in events.seen] == ["stop"]
    assert events.summaries[-1]["status"] == "stopped"


def test_what_a_writer_has_lost_itself_is_in_the_summary(events):
    class Lossy(BaseWriter):
        def write(self, event):
            return [event, event]

        def deliver(self, records):
            raise writer_thread.RefusedError("not mine")

    class Foreign(type(events)):
        dropped, failed, patience = [], None, "long"

    lossy = Lossy()
    opt = make([lossy, Foreign(), events])
    opt.step()
    opt.close()
    assert opt.summary()["telemetry"] == {"dropped": 2, "failed": 0}
    assert events.summaries[-1]["status"] == "closed"
    assert (lossy.dropped, lossy.failed) == (2, 0)


def test_a_flush_reaches_what_a_writer_holds_back(events):
    class Holding(BaseWriter):
        batch, interval = 10, 3600.0

        def __init__(self):
            self.batches = []

        def write(self, event):
            return [event.step]

        def deliver(self, records):
            self.batches.append(records)

    writer = Holding()
    opt = make(writer)
    assert opt._loop.recorder.telemetry.flush()
    opt.step()
    opt.step()
    assert opt._loop.recorder.telemetry.flush()
    assert [step for batch in writer.batches for step in batch] == [1, 2]
    opt.close()


def test_closing_waits_as_long_as_a_writer_asks_for(events, monkeypatch):
    release = threading.Event()

    class Slow(type(events), BaseWriter):
        patience = 60.0

        def close(self):
            release.wait()
            super().close()

    writer = Slow()
    opt = make(writer)
    threading.Timer(0.05, release.set).start()
    opt._loop.recorder.telemetry.close({}, timeout=0.0)
    assert writer.closed == 1


def test_what_a_writer_returns_does_not_matter(events):
    class Counting(type(events)):
        def write(self, event):
            super().write(event)
            return len(self.seen)

        def write_summary(self, summary):
            super().write_summary(summary)
            return 3

        def close(self):
            super().close()
            return True

    writer = Counting()
    opt = make(writer)
    opt.step()
    opt.close()
    assert (len(writer.seen), writer.closed) == (1, 1)
    assert opt.summary()["telemetry"] == {"dropped": 0, "failed": 0}


def test_a_summary_shows_the_run_as_it_was_when_it_was_sent(events):
    entered, release = threading.Event(), threading.Event()

    class Slow(type(events)):
        def write(self, event):
            entered.set()
            release.wait()

    writer = Slow()
    opt = make(writer)
    opt._loop.recorder.telemetry.flush()
    opt.step()
    entered.wait()
    opt._loop.recorder.telemetry.send_summary(opt._loop.summary())
    for _ in range(5):
        opt.step()
    release.set()
    assert opt._loop.recorder.telemetry.flush()
    assert writer.summaries[-1]["steps"] == 1
    opt.close()


def test_a_writer_that_hangs_does_not_keep_a_program_from_ending():
    code = """
        import threading, torch
        from stableopt import StableOptimizer
        from stableopt.telemetry import writer_thread

        class Stuck:
            every = 1
            def write(self, event):
                threading.Event().wait()
            def close(self):
                pass

        writer_thread.PATIENCE = 0.2
        w = torch.nn.Parameter(torch.ones(2))
        opt = StableOptimizer(torch.optim.SGD([w], lr=0.1), telemetry=Stuck())
        w.grad = torch.ones(2)
        opt.step()
    """
    run = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(run, check=True, timeout=60, capture_output=True, text=True)
    assert done.stderr.count("Stuck did not finish in time") == 1


def test_writers_get_each_other_and_what_closes_the_run(events):
    class Curious(type(events), BaseWriter):
        def begin(self, others, close):
            self.others, self.close_run = others, close

    writer = Curious()
    opt = make([writer, events])
    assert writer.others == [events]
    opt.step()
    writer.close_run()
    assert writer.closed == events.closed == 1
    opt.close()  # a second time
    assert writer.closed == 1
