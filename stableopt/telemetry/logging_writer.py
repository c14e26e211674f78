"""Telemetry as lines of the standard library's logging."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from stableopt.errors import ConfigError, require_int
from stableopt.telemetry.ending import succeeded
from stableopt.telemetry.metrics import metrics_of

if TYPE_CHECKING:
    from stableopt.types import Event

_SHOWN = ("loss", "grad_norm", "lr", "lr_scale", "signals")


class LoggingWriter:
    """Log one line per event.

    The record has all metrics of the event as ``record.stable``, a dict, for handlers that write
    JSON. Healthy steps are logged with ``level``, interventions with ``WARNING``. The logger
    ``"stableopt"`` logs every intervention and its reason anyway: loggers of that name and below
    get the numbers only.

    Args:
        logger: A logger, or the name of one.
        every: Log one healthy step out of so many; interventions always.
        level: Of healthy steps, as in :mod:`logging`.

    Raises:
        ConfigError: ``logger`` is neither, or an option is out of range.

    Example:
        >>> import logging
        >>> from stableopt.telemetry import LoggingWriter
        >>> from stableopt.types import Action, Event
        >>> records = []
        >>> handler = logging.Handler()
        >>> handler.emit = records.append
        >>> logging.getLogger("train").addHandler(handler)
        >>> event = Event(call=100, step=100, action=Action.TAKE, loss=0.25, lr=(0.1,))
        >>> LoggingWriter("train", level=logging.WARNING).write(event)
        >>> records[0].getMessage()
        'call 100: take, step 100, loss 0.25, lr 0.1'
        >>> records[0].stable["loss"]
        0.25
    """

    def __init__(
        self,
        logger: str | logging.Logger = "stableopt.run",
        *,
        every: int = 100,
        level: int = logging.INFO,
    ) -> None:
        require_int("every", every, 1, "log one healthy step out of so many")
        require_int("level", level, 0, "a level of logging, e.g. logging.INFO")
        if not isinstance(logger, (str, logging.Logger)):
            raise ConfigError(f"logger={logger!r} must be a logging.Logger or the name of one")
        self.every = every
        self._level = level
        self._logger = logging.getLogger(logger) if isinstance(logger, str) else logger
        self._ended: str | None = None
        self._explained = self._logger.name.partition(".")[0] == "stableopt"

    def write(self, event: Event) -> None:
        """Log one event."""
        if event.routine and event.step % self.every:
            return  # every writer gets the steps at which sensors were read
        level = self._level if event.routine else logging.WARNING
        if not self._logger.isEnabledFor(level):
            return
        metrics = metrics_of(event)
        shown = {n: v for n, v in metrics.items() if n.partition("/")[0] in _SHOWN}
        numbers = [f"{n} {v:.6g}" for n, v in shown.items() if (n, v) != ("lr_scale", 1.0)]
        if event.risk is not None:
            numbers.append(f"risk {event.risk.value}")
        reason = f", because {event.reason}" if event.reason and not self._explained else ""
        line = ", ".join([f"call {event.call}: {event.action.value}, step {event.step}", *numbers])
        extra = {"stable": {"call": event.call, "action": event.action.value, **metrics}}
        self._logger.log(level, "%s", line + reason, extra=extra)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Log how a run ended."""
        if summary["status"] in ("running", self._ended):
            return
        self._ended = summary["status"]
        level = self._level if succeeded(summary) else logging.WARNING
        counts = (f"{summary[name]} {name}" for name in ("calls", "skips", "tamed", "rollbacks"))
        self._logger.log(
            level,
            "run %s: integrity %s, %s",
            summary["status"],
            summary["integrity"],
            ", ".join(counts),
            extra={"stable": {name: summary[name] for name in ("status", "integrity")}},
        )

    def close(self) -> None:
        """Do nothing: loggers belong to the program."""
