"""Measure how soon trackers know, and what telling them costs the training loop.

Run as ``python -m benchmarks.trackers``; see ``--help``. Needs the extras ``tensorboard``,
``mlflow``, ``wandb`` and, for the tracking server, ``flask`` and ``flask-cors``.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks.common.command import Benchmark
from benchmarks.common.figures import quartiles
from benchmarks.common.variants import make_optimizer
from benchmarks.common.workload import loss_of, make_batches, make_model
from benchmarks.trackers.report import render
from stableopt import JsonLines, StableOptimizer
from stableopt.telemetry import LifecycleEvents, LoggingWriter, Writer
from stableopt.telemetry.dispatch import Dispatcher
from stableopt.types import Event
from tests.integrations import mlflow_server
from tests.telemetry import endpoint

TARGETS = {"ingestion": 0.100, "sync": 0.500}
"""Seconds within which an event should be at an endpoint (95 of 100), a metric in MLflow."""

POLL = 0.005
"""Seconds from one question to the server to the next."""


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    os.environ.update(
        MLFLOW_DISABLE_TELEMETRY="true",
        MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true",
        WANDB_SILENT="true",
        WANDB_ERROR_REPORTING="false",
    )
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # databases and runs of trackers
        try:
            return _measure_in(Path(folder), quick=options.quick)
        finally:
            os.chdir(here)


def _measure_in(folder: Path, *, quick: bool) -> dict[str, Any]:
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
    found = {"ingestion": ingestion, "sync": sync, "cost": cost, "recording": recording}
    return {"targets": TARGETS, **found}


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
            **{what: quartiles([block[what] for block in blocks]) for what in blocks[0]},
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
    record = loop.opt._loop.recorder.record

    def timed(*arguments: Any, **options: Any) -> Any:
        before = time.thread_time()
        event = record(*arguments, **options)
        spent.append(time.thread_time() - before)
        return event

    loop.opt._loop.recorder.record = timed
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
        size: As in :func:`benchmarks.common.workload.make_model`.
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
        if self.opt._loop.recorder.telemetry is not None:
            self.opt._loop.recorder.telemetry.flush(60.0)


def _spread(delays: list[float]) -> dict[str, float]:
    cuts = quantiles(delays, n=100, method="inclusive")
    return {"median": median(delays), "p95": cuts[94], "max": max(delays)}


main = Benchmark(
    name="trackers", about=__doc__, measure=_measure, render=render, quick="few steps: seconds"
)

if __name__ == "__main__":
    sys.exit(main())
