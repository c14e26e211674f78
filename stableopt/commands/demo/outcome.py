"""How a run that was hit by a fault ended, as plain data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from stableopt.telemetry.encode import encode
from stableopt.types import Event, Scope

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from stableopt.commands.demo.faults import Fault
    from stableopt.commands.demo.train import Run

RECOVERED = "recovered"
SURVIVED = "survived"
SCARRED = "survived, with the fault in it"
DIED = "died"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The run that was asked for, and those it is compared with.

    Attributes:
        fate: ``"recovered"``, ``"survived"``, ``"survived, with the fault in it"`` or
            ``"died"``.
        integrity: What its summary says.
        guarded: Whether there was a guard.
        fault: Which.
        strikes: What the fault did, one sentence for each time.
        found_at: The step in which the guard found it; ``None`` if it did not.
        found_after: How many steps later than the fault that was.
        found: What it found.
        skips: Steps that were skipped.
        tamed: Steps whose gradients were scaled down.
        rollbacks: From which step to which, for every rollback.
        updates: Updates in the final weights.
        updates_lost: Updates that rollbacks have undone.
        scars: Final weights, moments and buffers that hold a value no sane run has.
        validation_loss: Of each run, by title.
        noise: Standard error of the validation loss without the fault; ``None`` if there
            is no such run.
        within_noise: Whether the fault changed the validation loss by less than that.
    """

    fate: str
    integrity: str
    guarded: bool
    fault: str
    strikes: tuple[str, ...]
    found_at: int | None
    found_after: int | None
    found: str
    skips: tuple[int, ...]
    tamed: tuple[int, ...]
    rollbacks: tuple[dict[str, int], ...]
    updates: int
    updates_lost: int
    scars: tuple[str, ...]
    validation_loss: dict[str, float]
    noise: float | None
    within_noise: bool | None

    @property
    def good(self) -> bool:
        """Whether the run ended with nothing wrong in it."""
        return self.fate in (RECOVERED, SURVIVED)

    def write(self, path: Path) -> None:
        """Write everything as JSON."""
        path.write_text(encode(asdict(self), indent=2) + "\n", encoding="utf-8")


def fate_of(run: Run) -> str:
    """Return how a run ended."""
    if run.died_at is not None:
        return DIED
    if run.scars:
        return SCARRED
    return RECOVERED if run.skipped or run.tamed or run.rollbacks else SURVIVED


def judge_outcome(fault: Fault, run: Run, runs: Mapping[str, Run], clean: Run | None) -> Outcome:
    """Gather what is shown about ``run``.

    Args:
        fault: What it was hit by.
        run: The run that was asked for.
        runs: All runs by title, for their validation losses.
        clean: The same training without the fault.
    """
    finding = next((e for e in run.ledger if e.call >= fault.at and _is_of_fault(e)), None)
    summary: dict[str, Any] = run.summary or {}
    noise = None if clean is None else clean.validation_error
    change = math.nan if clean is None else run.validation_loss - clean.validation_loss
    return Outcome(
        fate=fate_of(run),
        integrity=summary["integrity"],
        guarded=summary["guard"] is not False,
        fault=fault.kind.value,
        strikes=tuple(run.strikes),
        found_at=None if finding is None else finding.call,
        found_after=None if finding is None else finding.call - fault.at,
        found="" if finding is None else _sentence(finding),
        skips=tuple(run.skipped),
        tamed=tuple(run.tamed),
        rollbacks=tuple(
            {"at": call, "from_step": back.from_step, "to_step": back.to_step}
            for call, back in run.rollbacks
        ),
        updates=summary["steps"],
        updates_lost=summary["steps_lost"],
        scars=run.scars,
        validation_loss={title: other.validation_loss for title, other in runs.items()},
        noise=noise,
        within_noise=None if noise is None else abs(change) <= noise,
    )


def _is_of_fault(event: Event) -> bool:
    """Return whether an event is about a fault: some spikes are only noted."""
    return event.intervened or any(found.scope is Scope.SPIKE for found in event.findings)


def _sentence(event: Event) -> str:
    """Return what was found; of the symptoms of a fault in the state, only the loss."""
    lost = any(finding.scope is Scope.STATE for finding in event.findings)
    symptoms = {"nonfinite_gradient", "gradient_spike"} if lost else set()
    return "; ".join(f.message for f in event.findings if f.kind not in symptoms)
