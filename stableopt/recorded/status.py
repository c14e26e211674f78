"""The state of a run, in numbers and in words, and its exit code."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from stableopt.recorded.interventions import Kind
from stableopt.recorded.run import Run
from stableopt.recorded.values import whole_of
from stableopt.runtime.words import clock, count, printable
from stableopt.telemetry.ledger import MANY

FINE, BAD = 0, 1
"""Exit codes of a run; 2 is a bad use of the command."""

BROKEN = frozenset({"failed", "interrupted"})
"""States of a run whose program did not finish."""

ENDED = BROKEN | {"closed", "stopped"}
"""States after which nothing more is written."""

_DANGEROUS = frozenset({"danger", "instability"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A run in a few numbers.

    Attributes:
        run: The event file.
        state: ``"closed"``, ``"stopped"`` by the guard, ``"failed"`` (an exception ended the
            program), ``"interrupted"`` (Ctrl-C did), ``"open"`` (still running, or killed), or
            ``"unknown"`` without a summary.
        ended_by: The type of the exception that ended the program; ``None`` if none did, or that
            is not recorded.
        integrity: ``"OK"``, ``"COMPROMISED"``, ``"UNCHECKED"``, or ``"UNKNOWN"`` without a summary.
        bad: Whether it is compromised, has failed or was interrupted, or its newest risk is
            ``danger`` or ``instability``.
        calls: Of ``step()``.
        steps: Updates taken so far.
        skips: Calls whose batch was left out.
        tamed: Calls whose gradients were scaled down to what is usual.
        rollbacks: How often the run was rolled back.
        steps_lost: Updates that this has undone.
        back_offs: How often learning rates were lowered without a rollback.
        stops: 1 if it was stopped.
        risk: The newest level; ``None`` while nothing is known.
        final_loss: Mean of the newest recorded losses, 10 at most, of steps that were taken.
        best_loss: The lowest that this mean has been.
        last_loss: The newest loss of a step that was taken.
        seconds: From the first record to the newest.
        calls_per_second: Over the newest records.
        last_record: Seconds since the epoch of the newest record.
        unreadable_lines: Of the event file.
    """

    run: str
    state: str
    ended_by: str | None
    integrity: str
    bad: bool
    calls: int
    steps: int
    skips: int
    tamed: int
    rollbacks: int
    steps_lost: int
    back_offs: int
    stops: int
    risk: str | None
    final_loss: float | None
    best_loss: float | None
    last_loss: float | None
    seconds: float | None
    calls_per_second: float | None
    last_record: float | None
    unreadable_lines: int

    @property
    def exit_code(self) -> int:
        """1 if the run is bad, else 0."""
        return BAD if self.bad else FINE

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, NaN and Inf among them."""
        return asdict(self)


def status_of(run: Run) -> Status:
    """Return the state of a run, from its summary and what was recorded since.

    Args:
        run: As far as it was read.
    """
    state, integrity = _state_of(run), _integrity_of(run)
    return Status(
        run=str(run.path),
        state=state,
        ended_by=_ended_by(run) if state in BROKEN else None,
        integrity=integrity,
        bad=integrity == "COMPROMISED" or state in BROKEN or run.level in _DANGEROUS,
        calls=_newest(run, "calls", run.call),
        # A rollback lowers the number of updates: the newer of two counts, not the larger.
        steps=_steps_of(run),
        skips=_newest(run, "skips", run.counted(Kind.SKIP)),
        tamed=_newest(run, "tamed", run.counted(Kind.TAME)),
        rollbacks=_newest(run, "rollbacks", run.counted(Kind.ROLL_BACK)),
        steps_lost=_newest(run, "steps_lost", run.lost),
        back_offs=_newest(run, "back_offs", run.counted(Kind.BACK_OFF)),
        stops=_newest(run, "stops", run.counted(Kind.STOP)),
        risk=run.level,
        final_loss=run.final_loss,
        best_loss=run.best_loss,
        last_loss=run.loss.last,
        seconds=None if run.began is None or run.ended is None else run.ended - run.began,
        calls_per_second=run.pace,
        last_record=run.ended,
        unreadable_lines=run.unreadable,
    )


def _newest(run: Run, key: str, recorded: int) -> int:
    noted = whole_of(run.setting(key))
    return recorded if noted is None else max(noted, recorded)


def _steps_of(run: Run) -> int:
    calls, steps = whole_of(run.setting("calls")), whole_of(run.setting("steps"))
    return run.step if calls is None or steps is None or calls < run.call else steps


def _state_of(run: Run) -> str:
    if run.counted(Kind.STOP):
        return "stopped"
    if run.summary is None:
        return "unknown"
    noted = run.summary.get("status")
    return noted if isinstance(noted, str) and noted in ENDED else "open"


def _ended_by(run: Run) -> str | None:
    noted = run.setting("ended_by")
    return noted if isinstance(noted, str) and noted else None


def _integrity_of(run: Run) -> str:
    """Return the integrity of the summary, unless events after it are worse."""
    noted = run.setting("integrity")
    # A guard keeps gradients finite: a single loss that is not finite means nothing then.
    many = MANY if isinstance(run.setting("guard"), dict) else 1
    lost = run.bad_losses >= many and _steps_of(run) == run.step
    if run.counted(Kind.STOP) or lost:
        return "COMPROMISED"
    known = ("OK", "COMPROMISED", "UNCHECKED")
    return noted if isinstance(noted, str) and noted in known else "UNKNOWN"


def say_state(status: Status) -> str:
    """Return whether the run has ended, and how far it came, as a sentence."""
    far = f"{count(status.calls, 'call')} of step(), {count(status.steps, 'update')} taken and kept"
    how = {
        "closed": "Closed",
        "stopped": "Stopped by the guard",
        "failed": f"Failed: {printable(status.ended_by or 'an exception')} ended the program",
        "interrupted": "Interrupted: Ctrl-C ended the program",
        "open": "Not closed: still running, or killed",
        "unknown": "Without a summary",
    }[status.state]
    when = "" if status.last_record is None else f"; last record {clock(status.last_record)}"
    return f"{how}. {far}{when}."


def say_interventions(status: Status) -> str:
    """Return what was done beside taking steps, as a sentence."""
    undone = count(status.steps_lost, "update")
    deeds = (
        (status.skips, f"{count(status.skips, 'batch', 'batches')} skipped"),
        (status.tamed, f"{count(status.tamed, 'batch', 'batches')} tamed"),
        (status.rollbacks, f"{count(status.rollbacks, 'rollback')}, {undone} undone"),
        (status.back_offs, f"learning rates lowered {count(status.back_offs, 'time')}"),
        (status.stops, "stopped in the end"),
    )
    done = "; ".join(words for times, words in deeds if times)
    return f"{done or 'Nothing was skipped or undone'}."


def say_integrity(status: Status) -> str:
    """Return what the integrity means, as a sentence."""
    meaning = {
        "OK": "Nothing harmful is known to remain.",
        "UNCHECKED": "There was no guard: the weights were not checked.",
        "UNKNOWN": "There is no readable summary.json: the integrity is not recorded.",
    }
    if status.integrity in meaning:
        return meaning[status.integrity]
    if status.stops:
        return "The guard stopped the run: see the last entries of the ledger."
    if status.last_loss is not None and not math.isfinite(status.last_loss):
        return "Its loss is not finite."
    return "A tracked object was not restored by a rollback, or the loss is not finite."


def say_risk(status: Status) -> str:
    """Return what the sensors say, as a sentence."""
    if status.risk is None:
        return "No sensor has read anything."
    meaning = {
        "stable": "spectra are in their healthy range, and hardly move",
        "learning": "spectra are in their healthy range, and move",
        "warning": "a weight has left the range that is healthy for its shape, or its own course",
        "danger": "a weight is where healthy training was never seen",
        "instability": "several weights are in danger, or one is not finite",
    }.get(status.risk, "a level that this version does not know")
    return f"Risk: {status.risk} ({meaning})."
