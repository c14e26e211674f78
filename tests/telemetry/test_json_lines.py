"""Events on disk: strict JSON, whole after any end, never in another run's files."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stableopt import ConfigError, JsonLines, StableOptimizer
from stableopt.telemetry import read_events
from stableopt.telemetry.encode import LONGEST_STRING, encode


def train(opt, w, steps, bad=()):
    for step in range(steps):
        w.grad = torch.full((2,), math.nan if step in bad else 1.0)
        opt.observe(loss=float(step))
        opt.step()


def make(telemetry, **kwargs):
    w = torch.nn.Parameter(torch.ones(2))
    return StableOptimizer(torch.optim.SGD([w], lr=0.1), telemetry=telemetry, **kwargs), w


def test_interventions_always_and_healthy_steps_now_and_then(tmp_path):
    opt, w = make(JsonLines(tmp_path, every=5))
    train(opt, w, 12, bad=(3, 7))
    opt.close()
    records = list(read_events(tmp_path / "telemetry.jsonl"))
    assert [(r["call"], r["step"], r["action"]) for r in records] == [
        (4, 3, "skip"),
        (6, 5, "take"),
        (8, 6, "skip"),
        (12, 10, "take"),
    ]
    skip = records[0]
    assert skip["grad_norm"] == "NaN"
    assert skip["findings"][0]["where"] == ["0.0"]
    assert skip["lr"] == 0.1


def test_the_summary_is_there_from_the_start_and_counts_to_the_end(tmp_path):
    opt, w = make(tmp_path)
    opt._loop.recorder.telemetry.flush()
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "running"
    train(opt, w, 4, bad=(1,))
    opt._loop.recorder.telemetry.flush()
    assert json.loads((tmp_path / "summary.json").read_text())["skips"] == 1
    opt.close()
    opt.close()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["status"], summary["integrity"]) == ("closed", "OK")
    assert (summary["calls"], summary["steps"], summary["last_loss"]) == (4, 3, 3.0)
    opt.step()  # the optimizer remains usable


def test_an_existing_directory_gets_a_new_run(tmp_path):
    for _ in range(3):
        opt, w = make(JsonLines(tmp_path, every=1))
        train(opt, w, 2)
        opt.close()
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [
        "summary-2.json",
        "summary-3.json",
        "summary.json",
        "telemetry-2.jsonl",
        "telemetry-3.jsonl",
        "telemetry.jsonl",
    ]
    assert all(len(list(read_events(p))) == 2 for p in tmp_path.glob("*.jsonl"))


def test_a_killed_run_leaves_readable_files(tmp_path):
    code = """
        import os, sys, torch
        from stableopt import JsonLines, StableOptimizer
        w = torch.nn.Parameter(torch.ones(2))
        opt = StableOptimizer(torch.optim.SGD([w], lr=0.1), telemetry=JsonLines(sys.argv[1], 1))
        step = 0
        while True:
            w.grad = torch.full((2,), float("nan") if step % 10 == 3 else 1.0)
            opt.step()
            step += 1
            if step == 200:
                opt._loop.recorder.telemetry.flush()
                print("ready", flush=True)
    """
    run = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert run.stdout.readline() == b"ready\n"
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    run.stdout.close()
    text = (tmp_path / "telemetry.jsonl").read_text()
    records = [json.loads(line) for line in text.splitlines()]
    assert text.endswith("\n")
    calls = [r["call"] for r in records]
    assert calls[:200] == list(range(1, 201))
    assert calls == sorted(set(calls))  # a loop of nothing but steps may outrun the disk
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "running"


def test_exit_without_close_writes_the_summary(tmp_path):
    code = """
        import sys, torch
        from stableopt import StableOptimizer
        w = torch.nn.Parameter(torch.ones(2))
        opt = StableOptimizer(torch.optim.SGD([w], lr=0.1), telemetry=sys.argv[1])
        w.grad = torch.ones(2)
        opt.step()
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], check=True, timeout=60
    )
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("closed", 1)


def test_a_full_disk_is_reported_once_and_training_goes_on(tmp_path, monkeypatch, caplog):
    lines = JsonLines(tmp_path, every=1)
    opt, w = make(lines)
    real = os.write
    full = True

    def write(fd, data):
        if full and fd == lines._file:
            real(fd, data[:7])  # a disk fills in the middle of a line
            raise OSError(28, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    train(opt, w, 5)
    opt._loop.recorder.telemetry.flush()
    full = False
    train(opt, w, 3)
    opt.close()
    assert sum("No space left" in r.message for r in caplog.records) == 1
    assert [r["call"] for r in read_events(tmp_path / "telemetry.jsonl")] == [6, 7, 8]
    assert opt.summary()["steps"] == 8
    assert opt.summary()["telemetry"]["failed"] == 5


def test_long_strings_are_redacted(tmp_path):
    assert json.loads(encode({"prompt": "x" * 257}))["prompt"] == "<redacted: 257 characters>"
    assert json.loads(encode({"prompt": "x" * 256}))["prompt"] == "x" * 256
    assert json.loads(encode({"y" * 300: [{"z": "q" * 999}]})) == {
        "<redacted: 300 characters>": [{"z": "<redacted: 999 characters>"}]
    }


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=400),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=300), inner),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=300), values))
def test_any_record_is_one_line_of_strict_json(record):
    line = encode(record)
    assert "\n" not in line

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    decoded = json.loads(line, parse_constant=refuse)
    assert all(len(s) <= LONGEST_STRING for s in strings(decoded))


def strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for k, v in value.items():
            yield k
            yield from strings(v)
    elif isinstance(value, list):
        for v in value:
            yield from strings(v)


def test_surrogates_and_foreign_types_are_written(tmp_path):
    line = encode({"file": "caf\udce9", "path": tmp_path, "where": {1: (2, 3)}})
    line.encode()
    assert json.loads(line)["where"] == {"1": [2, 3]}


@pytest.mark.parametrize("every", [0, -1, 1.5, "2", True])
def test_every_is_checked_before_anything_is_made(tmp_path, every):
    with pytest.raises(ConfigError, match="every="):
        JsonLines(tmp_path / "new", every=every)
    assert not (tmp_path / "new").exists()
