"""The view on a terminal: what it shows, when it waits, when it ends."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from stableopt import ConfigError
from stableopt.commands.watch.terminal import draw_frame, sparkline
from stableopt.commands.watch.watch import WatchOptions, watch_run
from stableopt.recorded import load_run, status_of
from stableopt.recorded.trace import Trace

from .conftest import event

OPEN = {"status": "running", "integrity": "OK", "calls": 0, "steps": 0}
CLOSED = {"status": "closed", "integrity": "OK", "calls": 2, "steps": 2}


class Stage:
    """A console, and a clock whose every tick does the next thing on a list."""

    def __init__(self, *acts, width=100, terminal=False, encoding="utf-8"):
        buffer = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
        self.console = Console(
            file=buffer, width=width, height=40, force_terminal=terminal, color_system=None
        )
        self.naps = []
        self._acts = list(acts)

    def sleep(self, seconds):
        self.naps.append(seconds)
        assert self._acts, "nothing would ever wake it"
        self._acts.pop(0)()

    def watch(self, where, **options):
        return watch_run(WatchOptions(where=where, **options), self.console, self.sleep)

    @property
    def text(self):
        self.console.file.seek(0)
        return self.console.file.read()


def test_one_frame(trained):
    stage = Stage()

    assert stage.watch(trained[0], once=True) == 0
    assert stage.text.startswith(f"OK  {trained[0]}")
    for words in (
        "closed · call 150 · step 119",
        "loss",
        "grad norm",
        "lr        0.01",
        "risk",
        "since call",
        "layers that stand out",
        "0.weight  faults 2",
        "interventions, newest first",
    ):
        assert words in stage.text
    lines = stage.text.splitlines()
    newest, older = (
        next(i for i, line in enumerate(lines) if line.startswith(f"call {call} "))
        for call in (131, 21)
    )
    assert newest < older
    assert stage.naps == []


@pytest.mark.parametrize("width", [20, 40, 60, 200])
def test_no_line_is_wider_than_the_terminal(trained, width):
    run = load_run(trained[0])
    console = Console(width=width)
    frame = draw_frame(run, status_of(run), "a run", console, now=0.0)

    lines = console.render_lines(frame, pad=False)
    assert all(sum(part.cell_length for part in line) <= width for line in lines)
    assert any("loss" in part.text for line in lines for part in line)


@pytest.mark.parametrize("rows", [12, 24, 60])
def test_a_frame_has_room_for_what_is_newest(write, rows):
    run = load_run(write([event(2 * i, i, "skip", reason="spike") for i in range(1, 200)]))
    console = Console(width=80)
    frame = draw_frame(run, status_of(run), "a run", console, now=0.0, rows=rows)

    text = "\n".join("".join(p.text for p in line) for line in console.render_lines(frame))
    assert "call 398 skipped" in text
    assert "older ones" in text
    assert len(console.render_lines(frame)) <= max(rows, 14)


def test_letters_that_every_terminal_has(trained):
    stage = Stage(encoding="ascii")
    run = load_run(trained[0])

    assert not set("▁▂▃▄▅▆▇█") & set(
        "".join(
            part.text
            for line in stage.console.render_lines(
                draw_frame(run, status_of(run), "a run", stage.console, now=0.0)
            )
            for part in line
        )
    )


def test_names_cannot_write_to_the_terminal(write):
    evil = "\x1b[2Jweight"
    low = {"step": 1, "relative_rank": 0.1}
    stage = Stage()
    stage.watch(write([event(1, readings={evil: low}, reason=evil)]), once=True)

    assert "\x1b" not in stage.text
    assert "\\x1b[2Jweight" in stage.text


def test_json_is_json_and_nothing_else(trained, write):
    stage = Stage(width=20)
    stage.watch(trained[0], once=True, as_json=True)
    assert json.loads(stage.text)["rollbacks"] == 1

    stage = Stage()
    code = stage.watch(write([event(1, loss="NaN")]), once=True, as_json=True)
    record = json.loads(stage.text)
    assert (code, record["bad"], record["last_loss"]) == (1, True, "NaN")


def test_it_follows_until_the_run_ends(write):
    where = write([event(1)], OPEN)
    stage = Stage(
        lambda: write([event(1), event(2)], OPEN),
        lambda: None,
        lambda: write([event(1), event(2)], CLOSED),
    )

    assert stage.watch(where, every=0.5) == 0
    assert [line.split("  ")[0] for line in stage.text.splitlines()] == [
        *("call 1", "call 2", "call 2")
    ]
    assert stage.naps == [0.5] * 3


def test_it_ends_with_a_run_that_was_stopped(write):
    stop = event(2, 0, "stop", reason="nothing helped")
    stage = Stage(lambda: write([event(1), stop], OPEN))

    assert stage.watch(write([event(1)], OPEN)) == 1


def test_a_live_view_is_drawn_anew(write):
    where = write([event(1)], OPEN)
    stage = Stage(lambda: write([event(1), event(2)], CLOSED), terminal=True)

    assert stage.watch(where) == 0
    assert "call 1 ·" in stage.text
    assert "call 2 ·" in stage.text
    # The cursor comes back.
    assert stage.text.rstrip().endswith("\x1b[?25h")


def test_it_waits_for_a_run_to_begin(write, tmp_path):
    stage = Stage(lambda: None, lambda: write([event(1)], CLOSED))

    assert stage.watch(tmp_path / "run") == 0
    assert stage.text.count(f"Waiting for a run in {tmp_path / 'run'} …") == 1


def test_it_waits_no_longer_than_it_may(tmp_path):
    stage = Stage(*[lambda: None] * 3)

    with pytest.raises(ConfigError, match=r"^run='.*' must exist"):
        stage.watch(tmp_path / "run", wait=2.5)
    assert stage.naps == [1.0, 1.0, 0.5]


def test_once_does_not_wait(tmp_path):
    with pytest.raises(ConfigError, match="must exist"):
        Stage().watch(tmp_path / "run", once=True)


def test_it_does_not_wait_for_what_can_not_come(write, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="must be a run directory"):
        Stage().watch(tmp_path / "file")
    where = write([event(1)])
    with pytest.raises(ConfigError, match="holds directories that do"):
        Stage().watch(tmp_path)
    with pytest.raises(ConfigError, match="run=3 is not in"):
        Stage().watch(where, number=3)


def test_a_newer_run_of_the_directory_takes_over(write):
    where = write([event(1)], OPEN)
    stage = Stage(lambda: write([event(7)], CLOSED, number=2))
    stage.watch(where)
    assert stage.text.splitlines()[-1].startswith("call 7  ")

    where = write([event(1)], OPEN)
    stage = Stage(lambda: write([event(1), event(2)], CLOSED))
    stage.watch(where, number=1)
    assert stage.text.splitlines()[-1].startswith("call 2  ")


def test_a_directory_that_is_removed(write):
    where = write([event(1)], OPEN)

    def remove():
        for path in where.iterdir():
            path.unlink()
        where.rmdir()

    with pytest.raises(ConfigError, match="cannot be read"):
        Stage(remove).watch(where)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, r"^every=0 must be a number above 0"),
        ({"wait": -1}, r"^wait=-1 must be at least 0"),
        ({"wait": float("nan")}, r"^wait=nan must be at least 0"),
        ({"as_json": True}, r"^json=True needs once=True: add --once"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        WatchOptions(where=tmp_path, **options)


def test_sparklines():
    trace = Trace()
    for x in range(100):
        trace.add(x, float(x))

    line = sparkline(trace, 8).plain
    assert line == "▁▂▃▄▅▆▇█"
    assert sparkline(trace, 0).plain == ""
    assert sparkline(Trace(), 8).plain == ""
    constant = Trace()
    constant.add(1, 3.0)
    assert len(sparkline(constant, 8).plain) == 1


def test_a_line_after_a_nan_stays_broken_until_a_number_is_recorded():
    trace = Trace()
    values = {0: 3.0, 4: 2.0, 16: float("nan"), 48: float("nan"), 96: 1.0, 99: 1.0}
    for i, x in enumerate(range(100)):
        if x in values or i < 10:
            trace.add(x, values.get(x, 2.0))

    assert sparkline(trace, 10).plain == "▅xxxxxxxx▁"


def test_a_number_behind_a_nan_in_the_same_column_is_the_newest():
    trace = Trace()
    for x, value in [(0, 3.0), (1, float("nan")), (2, 1.0), (98, 3.0), (99, 3.0)]:
        trace.add(x, value)

    assert sparkline(trace, 5).plain == "x▁▁▁█"


@pytest.mark.parametrize("level", ["stable", "instability"])
def test_words_and_numbers_do_not_touch(write, level):
    records = [event(i, risk=level, loss=-1.23456e-100) for i in range(1, 9)]
    stage = Stage(width=60)
    stage.watch(write(records), once=True)

    assert f"{level} since call 1" in " ".join(stage.text.split())
    assert "-1.235e-100 " in stage.text
    assert max(map(len, stage.text.splitlines())) <= 60


@pytest.mark.parametrize("state", ["failed", "interrupted"])
@pytest.mark.parametrize("terminal", [False, True])
def test_it_ends_with_a_program_that_did_not_come_to_its_end(write, state, terminal):
    where = write([event(1)], OPEN)
    stage = Stage(lambda: write([event(1)], {**OPEN, "status": state}), terminal=terminal)

    assert stage.watch(where) == 1
    assert state in stage.text
