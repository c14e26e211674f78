"""A telemetry writer that reports the start, metrics and stop of a run to other systems."""

from __future__ import annotations

import math
import time
import uuid
from collections import deque
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from stableopt.errors import ConfigError, require_int
from stableopt.runtime.once import warn_once
from stableopt.telemetry.ending import outcome, reason, succeeded
from stableopt.telemetry.metrics import COUNTERS, RunMetrics, flat_numbers
from stableopt.telemetry.ml_run_events import make_event
from stableopt.telemetry.setup import flat_setup, uses_spectral_norm
from stableopt.telemetry.sinks import make_sink
from stableopt.telemetry.writer import BaseWriter

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from stableopt.telemetry.sinks import Sink
    from stableopt.types import Event

_FINAL = ("calls", "steps", *(name for name in COUNTERS if name not in ("interventions", "stops")))
_NOT_FINAL = ("readings/", "acts/")
_OURS = frozenset({"step", "risk", "train_loss", "grad_norm", "lr", "lr_scale", *COUNTERS})


class LifecycleEvents(BaseWriter):
    """Emit ``ml.run.start``, ``ml.run.metric`` and ``ml.run.stop`` for every run.

    Events have a JSON schema (:func:`~stableopt.telemetry.ml_run_events.schema`) and a version,
    and hold numbers and short strings only: no tensors, no samples. They wait in a bounded queue
    and are delivered in batches on a separate thread, and again if that fails; the start and the
    stop of a run are never dropped to make room.

    Args:
        sink: A file to append to, an ``http://`` or ``https://`` URL that takes JSON arrays, a
            callable that takes one event, or anything with ``deliver(events)``.
        trial_id: Id of the run; random if not given. Give the same to the tracker.
        model_run_id: Id of what the trial belongs to; ``trial_id`` if not given.
        mlflow_run_id: The run in MLflow, if there is one already.
        hyperparams: Added to those of the optimizer, the guard and the transforms. With
            ``spectral_norm`` among them, that is the flag of the events: give it for a model that
            bounds its spectral norms itself.
        every: Report one healthy step out of so many; the first step of a run and interventions
            are always reported.
        capacity: Events that may wait.

    Attributes:
        trial_id: Id of the run.
        model_run_id: Id of what it belongs to.

    Raises:
        ConfigError: An id is not a string of 1 to 256 characters; ``sink`` is of another type;
            ``hyperparams`` is not a mapping.

    Cost:
        None in the training loop. On its thread about 0.1 ms per event.

    Example:
        >>> import torch, stableopt
        >>> from stableopt.telemetry import LifecycleEvents
        >>> received = []
        >>> events = LifecycleEvents(received.append, trial_id="trial-1")
        >>> opt = stableopt.StableOptimizer(
        ...     torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1), telemetry=events
        ... )
        >>> events.metric(epoch=1, val_accuracy=0.5)
        >>> opt.close()
        >>> [event["name"] for event in received]
        ['ml.run.start', 'ml.run.metric', 'ml.run.stop']
        >>> received[1]["measurements"]
        {'val_accuracy': 0.5}
    """

    first = True
    batch = 100

    def __init__(
        self,
        sink: str | os.PathLike[str] | Callable[[dict[str, Any]], object] | Sink,
        *,
        trial_id: str | None = None,
        model_run_id: str | None = None,
        mlflow_run_id: str | None = None,
        hyperparams: Mapping[str, Any] | None = None,
        every: int = 100,
        capacity: int = 10_000,
    ) -> None:
        require_int("every", every, 1, "report one healthy step out of so many")
        require_int("capacity", capacity, 1, "events that may wait")
        self.every, self.capacity = every, capacity
        self.trial_id = check_id("trial_id", trial_id) or str(uuid.uuid4())
        self.model_run_id = check_id("model_run_id", model_run_id) or self.trial_id
        self._ids = {
            "trial_id": self.trial_id,
            "model_run_id": self.model_run_id,
            "mlflow_run_id": check_id("mlflow_run_id", mlflow_run_id),
        }
        if not isinstance(hyperparams, (Mapping, type(None))):
            raise ConfigError(f"hyperparams={hyperparams!r} must be a dict: values by their names")
        self._hyperparams = dict(hyperparams or {})
        self._metrics = RunMetrics(prefix="", layers=False)
        self._final: dict[str, Any] = {}
        self._summary: dict[str, Any] = {}
        self._began = time.monotonic()
        self._started = self._reported = False
        self._said: set[object] = set()
        self._early: deque[dict[str, Any]] = deque(maxlen=capacity)
        self._sink = make_sink(sink)

    def metric(self, *, epoch: int | None = None, **measurements: float) -> None:
        """Emit ``ml.run.metric`` with measurements of the training loop, e.g. of an epoch.

        May be called from any thread; never blocks. The last value of each is in
        ``ml.run.stop``, with ``final_`` before its name. Later measurements are lost: that is
        logged once, and counted in :attr:`dropped`.

        Args:
            epoch: Its number, from 0.
            **measurements: Numbers, or dicts of numbers.

        Raises:
            ConfigError: ``epoch`` is not an int of at least 0, or a measurement not a number.
        """
        if epoch is not None:
            require_int("epoch", epoch, 0, "the number of an epoch")
        numbers = flat_numbers({name: _number(name, value) for name, value in measurements.items()})
        record = make_event("metric", {**self._ids, "epoch": epoch}, numbers)
        if not self.channel.put(partial(self._metric, record, numbers)):
            warn_once(
                self._said,
                "late",
                "telemetry: %s.metric() was called after the run had ended, and ml.run.stop was "
                "sent: its values are lost, and this is not reported again; call it before "
                "opt.close(), which a trainer does at the end of its training",
                type(self).__name__,
            )

    def write(self, event: Event) -> list[dict[str, Any]]:
        """Emit ``ml.run.metric`` for a call of ``step()``."""
        found = {_renamed(name): value for name, value in self._metrics.of(event).items()}
        for name in ("step", "risk"):  # in the metadata
            found.pop(name, None)
        final = (n for n in found if n not in COUNTERS and not n.startswith(_NOT_FINAL))
        self._final.update((name, found[name]) for name in final)
        # Every writer gets the steps at which sensors were read: too many here.
        if event.routine and self._reported and event.step % self.every:
            return []
        self._reported = True
        metadata = {
            **self._ids,
            "call": event.call,
            "step": event.step,
            "action": event.action.value,
            "reason": event.reason or None,
            "risk": None if event.risk is None else event.risk.value,
        }
        return self._in_order(make_event("metric", metadata, found, event.time or None))

    def write_summary(self, summary: dict[str, Any]) -> list[dict[str, Any]]:
        """Emit ``ml.run.start`` for the first, and remember the last."""
        self._summary = summary
        return self._start(summary)

    def deliver(self, records: Sequence[dict[str, Any]]) -> None:
        """Hand events to the sink."""
        self._sink.deliver(records)

    def close(self) -> list[dict[str, Any]]:
        """Emit ``ml.run.stop``."""
        summary = self._summary
        start = self._start(summary)
        metadata = {
            **self._ids,
            "spectral_norm": self._spectral_norm(summary),
            "success": succeeded(summary),
            "status": outcome(summary),
            "integrity": summary.get("integrity"),
            "reason": reason(summary),
        }
        if summary.get("last_loss") is not None:
            self._final["train_loss"] = summary["last_loss"]
        measurements = {
            "duration_ms": round((time.monotonic() - self._began) * 1000),
            **{name: summary[name] for name in _FINAL if name in summary},
            **{f"final_{name}": value for name, value in self._final.items()},
        }
        return [*start, make_event("stop", metadata, measurements)]

    def _start(self, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
        if self._started:
            return []
        self._started = True
        hyperparams = {**flat_setup(summary), **self._hyperparams}
        hyperparams.pop("spectral_norm", None)
        metadata = {
            **self._ids,
            "spectral_norm": self._spectral_norm(summary),
            "hyperparams": hyperparams,
        }
        measurements = {k: summary[k] for k in ("parameters",) if k in summary}
        return [make_event("start", metadata, measurements), *self._early]

    def _spectral_norm(self, summary: Mapping[str, Any]) -> bool:
        return bool(self._hyperparams.get("spectral_norm", uses_spectral_norm(summary)))

    def _metric(self, record: dict[str, Any], numbers: Mapping[str, float]) -> list[dict[str, Any]]:
        self._final.update(numbers)
        return self._in_order(record)

    def _in_order(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        if self._started:
            return [record]
        self._early.append(record)  # the start of a run comes first
        return []


def check_id(name: str, value: object) -> str | None:
    """Return an id, or ``None`` if that is given.

    Raises:
        ConfigError: It is not a string of 1 to 256 characters.
    """
    if value is None or (isinstance(value, str) and 0 < len(value) <= 256):
        return value
    raise ConfigError(f"{name}={value!r} must be a string of 1 to 256 characters")


def _renamed(name: str) -> str:
    """Return the name of a metric in an event: a signal has no prefix, unless names clash."""
    if name == "loss":
        return "train_loss"
    signal = name.removeprefix("signals/")
    return name if signal in _OURS else signal


def _number(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _number(f"{name}[{key!r}]", entry) for key, entry in value.items()}
    try:
        return float(value)
    except OverflowError:  # an int beyond any float
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor of several
        raise ConfigError(
            f"{name}={value!r} must be a number: convert it with float(...)"
        ) from error
