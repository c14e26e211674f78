"""Where lifecycle events go: a file, a callable, an HTTP endpoint."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

from stableopt.errors import ConfigError, require_number
from stableopt.telemetry.encode import encode
from stableopt.telemetry.writer_thread import RefusedError

FILE_NAME = "ml_run_events.jsonl"
"""Name of the file in a directory."""

TRY_AGAIN = frozenset({408, 425, 429})
"""Status codes below 500 after which the same request may succeed."""


@runtime_checkable
class Sink(Protocol):
    """Takes batches of lifecycle events, on a thread that may wait."""

    def deliver(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Take a batch, in order.

        Raises:
            RefusedError: The batch is never delivered again.
            Exception: The same batch is delivered again.
        """


class EventFile:
    """Append events to a file, one line each; runs may share it.

    Args:
        path: The file, or a directory for ``ml_run_events.jsonl``; parents are created.

    Raises:
        ConfigError: The file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            if self.path.is_dir():
                self.path /= FILE_NAME
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.open("ab").close()
        except (OSError, ValueError) as error:  # ValueError: a null byte in the name
            raise ConfigError(
                f"sink={str(path)!r} cannot be written ({error}): give a file that this process "
                "may create and write"
            ) from error

    def deliver(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Append a batch as a whole, or not at all."""
        data = "".join(f"{encode(event)}\n" for event in events).encode()
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            before = os.fstat(file).st_size
            if (written := os.write(file, data)) < len(data):
                os.ftruncate(file, before)
                raise OSError(f"only {written} of {len(data)} bytes fitted into {self.path}")
        finally:
            os.close(file)


class HttpEndpoint:
    """POST batches of events to a URL, as a JSON array.

    Status 200 to 299 is success. After 408, 425, 429, 500 and above, a timeout or a connection
    that fails the same batch is sent again; after any other status it is dropped and counted.

    Args:
        url: ``http://`` or ``https://``.
        headers: Added to each request, e.g. ``{"Authorization": "Bearer …"}``.
        timeout: Seconds to wait for an answer.

    Raises:
        ConfigError: The URL is not one of HTTP, or ``timeout`` is not positive.
    """

    def __init__(
        self, url: str, *, headers: Mapping[str, str] | None = None, timeout: float = 10.0
    ) -> None:
        require_number("timeout", timeout, 600, "seconds to wait for an answer")
        if not is_url(url) or not urlsplit(url).hostname:
            raise ConfigError(f"url={url!r} must begin with http:// or https:// and name a host")
        if urlsplit(url).username is not None:
            raise ConfigError(
                f"url={_without_secrets(url)!r} was given with a user name in it: give credentials "
                'as headers={"Authorization": ...}'
            )
        self.url = url
        self._timeout = timeout
        self._headers = {"Content-Type": "application/json", **(headers or {})}

    def deliver(self, events: Sequence[Mapping[str, Any]]) -> None:
        """POST a batch."""
        data = f"[{','.join(encode(event) for event in events)}]".encode()
        request = urllib.request.Request(  # noqa: S310 - the scheme was checked
            self.url, data=data, headers=self._headers, method="POST"
        )
        try:
            with _OPENER.open(request, timeout=self._timeout) as answer:
                answer.read()
        except urllib.error.HTTPError as error:
            with error:
                if error.code >= 500 or error.code in TRY_AGAIN:
                    raise
                shown = _without_secrets(self.url)
                raise RefusedError(f"{shown} answers {error.code} {error.reason}") from error


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: urllib would GET the new address, without the events."""

    def redirect_request(self, *arguments: Any, **options: Any) -> None:
        """Return no request."""


_OPENER = urllib.request.build_opener(_NoRedirect)


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{parts.path}"


class _Each:
    """Calls a function with one event at a time."""

    def __init__(self, call: Callable[[dict[str, Any]], object]) -> None:
        self._call = call
        self._done: set[str] = set()

    def deliver(self, events: Sequence[Mapping[str, Any]]) -> None:
        # After an error the same batch is delivered again, from the event that failed.
        for event in events:
            if event["id"] not in self._done:
                self._call(json.loads(encode(event)))
                self._done.add(event["id"])
        self._done.clear()


def make_sink(sink: object) -> Sink:
    """Return the sink for the ``sink=`` argument.

    Raises:
        ConfigError: It is of another type.
    """
    if isinstance(sink, Sink) and not isinstance(sink, type):
        return sink
    if is_url(sink):
        return HttpEndpoint(str(sink))
    if isinstance(sink, str) and "://" in sink:
        scheme = sink.partition("://")[0]
        raise ConfigError(
            f"sink={scheme + '://…'!r} must begin with http:// or https:// if it is a URL: give "
            "a file as its path"
        )
    if isinstance(sink, (str, os.PathLike)) and os.fspath(sink):
        return EventFile(sink)
    if callable(sink) and not isinstance(sink, type):
        return _Each(sink)
    raise ConfigError(
        f"sink={sink!r} must be a path, an http:// or https:// URL, a callable that takes an "
        "event, or an object with deliver(events)"
    )


def is_url(value: object) -> bool:
    """Return whether a value is an HTTP URL."""
    return isinstance(value, str) and value.lower().startswith(("http://", "https://"))
