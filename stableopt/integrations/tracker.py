"""What the writers for trackers have in common."""

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
        prefix: What the names of all metrics begin with.
        layers: Whether the readings of each weight are metrics of their own.
        trial_id: As the run is known elsewhere.
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
            raise ConfigError(
                f"prefix={prefix!r} must be a string: what the names of all metrics begin with"
            )
        self.every = every
        self._prefix = prefix
        self._metrics = RunMetrics(prefix, layers=layers)
        self._given_ids = {
            "trial_id": check_id("trial_id", trial_id),
            "model_run_id": check_id("model_run_id", model_run_id),
        }

    @property
    def _ids(self) -> dict[str, str]:
        return {key: value for key, value in self._given_ids.items() if value is not None}

    def begin(self, others: Sequence[Writer], close: Callable[[], None]) -> None:
        """Adopt the ids of lifecycle events that were not given."""
        for writer in others:
            if isinstance(writer, LifecycleEvents):
                for key, value in self._given_ids.items():
                    self._given_ids[key] = value or getattr(writer, key)
