"""Which file is a run, and reading it while it grows."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stableopt import ConfigError
from stableopt.recorded import load_run
from stableopt.recorded.files import Follower, Place, find_run, runs_below, select_runs

from .conftest import event


def test_the_newest_run_by_default(write):
    for number in (1, 2, 10):
        where = write([event(number)], number=number)

    assert load_run(where).call == 10
    assert load_run(where, 2).call == 2
    assert (load_run(where).number, load_run(where).siblings) == (10, 3)
    assert load_run(where / "telemetry-2.jsonl").number == 2


def test_summaries_belong_to_their_run(write):
    write([event(1)], {"integrity": "OK"}, number=1)
    where = write([event(2)], {"integrity": "COMPROMISED"}, number=2)

    assert load_run(where, 1).summary["integrity"] == "OK"
    assert load_run(where, 2).summary["integrity"] == "COMPROMISED"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "no", r"^run='.*no' must exist: check the path"),
        (lambda p: p, r"^run='.*' must hold a telemetry.jsonl: give the directory"),
    ],
)
def test_no_run(tmp_path, make, message):
    with pytest.raises(ConfigError, match=message):
        find_run(make(tmp_path))


def test_a_directory_of_runs_is_named(write, tmp_path):
    write([event(1)], directory="a")
    write([event(1)], directory="b")

    with pytest.raises(ConfigError, match=r"holds directories that do: give one of .*a, .*b$"):
        find_run(tmp_path)
    assert [place.path.parent.name for place in runs_below(tmp_path)] == ["a", "b"]


def test_a_run_that_is_not_there(write):
    with pytest.raises(ConfigError, match=r"^run=7 is not in '.*': choose one of 1$"):
        find_run(write([event(1)]), 7)


def test_another_file(write):
    where = write([event(1)], {"integrity": "OK"})
    with pytest.raises(ConfigError, match=r"must be a run directory or a telemetry\*.jsonl"):
        find_run(where / "summary.json")
    with pytest.raises(ConfigError, match=r"^run=1 must not be given with a file"):
        find_run(where / "telemetry.jsonl", 1)


def test_the_same_run_is_read_once(write, tmp_path):
    where = write([event(1)])

    assert len(select_runs([where, tmp_path, where / "telemetry.jsonl"])[0]) == 1


def test_torn_lines_are_counted(write):
    where = write([event(1)], torn='{"event": "st')
    with (where / "telemetry.jsonl").open("ab") as file:
        file.write(b'\n\xff\xfe{}\n[1]\n\n{"event": "step"')
    run = load_run(where)

    assert (run.records, run.unreadable) == (1, 4)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"status": "closed"}', "\udcff"])
def test_a_summary_that_is_none(write, text):
    where = write([event(1)])
    (where / "summary.json").write_text(text, errors="surrogateescape")

    assert load_run(where).summary is None


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_however_it_grows_the_run_is_the_same(tmp_path_factory, data):
    where = tmp_path_factory.mktemp("growing")
    records = [event(i, loss=f"{'NaN' if i == 3 else 'ü' * i}") for i in range(1, 6)]
    whole = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    path = where / "telemetry.jsonl"
    path.write_bytes(b"")
    follower = Follower(Place(path, 1))
    for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        with path.open("ab") as file:
            file.write(whole[start:end])
        follower.poll()

    assert follower.run.records == 5
    assert follower.run.unreadable == 0
    assert not follower.poll()


def test_a_summary_that_changes_is_read_again(write):
    where = write([event(1)], {"integrity": "OK"})
    follower = Follower(find_run(where))
    follower.poll()
    write([event(1)], {"integrity": "COMPROMISED", "calls": 1})

    assert follower.poll()
    assert follower.run.summary["integrity"] == "COMPROMISED"


def test_a_file_that_was_replaced_is_read_anew(write):
    where = write([event(1), event(2), event(3)])
    follower = Follower(find_run(where))
    follower.poll()
    write([event(7)])
    follower.poll()

    assert (follower.run.records, follower.run.call) == (1, 7)


def test_a_file_that_is_gone(write):
    where = write([event(1)])
    follower = Follower(find_run(where))
    (where / "telemetry.jsonl").unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        follower.poll()


def test_what_holds_no_run_is_set_apart(write, tmp_path):
    where = write([event(1)], {"integrity": "OK"})
    other = write([event(1)], directory="other")
    (tmp_path / "audit").mkdir()
    (tmp_path / "model.pt").write_text("")
    paths = sorted(tmp_path.iterdir())

    places, without = select_runs([*paths, where / "summary.json"])
    assert [place.path.parent for place in places] == [other, where]
    assert without == [tmp_path / "audit", tmp_path / "model.pt", where / "summary.json"]


def test_without_any_run(tmp_path):
    (tmp_path / "audit").mkdir()
    (tmp_path / "model.pt").write_text("")

    with pytest.raises(ConfigError, match=r"model.pt' must be a run directory"):
        select_runs([tmp_path / "model.pt"])
    with pytest.raises(ConfigError, match=r"^runs=\['.*audit', '.*model.pt'\] must hold"):
        select_runs([tmp_path / "audit", tmp_path / "model.pt"])
