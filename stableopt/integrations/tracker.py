"""The base class of writers for trackers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stableopt.errors import ConfigError, require_int
from stableopt.telemetry.lifecycle import LifecycleEvents, check_id
from stableopt.telemetry.metrics import RunMetrics
from stableopt.telemetry.writer import BaseWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stableopt.telemetry.writer import Writer


class Tracker(BaseWriter):
    """Base class of writers that keep the metrics of a run.

    Args:
        every: One healthy step out of so many is recorded.
        prefix: Of the names of all metrics.
        layers: Whether the readings of each weight are metrics of their own.
        trial_id: Id of the run in other systems.
        model_run_id: Likewise.

    Raises:
        ConfigError: An option is out of range.
    """

    def __init__(
        self,
        *,
        every: int,
        prefix: str,
        layers: bool,
        trial_id: str | None = None,
        model_run_id: str | None = None,
    ) -> None:
        require_int("every", every, 1, "record one healthy step out of so many")
        if not isinstance(prefix, str):
            raise ConfigError(f"prefix={prefix!r} must be a string: the prefix of all names")
        self.every = every
        self._prefix = prefix
        self._metrics = RunMetrics(prefix, layers=layers)
        given = {"trial_id": trial_id, "model_run_id": model_run_id}
        checked = {key: check_id(key, value) for key, value in given.items()}
        self._ids = {key: value for key, value in checked.items() if value is not None}

    def begin(self, others: Sequence[Writer], close: Callable[[], None]) -> None:
        """Take over the ids of lifecycle events that were not given."""
        for writer in others:
            if isinstance(writer, LifecycleEvents):
                ids = {"trial_id": writer.trial_id, "model_run_id": writer.model_run_id}
                self._ids = {**ids, **self._ids}
