"""Telemetry as parameters, metrics, tags and artifacts of an MLflow run."""

from __future__ import annotations

import json
import os
from functools import partial
from typing import TYPE_CHECKING, Any

from stableopt.errors import ConfigError, MissingExtraError, require_number
from stableopt.integrations import mlflow_store as store
from stableopt.integrations.tracker import Tracker
from stableopt.telemetry.encode import encode
from stableopt.telemetry.ending import outcome
from stableopt.telemetry.json_lines import JsonLines
from stableopt.telemetry.lifecycle import check_id
from stableopt.telemetry.metrics import PREFIX
from stableopt.telemetry.setup import flat_setup

try:
    import mlflow
except ImportError as error:
    raise MissingExtraError("MLflowWriter", "mlflow") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stableopt.telemetry.writer import Writer
    from stableopt.types import Event


class MLflowWriter(Tracker):
    """Log a run to MLflow, in batches, on a separate thread.

    The run of MLflow is the one that is active when this is created (``mlflow.start_run()`` in the
    same thread), ``run_id``, or a new one. A new one is ended with the optimizer: ``FINISHED``,
    ``FAILED`` if the guard stopped it or an exception ended the program, ``KILLED`` by an
    interrupt. Requests to a server that is down are repeated; a new run is created once it is up.

    The step of metrics is the call of ``step()``, the global step of a trainer: it never decreases.
    Parameters are the options of the optimizer, the guard, sensors and
    transforms. Tags: ``trial_id``, ``model_run_id``, ``stable.integrity``, ``stable.status``,
    ``stable.last_intervention``; ``stable.changed_params`` if a run is continued with other
    parameters, which MLflow cannot change. Artifacts in ``stable/``: ``summary.json``,
    and ``telemetry.jsonl`` if a ``JsonLines`` is among the writers.

    MLflow stores NaN, and ±Inf as ±1.8e308. Characters that it refuses in names become ``_``, and a
    short hash is appended.

    Args:
        run_id: Log into this run, and leave it open.
        tracking_uri: Of the server or database; as MLflow is configured, else
            ``sqlite:///mlflow.db``, if not given.
        experiment: Name of the experiment of a new run; created if it does not exist.
        run_name: Of a new run.
        trial_id: Tag; that of a :class:`~stableopt.telemetry.LifecycleEvents` among the writers
            if not given.
        model_run_id: Tag; likewise.
        tags: More tags.
        every: Log one healthy step out of so many; interventions, and steps at which sensors were
            read, always.
        flush_every: Least seconds from one request to the next; metrics in between share one.
        prefix: Of the names of metrics and parameters.
        layers: Whether the readings of each weight are metrics of their own.

    Attributes:
        run_id: The run in MLflow; ``None`` until it is created.
        patience: Seconds that closing waits for a slow store; 4 seconds if requests fail.

    Raises:
        ConfigError: An option is out of range; MLflow refuses the kind of store.
        MissingExtraError: On import, if MLflow is not installed.

    Cost:
        None in the training loop, which shares the interpreter with the thread: some milliseconds
        of a core per request to a server, some ten if this process writes the database.
    """

    patience = 15.0
    batch = 1000

    def __init__(
        self,
        *,
        run_id: str | None = None,
        tracking_uri: str | None = None,
        experiment: str | None = None,
        run_name: str | None = None,
        trial_id: str | None = None,
        model_run_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        every: int = 10,
        flush_every: float = 0.25,
        prefix: str = PREFIX,
        layers: bool = True,
    ) -> None:
        super().__init__(
            every=every, prefix=prefix, layers=layers, trial_id=trial_id, model_run_id=model_run_id
        )
        require_number(
            "flush_every", flush_every, 3600, "least seconds from one request to the next"
        )
        self.interval = float(flush_every)
        self._tags = {str(key): str(value) for key, value in (tags or {}).items()}
        if run_id is not None and experiment is not None:
            raise ConfigError(
                f"experiment={experiment!r} must not be given with run_id: the run is in an "
                "experiment already"
            )
        given = check_id("run_id", run_id) or _active_run(tracking_uri, experiment)
        self._owned = given is None
        self._store = store.MLflowStore(
            store.check_tracking(tracking_uri),
            run_id=given,
            experiment=experiment,
            run_name=run_name,
        )
        self._summary: dict[str, Any] | None = None
        self._set_tags: dict[str, str] = {}
        self._reason: str | None = None
        self._files: list[JsonLines] = []

    @property
    def run_id(self) -> str | None:
        """The run in MLflow; ``None`` until it is created."""
        return self._store.run_id

    def begin(self, others: Sequence[Writer], close: Callable[[], None]) -> None:
        """Take over the ids of lifecycle events, and the event files for the artifacts."""
        super().begin(others, close)
        self._files.extend(writer for writer in others if isinstance(writer, JsonLines))

    def write(self, event: Event) -> list[store.Row]:
        """Log the metrics of an event."""
        if event.intervened:
            self._reason = event.reason
        return [(event.call, round(event.time * 1000), self._metrics.of(event))]

    def write_summary(self, summary: dict[str, Any]) -> list[store.Request]:
        """Log parameters with the first summary, and tags that have changed."""
        requests: list[store.Request] = []
        if self._summary is None:
            parameters = {self._prefix + k: _text(v) for k, v in flat_setup(summary).items()}
            requests.append(partial(store.log_parameters, parameters))
            requests.append(partial(store.set_tags, {**self._tags, **self._ids}))
        self._summary = summary
        tags = {"stable.status": summary["status"], "stable.integrity": summary["integrity"]}
        if self._reason is not None:
            tags["stable.last_intervention"] = self._reason
        if tags != self._set_tags:
            self._set_tags = tags
            requests.append(partial(store.set_tags, tags))
        return requests

    def deliver(self, records: Sequence[store.Row | store.Request]) -> None:
        """Send metrics and requests to MLflow."""
        self._store.deliver(records)

    def close(self) -> list[store.Request]:
        """End the run if it was created here, and log the artifacts."""
        requests: list[store.Request] = []
        if self._owned:
            ends = {"completed": "FINISHED", "killed": "KILLED"}
            status = ends.get(outcome(self._summary), "FAILED")
            requests.append(lambda client, run_id: client.set_terminated(run_id, status))
        if self._summary is not None:
            text = encode(self._summary, indent=2)
            path = "stable/summary.json"
            requests.append(lambda client, run_id: client.log_text(run_id, text, path))
        return [*requests, *(partial(store.log_file, file) for file in self._files)]


def _active_run(tracking_uri: str | None, experiment: str | None) -> str | None:
    if tracking_uri is not None or experiment is not None:
        return None
    active = mlflow.active_run()
    return None if active is None else str(active.info.run_id)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=os.fspath)
