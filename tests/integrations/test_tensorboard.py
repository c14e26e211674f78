"""TensorBoard's own reader finds what the run said, live, and after any end."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from stableopt import ConfigError, JsonLines, MissingExtraError
from stableopt.telemetry.metrics import PREFIX
from tests.telemetry.runs import STEPS, rows, same, train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*")


@pytest.fixture
def writer_type():
    from stableopt.integrations.tensorboard import TensorBoardWriter

    return TensorBoardWriter


def read(directory):
    """Return scalars as ``{(tag, step): value}`` and texts as ``{tag: [(step, text)]}``."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    store = EventAccumulator(str(directory), size_guidance={"tensors": 0, "scalars": 0})
    store.Reload()
    scalars = {
        (tag, point.step): point.value
        for tag in store.Tags()["scalars"]
        for point in store.Scalars(tag)
    }
    texts = {
        tag.removesuffix("/text_summary"): [
            (point.step, point.tensor_proto.string_val[0].decode()) for point in store.Tensors(tag)
        ]
        for tag in store.Tags()["tensors"]
    }
    return scalars, texts


def agree(found, wanted):
    """Return whether a store that keeps float32 has exactly what is wanted, NaN and Inf too."""
    return found.keys() == wanted.keys() and all(
        np.array_equal(np.float32(found[key]), np.float32(value), equal_nan=True)
        for key, value in wanted.items()
    )


@pytest.mark.compatibility("TensorBoard", "the store holds what the run said")
def test_the_store_holds_what_the_run_said(events, tmp_path, writer_type):
    opt, _ = train([writer_type(tmp_path), events])
    scalars, texts = read(tmp_path)
    wanted = rows(events.seen)
    assert agree(scalars, wanted)
    assert np.isnan(scalars[f"{PREFIX}loss", 13])
    assert np.isinf(scalars[f"{PREFIX}loss", 26])
    wanted = [(e.call, e.reason) for e in events.seen if e.reason]
    assert len(wanted) == 2
    for (call, reason), (step, text) in zip(wanted, texts[f"{PREFIX}ledger"], strict=True):
        assert step == call
        assert text.endswith(f"because {reason}")
    assert '"status": "closed"' in texts[f"{PREFIX}summary"][-1][1]
    assert opt.summary()["telemetry"] == {"dropped": 0, "failed": 0}


@pytest.mark.compatibility("TensorBoard", "live")
def test_a_run_can_be_watched_while_it_goes(events, tmp_path, writer_type):
    opt, _ = train([writer_type(tmp_path), events], close=False)
    opt._loop.recorder.telemetry.flush()
    scalars, _ = read(tmp_path)
    assert agree(scalars, rows(events.seen))
    opt.close()


def test_a_second_run_gets_a_directory_of_its_own(tmp_path, writer_type):
    made = []
    for _ in range(3):
        writer = writer_type(tmp_path)
        made.append(writer.directory)
        train([writer, JsonLines(tmp_path)], steps=10)
    assert made == [tmp_path, tmp_path / "run-2", tmp_path / "run-3"]
    assert all((f"{PREFIX}loss", 10) in read(directory)[0] for directory in made)


def test_the_events_of_others_do_not_matter(tmp_path, writer_type):
    (tmp_path / "events.out.tfevents.1.host").write_bytes(b"")
    assert writer_type(tmp_path).directory == tmp_path


def test_options(events, tmp_path, writer_type):
    train([writer_type(tmp_path, every=1, prefix="guard.", layers=False), events], faults=False)
    scalars, _ = read(tmp_path)
    assert {call for _, call in scalars} == {event.call for event in events.seen}
    assert all(tag.startswith("guard.") and "/layers/" not in tag for tag, _ in scalars)
    for options in ({"every": 0}, {"prefix": 3}):
        with pytest.raises(ConfigError, match=f"{next(iter(options))}="):
            writer_type(tmp_path, **options)


@pytest.mark.parametrize("directory", ["", 3, "null\0byte", __file__])
def test_a_directory_that_cannot_be_is_an_error_at_once(directory, writer_type):
    with pytest.raises(ConfigError, match="directory="):
        writer_type(directory)


@pytest.mark.compatibility("TensorBoard", "a full disk costs a warning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_costs_a_warning_and_its_events(
    events, tmp_path, monkeypatch, caplog, writer_type
):
    from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem

    writer = writer_type(tmp_path, every=1)
    real, full = LocalFileSystem.append, set(range(60, 64))
    records = []

    def append(self, filename, data, binary_mode=False):
        records.append(filename)
        if len(records) in full:
            real(self, filename, data[:7], binary_mode)  # a disk fills in the middle of a record
            raise OSError(28, "No space left on device")
        real(self, filename, data, binary_mode)

    monkeypatch.setattr(LocalFileSystem, "append", append)
    opt, full_disk = train([writer, events], faults=False)
    monkeypatch.undo()
    warnings = [r.message for r in caplog.records]
    scalars, _ = read(tmp_path)
    wanted = rows(events.seen, every=1)
    assert agree(scalars, {key: wanted[key] for key in scalars})
    lost = {call for name, call in wanted if (name, call) not in scalars}
    assert len(lost) in (3, 4)  # one of the four may have been a summary
    assert max(lost) < STEPS  # the others are in another file
    assert opt.summary()["telemetry"]["failed"] == 4
    assert len(warnings) == 1
    assert "No space left" in warnings[0]
    _, bare = train(None, faults=False)
    assert same(full_disk, bare)


def test_without_tensorboard_there_is_a_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.delitem(sys.modules, "stableopt.integrations.tensorboard", raising=False)
    with pytest.raises(MissingExtraError, match=r"stableopt\[tensorboard\]"):
        import stableopt.integrations.tensorboard  # noqa: F401


def test_a_writer_that_is_closed_writes_nowhere(events, tmp_path, writer_type):
    writer, lines = writer_type(tmp_path), JsonLines(tmp_path)
    train([writer, lines, events], steps=3)
    with open(tmp_path / "other", "wb") as one, open(tmp_path / "another", "wb") as two:
        with pytest.raises(OSError, match="Bad file descriptor"):
            lines.write(events.seen[0])
        with pytest.raises(OSError, match="Bad file descriptor"):
            lines.close()
        with pytest.raises(ValueError, match="the event file is closed"):
            writer.write(events.seen[0])
        writer.close()
        one.write(b"1")
        two.write(b"2")
    assert (tmp_path / "other").read_bytes() == b"1"
    assert (tmp_path / "another").read_bytes() == b"2"
