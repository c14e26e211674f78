"""A study that survives its processes, in a journal or in a database."""

from __future__ import annotations

import subprocess
import sys

import optuna
import pytest

from stableopt import ConfigError
from stableopt.integrations.optuna import open_study

works_with = pytest.mark.compatibility


@pytest.fixture(autouse=True)
def quiet():
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


WORKER = """
import sys
import optuna
from stableopt.integrations.optuna import open_study
optuna.logging.set_verbosity(optuna.logging.ERROR)
study = open_study("shared", sys.argv[1], direction="maximize")
study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=5)
"""


class TestStudy:
    @works_with("Optuna", "journal")
    def test_two_processes_work_on_one_journal(self, tmp_path):
        path = str(tmp_path / "deep" / "shared.journal")
        command = [sys.executable, "-c", WORKER, path]
        running = [subprocess.Popen(command) for _ in range(2)]
        assert [process.wait(timeout=120) for process in running] == [0, 0]
        study = open_study("shared", path)
        assert [trial.number for trial in study.trials] == list(range(10))
        assert study.direction.name == "MAXIMIZE"
        assert study.best_value == max(trial.value for trial in study.trials)

    def test_a_journal_named_for_the_study_is_the_default(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        open_study("search").optimize(lambda trial: 0.0, n_trials=1)
        assert (tmp_path / "search.journal").is_file()
        assert len(open_study("search").trials) == 1

    @works_with("Optuna", "sqlite")
    def test_a_url_is_a_database(self, tmp_path):
        url = f"sqlite:///{tmp_path / 'study.db'}"
        open_study("search", url).optimize(lambda trial: trial.number, n_trials=2)
        assert [trial.value for trial in open_study("search", url).trials] == [0, 1]

    def test_a_storage_of_optuna(self):
        storage = optuna.storages.InMemoryStorage()
        assert open_study("search", storage)._storage is storage

    def test_load_if_exists_can_be_refused(self, tmp_path):
        path = tmp_path / "search.journal"
        open_study("search", path)
        with pytest.raises(optuna.exceptions.DuplicatedStudyError):
            open_study("search", path, load_if_exists=False)

    @pytest.mark.parametrize("name", ["", None, 3])
    def test_a_study_has_a_name(self, name):
        with pytest.raises(ConfigError, match="must be a string that is not empty"):
            open_study(name)

    def test_a_name_that_makes_no_file_name(self, tmp_path):
        with pytest.raises(ConfigError, match="give storage= as a path"):
            open_study("runs/search")
        assert open_study("runs/search", tmp_path / "x").study_name == "runs/search"

    def test_a_storage_that_is_none(self):
        with pytest.raises(ConfigError, match="storage=3 must be a path, a URL or a storage"):
            open_study("search", 3)

    def test_a_journal_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigError, match="cannot be written"):
            open_study("search", tmp_path / "file" / "search.journal")
        with pytest.raises(ConfigError, match="cannot be written"):
            open_study("search", tmp_path)

    @pytest.mark.parametrize(
        ("first", "again", "message"),
        [
            ({}, {"direction": "maximize"}, "direction='maximize' .* direction='minimize': "),
            (
                {"directions": ["minimize", "maximize"]},
                {"directions": ["minimize", "minimize"]},
                r"directions=\['minimize', 'minimize'\] .* directions=\['minimize', 'maximize'\]",
            ),
            (
                {"direction": "maximize"},
                {"direction": optuna.study.StudyDirection.MINIMIZE},
                "MINIMIZE.* direction='maximize': ",
            ),
        ],
    )
    def test_a_study_that_looks_for_something_else(self, tmp_path, first, again, message):
        path = tmp_path / "search.journal"
        open_study("search", path, **first)
        with pytest.raises(ConfigError, match=message):
            open_study("search", path, **again)
        for same in (first, {}, {"direction": None}):
            known = open_study("search", path, **same).directions
            assert known == open_study("search", path).directions
        other = open_study("other", path, **again)
        assert other.directions != known


class TestJournal:
    def torn(self, path, half):
        """Return what a study of two trials wrote, and write a part of a record behind it."""
        open_study("search", path).optimize(lambda trial: 1.0, n_trials=2)
        whole = path.read_bytes()
        path.write_bytes(whole + half)
        return whole

    def test_half_a_record_is_an_error_that_says_how_to_mend_it(self, tmp_path):
        path = tmp_path / "search.journal"
        whole = self.torn(path, b'{"op_code": 4, "wor')
        with pytest.raises(ConfigError, match=r"the last line of .*search\.journal") as caught:
            open_study("search", path)
        assert "remove the incomplete record" in str(caught.value)
        assert path.read_bytes() == whole + b'{"op_code": 4, "wor'
        path.write_bytes(whole)  # as the message says
        study = open_study("search", path)
        study.optimize(lambda trial: 2.0, n_trials=2)
        assert [trial.value for trial in study.trials] == [1, 1, 2, 2]
        assert [trial.value for trial in open_study("search", path).trials] == [1, 1, 2, 2]

    def test_a_record_without_its_line_end_is_an_error(self, tmp_path):
        path = tmp_path / "search.journal"
        whole = self.torn(path, b"")
        path.write_bytes(whole.rstrip(b"\n"))
        with pytest.raises(ConfigError, match="the last line is incomplete"):
            open_study("search", path)
        assert path.read_bytes() == whole.rstrip(b"\n")

    @pytest.mark.parametrize(
        "text",
        [
            "hello\nnot json\n",
            "hello\n",
            "hello",
            "hello\nworld",
            "{}",
            "[1]\n",
            "{}\n{}\n",
            "\x00\xff\n\n",
            '{"op_code":4}\n',
        ],
    )
    def test_another_file_is_refused_and_stays_as_it_is(self, tmp_path, text):
        path = tmp_path / "search.journal"
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"search\.journal' cannot be read .*another file"):
            open_study("search", path)
        assert path.read_text() == text
        assert sorted(found.name for found in tmp_path.iterdir()) == ["search.journal"]

    def test_a_broken_line_in_the_middle_is_refused(self, tmp_path):
        path = tmp_path / "search.journal"
        whole = self.torn(path, b'{"op_code": 4, "wor{"op_code": 4}\n')
        for more in (b"", whole):
            path.write_bytes(path.read_bytes() + more)
            before = path.read_bytes()
            with pytest.raises(ConfigError, match="remove the incomplete record"):
                open_study("search", path)
            assert path.read_bytes() == before
