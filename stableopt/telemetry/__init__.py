"""What is recorded of a run: the ledger, the summary, and writers that never block training."""

from typing import TYPE_CHECKING

from stableopt.runtime.lazy import lazily

if TYPE_CHECKING:
    from stableopt.telemetry.json_lines import JsonLines, read_events
    from stableopt.telemetry.lifecycle import LifecycleEvents
    from stableopt.telemetry.logging_writer import LoggingWriter
    from stableopt.telemetry.ml_run_events import InvalidEventError, schema, validate_event
    from stableopt.telemetry.sinks import EventFile, HttpEndpoint, Sink
    from stableopt.telemetry.writer import BaseWriter, Writer
    from stableopt.telemetry.writer_thread import RefusedError

__getattr__, __dir__ = lazily(
    __name__,
    {
        "BaseWriter": "writer",
        "EventFile": "sinks",
        "HttpEndpoint": "sinks",
        "InvalidEventError": "ml_run_events",
        "JsonLines": "json_lines",
        "LifecycleEvents": "lifecycle",
        "LoggingWriter": "logging_writer",
        "RefusedError": "writer_thread",
        "Sink": "sinks",
        "Writer": "writer",
        "read_events": "json_lines",
        "schema": "ml_run_events",
        "validate_event": "ml_run_events",
    },
)

__all__ = [
    "BaseWriter",
    "EventFile",
    "HttpEndpoint",
    "InvalidEventError",
    "JsonLines",
    "LifecycleEvents",
    "LoggingWriter",
    "RefusedError",
    "Sink",
    "Writer",
    "read_events",
    "schema",
    "validate_event",
]
