"""What W&B has stored offline is what the run said, and other runs are left alone."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import textwrap

import pytest

from stableopt import ConfigError, MissingExtraError
from stableopt.telemetry import LifecycleEvents
from stableopt.telemetry.setup import flat_setup
from tests.integrations.wandb_file import read, read_ended
from tests.telemetry.runs import rows, same, train

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _own(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no .netrc, no settings
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def writer_type():
    from stableopt.integrations.wandb import WandbWriter

    return WandbWriter


def ours(stored):
    return {k: v for k, v in stored.rows.items() if not k[0].startswith("_")}


def agree(found, wanted):
    return {k: repr(float(v)) for k, v in found.items()} == {
        k: repr(float(v)) for k, v in wanted.items()
    }


def expected(events):
    wanted = rows(events)
    return {**wanted, **{("stable/call", call): call for _, call in wanted}}


@pytest.mark.compatibility("Weights & Biases", "the store holds what the run said (offline)")
def test_the_store_holds_what_the_run_said(events, tmp_path, writer_type):
    lifecycle = LifecycleEvents(lambda event: None, trial_id="abc-123", model_run_id="run-456")
    writer = writer_type(mode="offline", directory=tmp_path, project="stability", name="first")
    opt, _ = train([writer, lifecycle, events])
    stored = read(tmp_path)
    found = ours(stored)
    table = {k: found.pop(k) for k in list(found) if k[0].startswith("stable/ledger")}
    assert agree(found, expected(events.seen))
    assert math.isnan(found["stable/loss", 13])
    assert found["stable/loss", 26] == math.inf

    path = next(v for (name, _), v in table.items() if name == "stable/ledger/path")
    (file,) = tmp_path.glob(f"wandb/offline-run-*/files/{path}")
    assert json.loads(file.read_text())["data"] == [
        [event.call, event.action.value, event.reason] for event in opt.ledger
    ]
    assert (stored.config["trial_id"], stored.config["model_run_id"]) == ("abc-123", "run-456")
    assert stored.config["stable"].keys() == flat_setup(opt.summary()).keys()
    assert stored.config["stable"]["optimizer"] == "AdamW"
    assert stored.summary["stable/run/integrity"] == "OK"
    assert stored.summary["stable/run/status"] == "closed"
    assert stored.summary["stable/run/rollbacks"] == 1
    assert (stored.settings.project, stored.settings.display_name) == ("stability", "first")
    assert stored.exit_code == 0
    assert opt.summary()["telemetry"] == {"dropped": 0, "failed": 0}


def test_an_active_run_is_left_alone(events, tmp_path, writer_type):
    import wandb

    with wandb.init(mode="offline", dir=tmp_path / "theirs", group="sweep-7") as theirs:
        writer = writer_type(mode="offline", directory=tmp_path / "ours")
        opt, _ = train([writer, events], faults=False, close=False)
        for epoch in range(3):
            theirs.log({"accuracy": epoch}, step=epoch)  # far below our calls
        assert wandb.run is theirs
        opt.close()
    stored = read(tmp_path / "theirs")
    assert ours(stored) == {("accuracy", epoch): epoch for epoch in range(3)}
    stored = read(tmp_path / "ours")
    assert agree(ours(stored), expected(events.seen))
    assert (stored.settings.run_group, stored.settings.job_type) == ("sweep-7", "stableopt")


@pytest.mark.compatibility("Weights & Biases", "active run")
def test_a_run_that_is_handed_over_is_used_and_left_open(events, tmp_path, writer_type):
    import wandb

    with wandb.init(mode="offline", dir=tmp_path) as theirs:
        theirs.log({"loss": 7.0})
        train([writer_type(run=theirs), events], faults=False)
        theirs.log({"loss": 8.0})
    stored = read(tmp_path)
    losses = [value for (name, _), value in stored.rows.items() if name == "loss"]
    assert losses == [7.0, 8.0]
    by_row = {step: call for (name, step), call in stored.rows.items() if name == "stable/call"}
    found = {(n, by_row[s]): v for (n, s), v in ours(stored).items() if n.startswith("stable/")}
    assert agree(found, expected(events.seen))
    assert stored.exit_code == 0


def test_a_program_that_forgets_to_close(tmp_path):
    code = """
        import sys, torch
        from stableopt import StableOptimizer
        from stableopt.integrations.wandb import WandbWriter
        w = torch.nn.Parameter(torch.ones(2))
        opt = StableOptimizer(
            torch.optim.SGD([w], lr=0.1), telemetry=WandbWriter(mode="offline", every=1)
        )
        for _ in range(5):
            w.grad = torch.ones(2)
            opt.step()
        opt._loop.recorder.telemetry.flush()
        w.grad = torch.ones(2)
        opt.step()
        raise ValueError("the data are gone")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=tmp_path
    )
    assert "stableopt" not in done.stderr.replace("ValueError", "")
    stored = read(tmp_path)
    assert [step for name, step in stored.rows if name == "stable/step"] == [1, 2, 3, 4, 5, 6]
    assert stored.summary["stable/run/status"] == "failed"
    assert stored.exit_code == 1


def test_a_tracker_that_does_not_start_costs_a_warning_and_nothing_else(
    monkeypatch, caplog, writer_type
):
    import wandb

    def refuse(**options):
        raise wandb.errors.CommError("no route to host")

    monkeypatch.setattr(wandb, "init", refuse)
    opt, without = train(writer_type(mode="offline"), faults=False)
    lines = [r.getMessage() for r in caplog.records]
    _, bare = train(None, faults=False)
    assert same(without, bare)
    assert len(lines) == 1
    assert "WandbWriter failed (CommError: no route to host)" in lines[0]
    assert opt.summary()["telemetry"]["failed"] > 1


@pytest.mark.compatibility("Weights & Biases", "a tracker that fails costs a warning")
def test_a_tracker_that_fails_costs_a_warning_and_nothing_else(caplog, writer_type):
    class Full:
        config, summary = {}, {}

        def log(self, row, **options):
            raise OSError(28, "No space left on device")

    _, full = train(writer_type(run=Full()), faults=False)
    lines = [r.getMessage() for r in caplog.records]
    _, bare = train(None, faults=False)
    assert same(full, bare)
    assert len(lines) == 1
    assert "No space left" in lines[0]


def test_it_never_asks_for_a_key_from_a_thread(monkeypatch, writer_type):
    with pytest.raises(ConfigError, match="needs an API key"):
        writer_type()
    with pytest.raises(ConfigError, match="needs an API key"):
        writer_type(mode="online")
    monkeypatch.setenv("WANDB_MODE", "offline")
    writer_type()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    writer_type(mode="online")


@pytest.mark.parametrize(
    "options",
    [{"every": 0}, {"mode": "away"}, {"run": 3}, {"prefix": 1}, {"trial_id": ""}],
    ids=lambda options: next(iter(options)),
)
def test_options_are_checked(options, writer_type):
    with pytest.raises(ConfigError, match=f"{next(iter(options))}="):
        writer_type(**{"mode": "offline", **options})


def test_without_wandb_there_is_a_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delitem(sys.modules, "stableopt.integrations.wandb", raising=False)
    with pytest.raises(MissingExtraError, match=r"stableopt\[wandb\]"):
        import stableopt.integrations.wandb  # noqa: F401


def test_the_reader_of_these_tests_puts_long_records_together(tmp_path):
    import wandb

    with wandb.init(mode="offline", dir=tmp_path) as run:
        run.config["long"] = "x" * 100_000
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert read_ended(path).config["long"] == "x" * 100_000
