"""Telemetry in Weights & Biases, online or offline."""

from __future__ import annotations

import atexit
import logging
import os
from typing import TYPE_CHECKING, Any

from stableopt.errors import ConfigError, MissingExtraError
from stableopt.integrations.tracker import Tracker
from stableopt.telemetry.encode import plain
from stableopt.telemetry.ending import outcome
from stableopt.telemetry.metrics import PREFIX
from stableopt.telemetry.setup import flat_setup

try:
    import wandb
except ImportError as error:
    raise MissingExtraError("WandbWriter", "wandb") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stableopt.telemetry.writer import Writer
    from stableopt.types import Event

_MODES = ("online", "offline", "disabled")
_NEWEST = 1000
"""Interventions that the table of the ledger lists."""


class WandbWriter(Tracker):
    """Log a run to Weights & Biases, on a separate thread.

    A new run of W&B is created, in the group of the active one if there is one: W&B drops rows
    whose ``step=`` is below the newest, so logging into a shared run could lose rows of the other
    program. If nothing else gives ``step=``, as in the Hugging Face Trainer and in Lightning, give
    the run: ``WandbWriter(run=wandb.run)``.

    Each row has ``stable/call``, the call of ``step()`` and the global step of a trainer, as the
    x-axis of all metrics; it never decreases. The configuration has the setup under ``stable``, the
    summary of the run its integrity, status and counts, and the table ``stable/ledger`` the newest
    thousand interventions.

    Args:
        run: Log into this one, and leave it open.
        project: Of a new run.
        name: Of a new run.
        directory: For the files of a new run; ``./wandb`` if not given.
        mode: ``"online"``, ``"offline"`` or ``"disabled"``; as W&B is configured if not given.
        trial_id: Added to the configuration; that of a
            :class:`~stableopt.telemetry.LifecycleEvents` among the writers if not given.
        model_run_id: Likewise.
        every: Log one healthy step out of so many; interventions, and steps at which sensors were
            read, always.
        prefix: Of the names of all metrics.
        layers: Whether the readings of each weight are metrics of their own.

    Attributes:
        run: The run that is logged into; ``None`` until it is created.
        patience: Seconds that closing waits for W&B, whose process is slow to start.

    Raises:
        ConfigError: An option is out of range; W&B would have to ask for an API key.
        MissingExtraError: On import, if W&B is not installed.

    Cost:
        None in the training loop; W&B starts a process.
    """

    patience = 15.0

    def __init__(
        self,
        *,
        run: Any = None,
        project: str | None = None,
        name: str | None = None,
        directory: str | os.PathLike[str] | None = None,
        mode: str | None = None,
        trial_id: str | None = None,
        model_run_id: str | None = None,
        every: int = 10,
        prefix: str = PREFIX,
        layers: bool = True,
    ) -> None:
        super().__init__(
            every=every, prefix=prefix, layers=layers, trial_id=trial_id, model_run_id=model_run_id
        )
        if mode is not None and mode not in _MODES:
            raise ConfigError(f"mode={mode!r} must be one of {', '.join(_MODES)}, or None")
        if run is not None and not callable(getattr(run, "log", None)):
            raise ConfigError(f"run={run!r} must be a run of W&B: what wandb.init() returns")
        if run is None:
            _check_key(mode)
        self.run, self._owned = run, run is None
        self._options: dict[str, Any] = {"project": project, "name": name, "mode": mode}
        if wandb.run is not None:
            self._options["group"] = wandb.run.group or str(wandb.run.id)
            self._options["job_type"] = "stableopt"
        if directory is not None:
            self._options["dir"] = os.fspath(directory)
        self._ledger: list[tuple[int, str, str]] = []
        self._summary: dict[str, Any] | None = None
        self._close_run: Callable[[], None] | None = None

    def begin(self, others: Sequence[Writer], close: Callable[[], None]) -> None:
        """Remember what closes the run: W&B ends its process early at interpreter exit."""
        super().begin(others, close)
        self._close_run = close

    def write(self, event: Event) -> None:
        """Log the metrics of an event as one row."""
        if event.reason:
            self._ledger.append((event.call, event.action.value, event.reason))
            del self._ledger[:-_NEWEST]
        row = {f"{self._prefix}call": event.call, **self._metrics.of(event)}
        # In a new run every row has its call as the step, so that none is merged or dropped.
        self._opened().log(row, **({"step": event.call} if self._owned else {}))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Log the configuration with the first summary, and status and counts."""
        first, self._summary = self._summary is None, summary
        run = self._opened()
        if first:
            config = {**self._ids, "stable": plain(flat_setup(summary))}
            run.config.update(config, allow_val_change=True)
        for key in ("status", "integrity", "steps_lost", "rollbacks", "skips", "tamed"):
            run.summary[f"{self._prefix}run/{key}"] = summary[key]

    def close(self) -> None:
        """Log the ledger, and end the run if it was created here."""
        if self.run is None:
            return
        try:
            if self._ledger:
                table = wandb.Table(columns=["call", "action", "reason"], data=list(self._ledger))
                self.run.log({f"{self._prefix}ledger": table})
            if self._owned:
                self.run.finish(exit_code=int(outcome(self._summary) != "completed"))
        finally:
            if self._close_run is not None:
                atexit.unregister(self._close_run)
                self._close_run = None

    def _opened(self) -> Any:
        if self.run is None:
            # What the program prints is not recorded.
            settings = wandb.Settings(console="off")
            self.run = wandb.init(reinit="create_new", settings=settings, **self._options)
            self.run.define_metric(f"{self._prefix}call", hidden=True)
            self.run.define_metric(f"{self._prefix}*", step_metric=f"{self._prefix}call")
            # Registered after the exit handler of W&B, so it is called before it.
            if self._close_run is not None:
                atexit.register(self._close_run)
        return self.run


def _check_key(mode: str | None) -> None:
    """Refuse a mode in which W&B would ask for a key on the terminal, from a thread."""
    mode = mode or os.environ.get("WANDB_MODE") or "online"
    if mode in ("online", "run") and not _has_key():
        raise ConfigError(
            f"mode={mode!r} needs an API key of W&B: run `wandb login`, set WANDB_API_KEY, or give "
            'mode="offline"'
        )


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    # W&B would log that it found no key.
    logger = logging.getLogger("wandb")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        return bool(wandb.api.api_key)
    finally:
        logger.setLevel(level)
