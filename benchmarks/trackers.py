"""Measure how soon trackers know, and what telling them costs the training loop.

Run as ``python -m benchmarks.trackers``; see ``--help``. Needs the extras ``tensorboard``,
``mlflow``, ``wandb`` and, for the tracking server, ``flask`` and ``flask-cors``.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shlex
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

from benchmarks.command import results_directory, silent, torch_threads
from benchmarks.environment import describe_environment
from benchmarks.trackers_report import render
from benchmarks.variants import make_optimizer
from benchmarks.workload import loss_of, make_batches, make_model
from stableopt import JsonLines, StableOptimizer
from stableopt.telemetry import LifecycleEvents, LoggingWriter
from stableopt.telemetry.dispatch import Dispatcher
from tests.integrations import mlflow_server
from tests.telemetry import endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stableopt.telemetry import Writer
    from stableopt.types import Event

TARGETS = {"ingestion": 0.100, "sync": 0.500}
"""Seconds within which an event should be at an endpoint (95 of 100), a metric in MLflow."""

POLL = 0.005
"""Seconds from one question to the server to the next."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write ``trackers.json`` and ``trackers.md``, and print the latter.

    Args:
        arguments: The command line; ``None`` for that of the process.

    Returns:
        The exit status: 0.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trackers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few steps: seconds")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write")
    options = parser.parse_args(arguments)
    output = options.output or results_directory(complete=not options.quick)
    os.environ.update(
        MLFLOW_DISABLE_TELEMETRY="true",
        MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true",
        WANDB_SILENT="true",
        WANDB_ERROR_REPORTING="false",
    )
    with torch_threads(), silent(), tempfile.TemporaryDirectory() as folder:
        here = Path.cwd()
        os.chdir(folder)  # databases and runs of trackers
        try:
            measured = _measure(Path(folder), quick=options.quick)
        finally:
            os.chdir(here)
    result = {
        "command": shlex.join(["python", "-m", "benchmarks.trackers", *arguments]),
        "complete": not options.quick,
        "environment": describe_environment(),
        "targets": TARGETS,
        **measured,
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "trackers.json").write_text(json.dumps(result, indent=1) + "\n")
    text = render(result)
    (output / "trackers.md").write_text(text)
    print(text)
    return 0


def _measure(folder: Path, *, quick: bool) -> dict[str, Any]:
    with mlflow_server.serve(folder) as server:
        ingestion = [
            _ingestion(steps=20 if quick else 500, every=every)
            for every in ((1,) if quick else (1, 10))
        ]
        sync = [
            _sync(kind, uri, probes=3 if quick else 100)
            for kind, uri in (("server", server.uri), ("sqlite here", "sqlite:///here.db"))
        ]
        with endpoint.serve() as http:
            makers = _makers(folder, server.uri, http.url)
            cost = _costs(makers, events=20 if quick else 500, rounds=2 if quick else 7)
        recording = _recording(20 if quick else 1000)
    return {"ingestion": ingestion, "sync": sync, "cost": cost, "recording": recording}


# how soon an endpoint knows


def _ingestion(steps: int, every: int) -> dict[str, Any]:
    """Train, and compare when events were recorded with when they had arrived."""
    with endpoint.serve() as http:
        loop = Loop("1M", [LifecycleEvents(http.url, every=every)])
        loop.train(steps)
        loop.opt.close()
        offset = time.time() - time.perf_counter()
        delays = [
            arrived + offset - _seconds(event["time"])
            for arrived, batch in zip(http.arrived, http.batches, strict=True)
            for event in batch
            if event["name"] == "ml.run.metric"
        ]
        return {
            "every": every,
            "steps": steps,
            "events": len(delays),
            "requests": len(http.batches),
            **_spread(delays),
            "lost": loop.opt.summary()["telemetry"]["dropped"],
        }


def _seconds(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


# how soon MLflow knows


def _sync(kind: str, uri: str, probes: int) -> dict[str, Any]:
    """Train on, and ask the store for the metric of a step until it is there."""
    from mlflow import MlflowClient

    from stableopt.integrations.mlflow import MLflowWriter

    writer = MLflowWriter(tracking_uri=uri, every=1)
    loop = Loop("tiny", [writer])
    loop.train(3)
    loop.flush()
    client = MlflowClient(uri)
    delays, moments = [], random.Random(0)
    for _ in range(probes):
        # At any moment after the last request, or the next would always have to wait for longest.
        time.sleep(moments.uniform(0.0, 0.5))
        loop.train(1)
        delays.append(_until(client, writer.run_id, loop.opt))
    loop.train(1)
    began = time.perf_counter()
    loop.opt.close()
    closing = time.perf_counter() - began
    run = client.get_run(writer.run_id)
    lost = loop.opt.summary()["telemetry"]["dropped"]
    assert run.info.status == "FINISHED"
    return {"store": kind, "probes": probes, **_spread(delays), "closing": closing, "lost": lost}


def _until(client: Any, run_id: str | None, opt: StableOptimizer) -> float:
    began, call = time.perf_counter(), opt.summary()["calls"]
    while client.get_run(run_id).data.metrics["stable/step"] < call:
        time.sleep(POLL)
    return time.perf_counter() - began


# what it costs


def _makers(folder: Path, mlflow: str, http: str) -> dict[str, Callable[[], list[Writer]]]:
    """Return what makes the writers of each row."""
    from stableopt.integrations.mlflow import MLflowWriter
    from stableopt.integrations.tensorboard import TensorBoardWriter
    from stableopt.integrations.wandb import WandbWriter

    log = logging.getLogger("benchmark")
    log.propagate = False
    handler = logging.FileHandler(folder / "log", delay=True)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    return {
        "JsonLines": lambda: [JsonLines(folder / "lines")],
        "LoggingWriter": lambda: [LoggingWriter(log, every=1)],
        "TensorBoardWriter": lambda: [TensorBoardWriter(folder / "board")],
        "LifecycleEvents, to HTTP": lambda: [LifecycleEvents(http, every=1)],
        "WandbWriter, offline": lambda: [WandbWriter(mode="offline", directory=folder)],
        "MLflowWriter, to a server": lambda: [MLflowWriter(tracking_uri=mlflow)],
        "MLflowWriter, sqlite here": lambda: [MLflowWriter(tracking_uri="sqlite:///here.db")],
    }


def _costs(
    makers: dict[str, Callable[[], list[Writer]]], events: int, rounds: int
) -> list[dict[str, Any]]:
    """Send the events of a training to each writer in turn, as the training loop does."""
    recorded = _record(events)
    rows: dict[str, dict[str, Any]] = {}
    for name, make in makers.items():
        dispatcher = Dispatcher(make())
        dispatcher.begin(lambda: None)
        dispatcher.send_summary(_summary())
        dispatcher.send(recorded[0])
        dispatcher.flush(60.0)
        blocks = [_send(dispatcher, _later(recorded, turn * events)) for turn in range(rounds)]
        dispatcher.close(_summary())
        rows[name] = {
            "writer": name,
            "events": events * rounds,
            **{what: _quartiles([block[what] for block in blocks]) for what in blocks[0]},
            **dispatcher.losses(),
        }
    return list(rows.values())


def _later(events: list[Event], calls: int) -> list[Event]:
    # Trackers drop or merge what has the step of something else.
    return [replace(event, call=event.call + calls, time=time.time()) for event in events]


def _send(dispatcher: Dispatcher, events: list[Event]) -> dict[str, float]:
    """Return seconds of CPU per event: of this thread, and of all until everything was told."""
    spent, began = 0.0, time.process_time()
    for event in events:
        before = time.thread_time()
        dispatcher.send(event, always=True)
        spent += time.thread_time() - before
        time.sleep(0.002)  # a step: writers that send in batches get batches
    dispatcher.flush(60.0)
    return {"loop": spent / len(events), "process": (time.process_time() - began) / len(events)}


def _record(events: int) -> list[Event]:
    """Return the events of a training, every step recorded, and print nothing."""
    kept = Keeper()
    loop = Loop("tiny", [kept], tokens=32)
    loop.train(events)
    loop.opt.close()
    return kept.events


def _summary() -> dict[str, Any]:
    return Loop("tiny", [], tokens=32).opt.summary()


def _recording(steps: int) -> dict[str, float]:
    """Return seconds of the training thread per step that is recorded, and that is not."""
    return {
        "with": _time_record(Loop("tiny", [Keeper()], tokens=32), steps),
        "without": _time_record(Loop("tiny", [], tokens=32), steps),
    }


def _time_record(loop: Loop, steps: int) -> float:
    spent: list[float] = []
    record = loop.opt._loop._record

    def timed(*arguments: Any, **options: Any) -> None:
        before = time.thread_time()
        record(*arguments, **options)
        spent.append(time.thread_time() - before)

    loop.opt._loop._record = timed
    loop.train(steps)
    loop.opt.close()
    return median(spent)


class Keeper:
    """A writer that takes every step, and keeps it."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def write(self, event: Event) -> None:
        """Keep it."""
        self.events.append(event)

    def close(self) -> None:
        """Do nothing."""


class Loop:
    """A small GPT in training.

    Args:
        size: As in :func:`benchmarks.workload.make_model`.
        writers: Who is told.
        tokens: In a batch.

    Attributes:
        opt: Its optimizer.
    """

    def __init__(self, size: str, writers: list[Writer], tokens: int = 256) -> None:
        self._model = make_model(size, seed=0)
        self._batches = make_batches(16, tokens, seed=1)
        bare = make_optimizer(self._model, "foreach")
        self.opt = StableOptimizer(bare, model=self._model, telemetry=writers)
        self._step = 0

    def train(self, steps: int) -> None:
        """Take some steps."""
        for _ in range(steps):
            self.opt.zero_grad()
            loss = loss_of(self._model, self._batches[self._step % len(self._batches)])
            loss.backward()
            self.opt.observe(loss=loss)
            self.opt.step()
            self._step += 1

    def flush(self) -> None:
        """Wait until everything is told."""
        if self.opt._loop.telemetry is not None:
            self.opt._loop.telemetry.flush(60.0)


def _spread(delays: list[float]) -> dict[str, float]:
    cuts = quantiles(delays, n=100, method="inclusive")
    return {"median": median(delays), "p95": cuts[94], "max": max(delays)}


def _quartiles(values: list[float]) -> dict[str, float]:
    if len(values) < 2:
        return {"p25": values[0], "median": values[0], "p75": values[0]}
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return {"p25": low, "median": middle, "p75": high}


if __name__ == "__main__":
    sys.exit(main())
