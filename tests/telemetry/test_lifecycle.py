"""Lifecycle events: what happened in a run, valid, to every sink, and at no cost but a warning."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from stableopt import ConfigError, DivergenceError, Guard, MissingExtraError, StableOptimizer
from stableopt.telemetry import (
    EventFile,
    HttpEndpoint,
    InvalidEventError,
    LifecycleEvents,
    RefusedError,
    read_events,
    schema,
    validate_event,
    writer_thread,
)
from stableopt.telemetry.ml_run_events import make_event
from tests.telemetry.endpoint import serve
from tests.telemetry.runs import STEPS, make, same, train


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(writer_thread, "PATIENCE", 0.5)


@pytest.fixture
def endpoint():
    with serve() as found:
        yield found


def names(received):
    return [event["name"].removeprefix("ml.run.") for event in received]


def check(received):
    for event in received:
        validate_event(event)
        assert json.loads(json.dumps(event, allow_nan=False)) == event
    assert len({event["id"] for event in received}) == len(received)


def test_a_run_is_reported_as_it_was(events):
    received = []
    writer = LifecycleEvents(received.append, trial_id="abc-123", model_run_id="run-456", every=10)
    opt, _ = train([writer, events])
    check(received)
    start, *metrics, stop = received
    assert names(received) == ["start", *["metric"] * len(metrics), "stop"]
    ids = {"trial_id": "abc-123", "model_run_id": "run-456"}
    assert all(ids.items() <= event["metadata"].items() for event in received)
    assert start["metadata"]["spectral_norm"] is True
    assert start["metadata"]["hyperparams"]["optimizer"] == "AdamW"
    assert start["metadata"]["hyperparams"]["groups/1/lr"] == 2e-3
    assert start["measurements"] == {"parameters": 808}

    wanted = [e for e in events.seen if not e.routine or e.step % 10 == 0 or e.call == 1]
    assert [m["metadata"]["call"] for m in metrics] == [e.call for e in wanted]
    for event, metric in zip(wanted, metrics, strict=True):
        assert metric["metadata"]["action"] == event.action.value
        assert metric["metadata"].get("reason", "") == event.reason
        assert metric["measurements"]["accuracy"] == event.signals["accuracy"]
        loss = metric["measurements"]["train_loss"]
        assert loss == event.loss or loss in ("NaN", "Infinity")
    assert metrics[2]["measurements"]["train_loss"] == "NaN"

    measured = stop["measurements"]
    summary = opt.summary()
    assert stop["metadata"]["success"] is True
    assert stop["metadata"]["status"] == "completed"
    assert stop["metadata"]["integrity"] == "OK"
    for name in ("calls", "steps", "skips", "rollbacks", "steps_lost"):
        assert measured[name] == summary[name]
    assert measured["final_train_loss"] == summary["last_loss"]
    assert measured["final_accuracy"] == wanted[-1].signals["accuracy"]
    assert measured["duration_ms"] > 0


def test_a_run_that_is_stopped_has_failed_and_says_why():
    received = []
    w = torch.nn.Parameter(torch.ones(2))
    w.grad = torch.full((2,), torch.nan)
    opt = StableOptimizer(
        torch.optim.SGD([w], lr=0.1),
        telemetry=LifecycleEvents(received.append),
        guard=Guard(max_skips=0),
    )
    with pytest.raises(DivergenceError):
        opt.step()
    assert names(received) == ["start", "metric"]  # before the error is raised
    opt.close()
    check(received)
    metadata = received[-1]["metadata"]
    assert (metadata["success"], metadata["status"]) == (False, "stopped")
    assert metadata["integrity"] == "COMPROMISED"
    assert "is not finite" in metadata["reason"]


@pytest.mark.parametrize("steps", [1, 5, 120])
def test_the_first_step_is_reported_and_then_one_in_so_many(steps):
    received = []
    train(LifecycleEvents(received.append), faults=False, steps=steps)
    calls = [e["metadata"]["call"] for e in received if e["name"] == "ml.run.metric"]
    assert calls == [call for call in range(1, steps + 1) if call == 1 or call % 100 == 0]


def test_a_run_that_is_continued_reports_its_own_first_step():
    received = []
    first, _ = train(None, faults=False, steps=7)
    opt, model = make(LifecycleEvents(received.append))
    opt.load_state_dict(first.state_dict())
    for _ in range(3):
        opt.zero_grad()
        model(torch.ones(1, 16)).sum().backward()
        opt.step()
    opt.close()
    assert [e["metadata"].get("call") for e in received] == [None, 8, None]


def test_signals_that_are_called_as_ours_keep_their_full_name():
    received = []
    w = torch.nn.Parameter(torch.ones(2))
    opt = StableOptimizer(
        torch.optim.SGD([w], lr=0.1), telemetry=LifecycleEvents(received.append, every=1)
    )
    w.grad = torch.ones(2)
    opt.observe(loss=1.0, train_loss=2.0, lr=3.0, step=4.0, val_accuracy=0.5)
    opt.step()
    opt.close()
    measured = received[1]["measurements"]
    assert measured["train_loss"] == 1.0
    assert measured["signals/train_loss"] == 2.0
    assert (measured["lr"], measured["signals/lr"], measured["signals/step"]) == (0.1, 3.0, 4.0)
    assert measured["val_accuracy"] == 0.5


def test_the_loop_may_report_its_epochs(caplog):
    received = []
    writer = LifecycleEvents(received.append)
    writer.metric(epoch=0, val_accuracy=0.8)  # before the run has begun: sent after its start
    opt, _ = train(writer, faults=False, steps=3, close=False)
    writer.metric(epoch=1, val_accuracy=torch.tensor(0.5), val_loss=math.inf, heads={"a": 1})
    opt.close()
    assert not caplog.records
    for accuracy in (0.9, 0.8):
        writer.metric(epoch=2, val_accuracy=accuracy)  # too late
    check(received)
    assert names(received) == ["start", "metric", "metric", "metric", "stop"]
    assert [e["metadata"].get("epoch") for e in received] == [None, 0, None, 1, None]
    assert received[3]["measurements"] == {
        "val_accuracy": 0.5,
        "val_loss": "Infinity",
        "heads/a": 1.0,
    }
    assert received[4]["measurements"]["final_val_accuracy"] == 0.5
    assert writer.dropped == 2
    (record,) = caplog.records
    assert "metric() was called after the run had ended" in record.message
    with pytest.raises(ConfigError, match="epoch=-1"):
        writer.metric(epoch=-1)
    for wrong in ("high", torch.ones(2)):
        with pytest.raises(ConfigError, match="accuracy="):
            writer.metric(accuracy=wrong)


def test_a_number_beyond_any_float_is_infinite():
    received = []
    writer = LifecycleEvents(received.append)
    writer.metric(most=10**400, least=-(10**400), nested={"a": 10**400})
    train(writer, faults=False, steps=1)
    check(received)
    assert received[1]["measurements"] == {
        "most": "Infinity",
        "least": "-Infinity",
        "nested/a": "Infinity",
    }


def test_hyperparameters_of_the_user_are_added():
    received = []
    given = {"heads": 4, "spectral_norm": True, "dropout": None}
    train_bare = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    writer = LifecycleEvents(received.append, hyperparams=given, mlflow_run_id="run-1")
    StableOptimizer(train_bare, telemetry=writer).close()
    check(received)
    start, stop = (event["metadata"] for event in received)
    assert start["spectral_norm"] is stop["spectral_norm"] is True
    assert start["mlflow_run_id"] == stop["mlflow_run_id"] == "run-1"
    assert start["hyperparams"]["heads"] == 4
    assert start["hyperparams"]["dropout"] is None
    assert start["hyperparams"]["lr"] == 0.1
    assert "spectral_norm" not in start["hyperparams"]


def test_ids_are_made_up_and_checked():
    first, second = (LifecycleEvents(print) for _ in range(2))
    assert first.trial_id == first.model_run_id != second.trial_id
    for bad in ("", "x" * 257, 3):
        with pytest.raises(ConfigError, match="trial_id="):
            LifecycleEvents(print, trial_id=bad)
    for bad in (None, 3, "", LifecycleEvents):
        with pytest.raises(ConfigError, match="sink="):
            LifecycleEvents(bad)
    for bad in ([1], "lr", 3):
        with pytest.raises(ConfigError, match="hyperparams="):
            LifecycleEvents(print, hyperparams=bad)


@pytest.mark.parametrize("address", ["htp://host/x", "ftp://user:secret@host", "://", "file:///x"])
def test_an_address_of_another_kind_is_no_file(tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="must begin with http:// or https://") as caught:
        LifecycleEvents(address)
    assert "secret" not in str(caught.value)
    assert not list(tmp_path.iterdir())


# sinks


def test_a_file_is_shared_by_runs(tmp_path):
    for trial in ("a", "b"):
        train(LifecycleEvents(tmp_path / "new" / "events.jsonl", trial_id=trial), steps=2)
    received = list(read_events(tmp_path / "new" / "events.jsonl"))
    check(received)
    assert [
        (e["metadata"]["trial_id"], n) for e, n in zip(received, names(received), strict=True)
    ] == [(trial, name) for trial in ("a", "b") for name in ("start", "metric", "stop")]


def test_a_directory_gets_a_file(tmp_path):
    train(LifecycleEvents(tmp_path), steps=1)
    assert len(list(read_events(tmp_path / "ml_run_events.jsonl"))) == 3


def test_a_file_that_cannot_be_written_is_an_error_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        EventFile(tmp_path / "file" / "below")
    with pytest.raises(ConfigError, match="cannot be written"):
        EventFile("null\0byte")


def test_a_full_disk_costs_a_warning_and_no_event(tmp_path, monkeypatch, caplog):
    path = tmp_path / "events.jsonl"
    real = os.write
    attempts = []

    def write(fd, data):
        if data.startswith(b'{"name": "ml.run'):
            attempts.append(fd)
            if len(attempts) == 1:
                return real(fd, data[:20])  # a disk fills in the middle of a line
            if len(attempts) == 2:
                raise OSError(28, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    opt, _ = train(LifecycleEvents(path), faults=False, steps=2)
    received = list(read_events(path))
    check(received)
    assert names(received) == ["start", "metric", "stop"]
    assert len(path.read_text().splitlines()) == 3
    assert opt.summary()["telemetry"] == {"dropped": 0, "failed": 2}
    assert len(caplog.records) == 1


def test_http_takes_arrays(endpoint):
    sink = HttpEndpoint(endpoint.url, headers={"Authorization": "Bearer secret"})
    opt, _ = train(LifecycleEvents(sink, every=1))
    check(endpoint.events)
    assert names(endpoint.events) == ["start", *["metric"] * STEPS, "stop"]
    assert endpoint.headers["Authorization"] == "Bearer secret"
    assert endpoint.headers["Content-Type"] == "application/json"
    assert opt.summary()["telemetry"] == {"dropped": 0, "failed": 0}


def test_http_that_is_overloaded_gets_everything_later(endpoint, caplog, monkeypatch):
    monkeypatch.setattr(writer_thread, "PATIENCE", 30.0)
    endpoint.answers = [503, 429, 500]
    opt, _ = train(LifecycleEvents(endpoint.url, every=1), faults=False)
    assert names(endpoint.events) == ["start", *["metric"] * STEPS, "stop"]
    assert opt.summary()["telemetry"] == {"dropped": 0, "failed": 3}
    assert len(caplog.records) == 1


def test_http_that_refuses_loses_the_batch_and_the_secret_stays_one(endpoint, caplog):
    endpoint.answers = [403] * 1000
    opt, _ = train(LifecycleEvents(HttpEndpoint(endpoint.url + "?token=secret")), faults=False)
    assert not endpoint.events
    assert opt.summary()["telemetry"] == {"dropped": 3, "failed": 0}
    assert len(caplog.records) == 1
    assert "answers 403" in caplog.text
    assert "secret" not in caplog.text
    with pytest.raises(ConfigError, match="headers=") as error:
        HttpEndpoint(endpoint.url.replace("127.0.0.1", "user:secret@127.0.0.1"))
    assert "secret" not in str(error.value)


def test_http_that_has_moved_is_not_followed(endpoint, caplog):
    endpoint.answers = [(302, endpoint.url)] * 1000
    opt, _ = train(LifecycleEvents(endpoint.url), faults=False, steps=3)
    assert opt.summary()["telemetry"] == {"dropped": 3, "failed": 0}
    assert "answers 302" in caplog.text


def test_a_server_that_is_down_costs_a_warning_and_nothing_else(endpoint, caplog):
    closed = HttpEndpoint("http://127.0.0.1:9/events", timeout=0.5)
    opt, with_events = train(LifecycleEvents(closed, every=1), faults=False)
    caplog_lines = [r.message for r in caplog.records]
    _, bare = train(None, faults=False)
    assert same(with_events, bare)
    assert len(caplog_lines) == 1
    assert "LifecycleEvents failed" in caplog_lines[0]
    assert opt.summary()["telemetry"]["dropped"] == STEPS + 2


def test_one_that_hangs_costs_a_warning_and_nothing_else(endpoint, caplog):
    endpoint.gate.clear()
    writer = LifecycleEvents(endpoint.url, every=1, capacity=10)
    opt, with_events = train(writer, faults=False)
    lines = [r.message for r in caplog.records]
    endpoint.gate.set()
    _, bare = train(None, faults=False)
    assert same(with_events, bare)
    assert len(lines) == 1
    assert opt.summary()["telemetry"]["dropped"] == STEPS + 2


@pytest.mark.parametrize("url", ["http://", "ftp://host/x", "https://", 3])
def test_an_address_is_checked(url):
    with pytest.raises(ConfigError, match="url="):
        HttpEndpoint(url)


def test_a_callable_that_raises_gets_each_event_once(caplog):
    received, failures = [], [ValueError("busy"), None, ValueError("busy")]

    def take(event):
        if failures and (failure := failures.pop(0)):
            raise failure
        received.append(event)

    opt, _ = train(LifecycleEvents(take), faults=False, steps=5)
    assert names(received) == ["start", "metric", "stop"]
    assert opt.summary()["telemetry"]["failed"] == 2
    assert len(caplog.records) == 1


def test_a_callable_may_refuse(caplog):
    def refuse(event):
        raise RefusedError("not mine")

    opt, _ = train(LifecycleEvents(refuse), faults=False, steps=5)
    assert opt.summary()["telemetry"] == {"dropped": 3, "failed": 0}
    assert len(caplog.records) == 1


def test_training_is_the_same_with_and_without(endpoint):
    for faults in (False, True):
        _, bare = train(None, faults=faults)
        _, received = train(LifecycleEvents(endpoint.url, every=1), faults=faults)
        assert same(bare, received)


@pytest.mark.parametrize(
    ("ending", "status", "success"),
    [
        ("raise ValueError('the data are gone')", "failed", False),
        ("raise KeyboardInterrupt", "killed", False),
        ("sys.exit(0)", "completed", True),
    ],
)
def test_a_program_that_forgets_to_close(tmp_path, ending, status, success):
    code = f"""
        import sys, torch
        from stableopt import StableOptimizer
        from stableopt.telemetry import LifecycleEvents
        w = torch.nn.Parameter(torch.ones(2))
        events = LifecycleEvents(sys.argv[1])
        opt = StableOptimizer(torch.optim.SGD([w], lr=0.1), telemetry=events)
        w.grad = torch.ones(2)
        opt.step()
        {ending}
    """
    path = tmp_path / "events.jsonl"
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(path)], stderr=subprocess.DEVNULL
    )
    received = list(read_events(path))
    check(received)
    assert names(received) == ["start", "metric", "stop"]
    metadata = received[-1]["metadata"]
    assert (metadata["status"], metadata["success"]) == (status, success)
    assert "the data are gone" not in metadata.get("reason", "")


# the schema


def valid():
    ids = {"trial_id": "a", "model_run_id": "b"}
    return {
        "start": make_event(
            "start", {**ids, "spectral_norm": False, "hyperparams": {"lr": 0.1, "b": [1, 2]}}, {}
        ),
        "metric": make_event("metric", {**ids, "epoch": 1}, {"loss": math.nan}),
        "stop": make_event(
            "stop",
            {**ids, "spectral_norm": True, "success": True, "status": "completed"},
            {"duration_ms": 3},
        ),
    }


def test_the_schema_is_one_and_takes_what_we_make():
    import jsonschema

    jsonschema.Draft202012Validator.check_schema(schema())
    for event in valid().values():
        validate_event(event)
        jsonschema.Draft202012Validator(schema()).validate(event)


@pytest.mark.parametrize("kind", ["start", "metric", "stop"])
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("version",), "2.0"),
        (("name",), "ml.run.pause"),
        (("name",), None),
        (("id",), "x"),
        (("time",), "yesterday"),
        (("extra",), 1),
        (("metadata", "extra"), 1),
        (("metadata", "trial_id"), ""),
        (("metadata", "trial_id"), None),
        (("metadata", "spectral_norm"), "yes"),
        (("measurements", "loss"), "high"),
        (("measurements", "loss"), True),
        (("measurements", "loss"), None),
    ],
)
def test_what_is_no_event_is_refused(kind, path, value):
    event = copy.deepcopy(valid()[kind])
    place = event
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(InvalidEventError):
        validate_event(event)


@pytest.mark.parametrize("kind", ["start", "metric", "stop"])
def test_nothing_that_is_required_may_be_missing(kind):
    whole = valid()[kind]
    for key in whole:
        with pytest.raises(InvalidEventError):
            validate_event({k: v for k, v in whole.items() if k != key})
    for key in ("trial_id", "model_run_id"):
        metadata = {k: v for k, v in whole["metadata"].items() if k != key}
        with pytest.raises(InvalidEventError, match=key):
            validate_event({**whole, "metadata": metadata})


def test_a_message_says_where():
    event = valid()["stop"]
    event["measurements"]["duration_ms"] = -1
    with pytest.raises(InvalidEventError, match=r"measurements\.duration_ms=-1: -1 is less than"):
        validate_event(event)
    with pytest.raises(InvalidEventError):
        validate_event("ml.run.start")


def test_without_jsonschema_there_is_a_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(MissingExtraError, match=r"stableopt\[events\]"):
        validate_event({})
