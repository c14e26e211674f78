"""Batched requests to an MLflow store, within its limits."""

from __future__ import annotations

import hashlib
import importlib.util
import posixpath
import re
import socket
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from stableopt.errors import ConfigError, MissingExtraError
from stableopt.telemetry.encode import encode
from stableopt.telemetry.sinks import TRY_AGAIN
from stableopt.telemetry.writer_thread import RefusedError

try:
    import mlflow
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import fluent
except ImportError as error:
    raise MissingExtraError("MLflowWriter", "mlflow") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import TypeAlias, TypeVar

    from stableopt.telemetry.json_lines import JsonLines

    Row: TypeAlias = tuple[int, int, Mapping[str, float]]
    """The call, milliseconds since the epoch, and the metrics of an event."""

    Request: TypeAlias = Callable[[MlflowClient, str], None]
    """Called with the client and the run; may be called again after it has raised."""

    T = TypeVar("T")

DEFAULT_URI = "sqlite:///mlflow.db"
METRICS_PER_REQUEST = 1000
PARAMETERS_PER_REQUEST = 100
LONGEST_NAME = 250
LONGEST_PARAMETER = 6000
LONGEST_TAG = 5000
_CONNECT = 2.0
"""Seconds to wait for a connection."""
_COMPLETE = 2.0
"""Seconds to wait for the event file of another writer to be closed."""


def check_tracking(uri: str | None) -> str:
    """Return the tracking URI.

    Raises:
        ConfigError: It is not a URI, or MLflow refuses it.
        MissingExtraError: It is a database, and the packages for it are not installed.
    """
    if uri is None:
        known = mlflow.is_tracking_uri_set()  # type: ignore[no-untyped-call]
        uri = mlflow.get_tracking_uri() if known else DEFAULT_URI
    if not isinstance(uri, (str, Path)) or not str(uri):
        raise ConfigError(f"tracking_uri={uri!r} must be a URI, e.g. {DEFAULT_URI!r}")
    uri = str(uri)
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme in ("sqlite", "postgresql", "mysql", "mssql"):
        if not all(importlib.util.find_spec(name) for name in ("sqlalchemy", "alembic")):
            raise MissingExtraError(f"tracking_uri={uri!r}", "mlflow")
    elif scheme in ("", "file"):
        try:
            MlflowClient(uri)
        except MlflowException as error:
            raise ConfigError(
                f"tracking_uri={uri!r} is refused by MLflow: use a database, e.g. "
                f"{DEFAULT_URI!r}, or the address of a server"
            ) from error
    return uri


class MLflowStore:
    """One run in a store.

    Args:
        uri: Of the server or database.
        run_id: The run; a new one is created with the first request if not given.
        experiment: Of a new run.
        run_name: Of a new run.

    Attributes:
        run_id: The run; ``None`` until it is created.
    """

    def __init__(
        self, uri: str, *, run_id: str | None, experiment: str | None, run_name: str | None
    ) -> None:
        self._is_default = uri == mlflow.get_tracking_uri()
        self.run_id = run_id
        self._uri = uri
        self._experiment = experiment
        self._run_name = run_name
        self._client: MlflowClient | None = None

    def deliver(self, items: Sequence[Row | Request]) -> None:
        """Log rows of metrics in one request, and make the other requests, in order.

        Raises:
            RefusedError: MLflow refuses some of it for good; the rest is logged.
        """
        try:
            client, run_id = self._open()
        except MlflowException as error:
            raise _refusal(error) from error
        lost, why = 0, ""
        for are_requests, group in groupby(items, callable):
            found: list[Any] = list(group)
            requests = found if are_requests else [partial(_log_rows, found)]
            for request in requests:
                try:
                    request(client, run_id)
                except (MlflowException, RefusedError) as error:
                    lost, why = lost + len(found) // len(requests), why or str(_refusal(error))
        if lost:
            raise RefusedError(why, lost)

    def _open(self) -> tuple[MlflowClient, str]:
        _reach(self._uri)
        if self._client is None:
            self._client = MlflowClient(self._uri)
        if self.run_id is None:
            experiment = self._experiment_id(self._client)
            run = self._client.create_run(experiment, run_name=self._run_name)
            self.run_id = str(run.info.run_id)
        return self._client, self.run_id

    def _experiment_id(self, client: MlflowClient) -> str:
        if self._experiment is None:
            # As for mlflow.start_run(): of mlflow.set_experiment(), or of the environment.
            active = fluent._get_experiment_id() if self._is_default else None
            return active or "0"
        found = client.get_experiment_by_name(self._experiment)
        if found is None:
            try:
                return str(client.create_experiment(self._experiment))
            except MlflowException:  # another process may have created it
                found = client.get_experiment_by_name(self._experiment)
                if found is None:
                    raise
        return str(found.experiment_id)


def log_parameters(parameters: Mapping[str, str], client: MlflowClient, run_id: str) -> None:
    """Log parameters that the run does not have; tag it with those that differ."""
    known = client.get_run(run_id).data.params
    wanted = {safe_name(k): v[:LONGEST_PARAMETER] for k, v in parameters.items()}
    new = [Param(k, v) for k, v in wanted.items() if k not in known]
    for chunk in _chunks(new, PARAMETERS_PER_REQUEST):
        client.log_batch(run_id, params=chunk)
    changed = {k: v for k, v in wanted.items() if known.get(k, v) != v}
    if changed:
        set_tags({"stable.changed_params": encode(changed)}, client, run_id)


def set_tags(tags: Mapping[str, str], client: MlflowClient, run_id: str) -> None:
    """Set or change tags."""
    made = [RunTag(safe_name(key), value[:LONGEST_TAG]) for key, value in tags.items()]
    for chunk in _chunks(made, PARAMETERS_PER_REQUEST):
        client.log_batch(run_id, tags=chunk)


def log_file(file: JsonLines, client: MlflowClient, run_id: str) -> None:
    """Log an event file as an artifact, once it is complete."""
    file.closed.wait(_COMPLETE)
    if not file.path.is_file():
        raise RefusedError(f"{file.path} does not exist")
    client.log_artifact(run_id, str(file.path), "stable")


def _log_rows(rows: Iterable[Row], client: MlflowClient, run_id: str) -> None:
    metrics = [
        Metric(safe_name(name), value, milliseconds, call)
        for call, milliseconds, values in rows
        for name, value in values.items()
    ]
    for chunk in _chunks(metrics, METRICS_PER_REQUEST):
        client.log_batch(run_id, metrics=chunk)


def _refusal(error: MlflowException | RefusedError) -> Exception:
    """Return an error that is final; raise it if the same request may succeed later."""
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()  # type: ignore[no-untyped-call]
        if not 400 <= status < 500 or status in TRY_AGAIN:
            raise error
    return RefusedError(str(error))


def safe_name(name: str) -> str:
    """Return a name that MLflow accepts; a hash of the name is appended to one that is changed.

    Example:
        >>> safe_name("stable/loss"), safe_name("top@1")
        ('stable/loss', 'top_1-c29383')
    """
    safe = re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)
    if posixpath.normpath(safe) != safe or safe.startswith(("/", "..")) or safe == ".":
        safe = safe.replace("/", "_").replace("..", "_")
    if safe == name and len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "backslashreplace")).hexdigest()[:6]
    return f"{safe[: LONGEST_NAME - 7]}-{digest}"


def _reach(uri: str) -> None:
    """Raise ``OSError`` if no server listens at a URL.

    MLflow would try for minutes, and log a warning for each attempt; its settings for that are
    environment variables, which apply to the calls of the user, too.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.hostname is None:
        return
    if parts.scheme in getproxies() and not proxy_bypass(parts.hostname):
        return  # only the proxy can connect
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    socket.create_connection((parts.hostname, port), timeout=_CONNECT).close()


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
