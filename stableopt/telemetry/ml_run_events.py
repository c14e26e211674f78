"""The events ``ml.run.start``, ``ml.run.metric`` and ``ml.run.stop``, and their schema."""

from __future__ import annotations

import json
import time
import uuid
from importlib import resources
from typing import TYPE_CHECKING, Any

from stableopt.errors import MissingExtraError, StableOptError
from stableopt.telemetry.encode import plain

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION = "1.0"
"""Of the events: the minor number counts added fields, the major number other changes."""


class InvalidEventError(StableOptError, ValueError):
    """An object that is not a lifecycle event; the message has the field and the problem."""


def make_event(
    kind: str,
    metadata: Mapping[str, Any],
    measurements: Mapping[str, Any],
    when: float | None = None,
) -> dict[str, Any]:
    """Return a lifecycle event as plain values.

    Args:
        kind: ``"start"``, ``"metric"`` or ``"stop"``.
        metadata: Ids and descriptions; entries that are ``None`` are left out.
        measurements: Numbers by name.
        when: Seconds since the epoch; now if not given.

    Example:
        >>> event = make_event("metric", {"trial_id": "a", "epoch": None}, {"loss": 0.5}, when=0)
        >>> event["name"], event["time"], event["metadata"], event["measurements"]
        ('ml.run.metric', '1970-01-01T00:00:00.000Z', {'trial_id': 'a'}, {'loss': 0.5})
    """
    return {
        "name": f"ml.run.{kind}",
        "version": VERSION,
        "id": uuid.uuid4().hex,
        "time": _utc(time.time() if when is None else when),
        "metadata": plain({k: v for k, v in metadata.items() if v is not None}),
        "measurements": plain(measurements),
    }


def _utc(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(milliseconds // 1000))
    return f"{whole}.{milliseconds % 1000:03d}Z"


def schema() -> dict[str, Any]:
    """Return the JSON schema of lifecycle events, as it comes with the package.

    Example:
        >>> schema()["$id"]
        'urn:stableopt:ml-run-events:1.0'
    """
    file = resources.files("stableopt.telemetry") / "ml_run_events.schema.json"
    return dict(json.loads(file.read_text(encoding="utf-8")))


def validate_event(event: object) -> None:
    """Check an event against the JSON schema of lifecycle events.

    Args:
        event: As a sink receives it, or as ``json.loads`` returns it.

    Raises:
        InvalidEventError: It is not a lifecycle event of this version.
        MissingExtraError: ``jsonschema`` is not installed.

    Cost:
        About a millisecond. Training never calls this.
    """
    error = next(iter(_validator(event).iter_errors(event)), None)
    if error is not None:
        where = ".".join(str(part) for part in error.absolute_path) or "event"
        raise InvalidEventError(f"{where}={error.instance!r}: {error.message}; see schema()")


def _validator(event: object) -> Any:
    """Return a validator of this kind of event, for messages about that kind alone."""
    try:
        from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtraError("validate_event()", "events") from error
    whole = schema()
    name = event.get("name") if isinstance(event, dict) else None
    kind = str(name).removeprefix("ml.run.")
    if name == f"ml.run.{kind}" and kind in ("start", "metric", "stop"):
        del whole["oneOf"]
        whole["$ref"] = f"#/$defs/{kind}"
    return Draft202012Validator(whole)
