"""A real tracking server, asked after a run: what the run said, no more, no less."""

from __future__ import annotations

import importlib.util
import json
import math
import socket
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch

from stableopt import (
    ConfigError,
    DivergenceError,
    Guard,
    JsonLines,
    MissingExtraError,
    StableOptimizer,
)
from stableopt.telemetry import LifecycleEvents, read_events, writer_thread
from stableopt.telemetry.setup import flat_setup
from tests.integrations.mlflow_server import serve
from tests.telemetry.runs import rows, same, train

pytestmark = pytest.mark.filterwarnings("ignore")

LARGEST = sys.float_info.max
"""What MLflow's databases keep of Inf."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(autouse=True)
def _own(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def mlflow(server):
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(server.uri)
    yield mlflow
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(before)


@pytest.fixture
def make(server):
    from stableopt.integrations.mlflow import MLflowWriter

    return lambda **options: MLflowWriter(**{"tracking_uri": server.uri, **options})


def stored(uri, run_id):
    """Return the metrics of a run as ``{(name, step): value}``, and the run."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    run = client.get_run(run_id)
    found = {}
    for name in run.data.metrics:
        for metric in client.get_metric_history(run_id, name):
            assert (name, metric.step) not in found, "logged twice"
            found[name, metric.step] = metric.value
    return found, run


def finite(values):
    """Return values as MLflow keeps them."""
    return {k: math.copysign(LARGEST, v) if math.isinf(v) else v for k, v in values.items()}


def artifact(uri, run_id, path, tmp_path):
    from mlflow import MlflowClient

    return MlflowClient(uri).download_artifacts(run_id, path, str(tmp_path))


def agree(found, wanted):
    return {k: repr(v) for k, v in found.items()} == {k: repr(v) for k, v in wanted.items()}


@pytest.mark.compatibility("MLflow", "the store holds what the run said")
def test_the_store_holds_what_the_run_said(events, tmp_path, server, make):
    received = []
    lines = JsonLines(tmp_path / "run")
    lifecycle = LifecycleEvents(received.append, trial_id="abc-123", model_run_id="run-456")
    writer = make(experiment="stability", run_name="first", tags={"team": "a"})
    opt, _ = train([writer, lines, lifecycle, events])
    metrics, run = stored(server.uri, writer.run_id)

    assert agree(metrics, finite(rows(events.seen)))
    assert math.isnan(metrics["stable/loss", 13])
    assert metrics["stable/loss", 26] == LARGEST
    assert metrics["stable/skips", 13] == metrics["stable/rollbacks", 26] == 1

    wanted = {f"stable/{name}": value for name, value in flat_setup(opt.summary()).items()}
    assert run.data.params.keys() == wanted.keys()
    assert run.data.params["stable/optimizer"] == "AdamW"
    assert run.data.params["stable/lr"] == "0.001"
    assert run.data.params["stable/betas"] == "[0.9, 0.999]"
    assert run.data.params["stable/spectral_norm"] == "true"

    tags = {k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.")}
    assert tags == {
        "trial_id": "abc-123",
        "model_run_id": "run-456",
        "team": "a",
        "stable.status": "closed",
        "stable.integrity": "OK",
        "stable.last_intervention": opt.ledger[-1].reason,
    }
    assert all(event["metadata"]["trial_id"] == tags["trial_id"] for event in received)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "first")

    copied = artifact(server.uri, writer.run_id, "stable/summary.json", tmp_path)
    summary = json.loads(Path(copied).read_text())
    assert (summary["status"], summary["rollbacks"]) == ("closed", 1)
    copied = artifact(server.uri, writer.run_id, "stable/telemetry.jsonl", tmp_path)
    assert list(read_events(copied)) == list(read_events(lines.path))
    assert opt.summary()["telemetry"] == {"dropped": 0, "failed": 0}


@pytest.mark.compatibility("MLflow", "live")
def test_a_run_can_be_watched_while_it_goes(events, server, make):
    writer = make()
    opt, _ = train([writer, events], close=False)
    opt._loop.recorder.telemetry.flush()
    metrics, run = stored(server.uri, writer.run_id)
    assert agree(metrics, finite(rows(events.seen)))
    assert run.info.status == "RUNNING"
    opt.close()


@pytest.mark.compatibility("MLflow", "active run")
def test_the_active_run_is_used_and_left_open(events, server, mlflow):
    from stableopt.integrations.mlflow import MLflowWriter

    with mlflow.start_run() as active:
        mlflow.log_param("learning_rate", 3)
        mlflow.log_metric("loss", 7.0, step=1)
        writer = MLflowWriter()
        assert writer.run_id == active.info.run_id
        train([writer, events], faults=False)
        metrics, run = stored(server.uri, active.info.run_id)
        assert run.info.status == "RUNNING"
        assert run.data.params["learning_rate"] == "3"
    assert metrics.pop(("loss", 1)) == 7.0
    assert agree(metrics, rows(events.seen))


def test_a_run_that_is_continued_keeps_its_parameters_and_says_what_changed(server, make):
    first = make()
    train(first, faults=False, steps=10)
    second = make(run_id=first.run_id, prefix="stable/")
    w = torch.nn.Parameter(torch.ones(2))
    opt = StableOptimizer(torch.optim.AdamW([w], lr=5e-3), telemetry=second)
    opt.close()
    _, run = stored(server.uri, first.run_id)
    assert run.data.params["stable/lr"] == "0.001"
    assert json.loads(run.data.tags["stable.changed_params"])["stable/lr"] == "0.005"
    assert run.info.status == "FINISHED"
    assert (second.dropped, second.failed) == (0, 0)


def test_two_runs_are_two_runs(server, make):
    ids = set()
    for _ in range(2):
        writer = make()
        train(writer, faults=False, steps=10)
        ids.add(writer.run_id)
    assert len(ids) == 2


def test_a_run_that_is_stopped_has_failed(server, make):
    w = torch.nn.Parameter(torch.ones(2))
    w.grad = torch.full((2,), torch.nan)
    writer = make()
    opt = StableOptimizer(torch.optim.SGD([w], lr=0.1), telemetry=writer, guard=Guard(max_skips=0))
    with pytest.raises(DivergenceError):
        opt.step()
    opt.close()
    metrics, run = stored(server.uri, writer.run_id)
    assert metrics["stable/stops", 1] == 1
    assert run.info.status == "FAILED"
    assert run.data.tags["stable.integrity"] == "COMPROMISED"
    assert run.data.tags["stable.status"] == "stopped"


def test_names_that_mlflow_refuses_are_changed_and_stay_apart(server, make):
    w = torch.nn.Parameter(torch.ones(2))
    writer = make(every=1)
    opt = StableOptimizer(torch.optim.SGD([w], lr=0.1), telemetry=writer)
    w.grad = torch.ones(2)
    opt.observe(**{"top@1": 1.0, "top#1": 2.0, "a/../b": 3.0, "x" * 300: 4.0, "é": 5.0})
    opt.step()
    opt.close()
    metrics, _ = stored(server.uri, writer.run_id)
    signals = {n: v for (n, _), v in metrics.items() if "signals" in n}
    assert sorted(signals.values()) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert (writer.dropped, writer.failed) == (0, 0)


def test_many_metrics_are_split_into_requests(server, make, mlflow):
    w = torch.nn.Parameter(torch.ones(2))
    writer = make(every=1, flush_every=60)
    opt = StableOptimizer(torch.optim.SGD([w], lr=0.1), telemetry=writer)
    for _ in range(3):
        w.grad = torch.ones(2)
        opt.observe(many={f"{i:04d}": float(i) for i in range(1200)})
        opt.step()
    opt.close()
    client = mlflow.MlflowClient(server.uri)
    latest = client.get_run(writer.run_id).data.metrics
    assert {n: v for n, v in latest.items() if "many" in n} == {
        f"stable/signals/many/{i:04d}": float(i) for i in range(1200)
    }
    history = client.get_metric_history(writer.run_id, "stable/signals/many/1199")
    assert [metric.step for metric in history] == [1, 2, 3]
    assert (writer.dropped, writer.failed) == (0, 0)


def test_one_request_that_is_refused_does_not_cost_the_others(server, make, caplog):
    writer = make(run_id=None)
    opt, _ = train([writer], faults=False, steps=10, close=False)
    opt._loop.recorder.telemetry.flush()
    writer._files.append(JsonLines("elsewhere"))
    writer._files[0].path.unlink()
    writer._files[0].close()
    opt.close()
    _, run = stored(server.uri, writer.run_id)
    assert run.info.status == "FINISHED"
    assert opt.summary()["telemetry"] == {"dropped": 1, "failed": 0}
    assert len(caplog.records) == 1


# a tracker that is down, slow or refuses


@pytest.mark.compatibility("MLflow", "a server that is down costs a warning")
def test_a_server_that_is_down_costs_a_warning_and_nothing_else(caplog, monkeypatch, make):
    monkeypatch.setattr(writer_thread, "PATIENCE", 0.3)
    writer = make(tracking_uri="http://127.0.0.1:9")
    opt, without_server = train(writer, faults=False)
    lines = [r.getMessage() for r in caplog.records]
    _, bare = train(None, faults=False)
    assert same(without_server, bare)
    assert len(lines) == 1
    assert "MLflowWriter failed (ConnectionRefusedError" in lines[0]
    assert opt.summary()["telemetry"]["dropped"] >= 4
    assert writer.run_id is None


@pytest.mark.compatibility("MLflow", "a server that hangs costs a warning")
def test_a_server_that_hangs_costs_a_warning_and_nothing_else(caplog, make):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        held = []
        taking = threading.Thread(target=lambda: held.extend(listening.accept()[0] for _ in "ab"))
        taking.start()
        writer = make(tracking_uri=f"http://127.0.0.1:{listening.getsockname()[1]}")
        writer.patience = 1.2
        opt, hanging = train(writer, faults=False)
        lines = [r.getMessage() for r in caplog.records]
        taking.join()
        _, request = held  # the first only checks that a server listens
        request.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        writer.channel._thread.join()
        for connection in held:
            connection.close()
    _, bare = train(None, faults=False)
    assert same(hanging, bare)
    assert len(lines) == 1
    assert "did not finish in time" in lines[0]
    assert opt.summary()["telemetry"]["dropped"] >= 4


def test_what_was_not_logged_while_a_server_was_away_comes_later(events, tmp_path, caplog):
    from stableopt.integrations.mlflow import MLflowWriter

    with serve(tmp_path) as server:
        writer = MLflowWriter(tracking_uri=server.uri)
        opt, _ = train([writer, events], close=False)
        assert opt._loop.recorder.telemetry.flush(60.0)
        server.stop()
        w = opt.param_groups[0]["params"][0]
        for _ in range(3):
            w.grad = torch.full_like(w, torch.nan)  # a skip: an event each
            opt.step()
        while not writer.failed:
            threading.Event().wait(0.01)
        server.start()
        opt.close()
        metrics, _ = stored(server.uri, writer.run_id)
    assert agree(metrics, finite(rows(events.seen)))
    assert writer.dropped == 0
    assert sum("MLflowWriter" in r.getMessage() for r in caplog.records) == 1


def test_a_run_that_does_not_exist_costs_a_warning(caplog, make):
    opt, _ = train(make(run_id="0" * 32), faults=False)
    lines = [r.getMessage() for r in caplog.records]
    assert len(lines) == 1
    assert "was refused" in lines[0]
    assert opt.summary()["telemetry"]["failed"] == 0
    assert opt.summary()["telemetry"]["dropped"] >= 4


@pytest.mark.compatibility("MLflow", "bitwise")
def test_training_is_the_same_with_and_without(make):
    for faults in (False, True):
        _, bare = train(None, faults=faults)
        _, logged = train(make(every=1), faults=faults)
        assert same(bare, logged)


# how a program ends, and where it logs by default


def test_a_program_that_forgets_to_close(server, tmp_path):
    code = """
        import sys, torch
        from stableopt import JsonLines, StableOptimizer
        from stableopt.integrations.mlflow import MLflowWriter
        w = torch.nn.Parameter(torch.ones(2))
        writer = MLflowWriter(tracking_uri=sys.argv[1], every=1)
        opt = StableOptimizer(
            torch.optim.SGD([w], lr=0.1), telemetry=[writer, JsonLines(sys.argv[2])]
        )
        w.grad = torch.ones(2)
        opt.step()
        opt._loop.recorder.telemetry.flush()
        print(writer.run_id, flush=True)
        raise KeyboardInterrupt
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), server.uri, str(tmp_path / "run")],
        capture_output=True,
        text=True,
    )
    run_id = done.stdout.split()[0]
    metrics, run = stored(server.uri, run_id)
    assert metrics["stable/step", 1] == 1
    assert run.info.status == "KILLED"
    assert run.data.tags["stable.status"] == "interrupted"
    assert artifact(server.uri, run_id, "stable/telemetry.jsonl", tmp_path)


def test_without_any_configuration_it_is_a_database_here(events, tmp_path, monkeypatch):
    import mlflow
    from mlflow.tracking._tracking_service import utils

    from stableopt.integrations.mlflow import MLflowWriter

    monkeypatch.setattr(utils, "_tracking_uri", None)
    assert not mlflow.is_tracking_uri_set()
    writer = MLflowWriter()
    train([writer, events], faults=False)
    assert (tmp_path / "mlflow.db").exists()
    metrics, _ = stored("sqlite:///mlflow.db", writer.run_id)
    assert agree(metrics, rows(events.seen))


def test_a_folder_is_refused_at_once(tmp_path, make):
    with pytest.raises(ConfigError, match=r"tracking_uri=.*sqlite:///mlflow\.db"):
        make(tracking_uri=str(tmp_path / "mlruns"))


@pytest.mark.parametrize(
    "options",
    [{"every": 0}, {"flush_every": 0}, {"trial_id": ""}, {"prefix": 1}, {"tracking_uri": ""}],
    ids=lambda options: next(iter(options)),
)
def test_options_are_checked(options, make):
    with pytest.raises(ConfigError, match=f"{next(iter(options))}="):
        make(**options)


def test_an_experiment_is_of_no_use_with_a_run(make):
    with pytest.raises(ConfigError, match="experiment='x'"):
        make(run_id="a", experiment="x")


def test_without_mlflow_there_is_a_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    for name in ("mlflow", "mlflow_store"):
        monkeypatch.delitem(sys.modules, f"stableopt.integrations.{name}", raising=False)
    with pytest.raises(MissingExtraError, match=r"stableopt\[mlflow\]"):
        import stableopt.integrations.mlflow  # noqa: F401


def test_without_a_database_library_there_is_a_command(monkeypatch, make):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "alembic" else real(name)
    )
    with pytest.raises(MissingExtraError, match=r"stableopt\[mlflow\]"):
        make(tracking_uri="sqlite:///mlflow.db")
