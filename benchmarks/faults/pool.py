"""Plays the runs of the fault benchmark, several at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from benchmarks.common.runner import play
from benchmarks.faults.kinds import FAULTS
from benchmarks.faults.rivals import BARE, BASELINE, RIVALS
from benchmarks.faults.rows import record_of
from benchmarks.faults.runs import Setting, Strike, run, run_on


class Clean(NamedTuple):
    """A run without a fault.

    Attributes:
        validation: Its validation loss.
        interventions: Of the guard, if there is one.
    """

    validation: float
    interventions: int


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run with a fault.

    Attributes:
        fault: A key of :data:`~benchmarks.faults.kinds.FAULTS`.
        contestant: Who steps.
        setting: What is trained.
        phase: Updates behind the weights when the fault strikes.
        moment: Of the training step.
        seed: Of tensor and element.
    """

    fault: str
    contestant: str
    setting: Setting
    phase: int
    moment: str
    seed: int

    @property
    def clean(self) -> Setting:
        """The run without the fault: with a shift of the data, where nobody looks after it."""
        setting = self.setting
        if FAULTS[self.fault].shift:
            rival = BASELINE if setting.guard is None else BARE
            return replace(setting, guard=None, rival=rival)
        if setting.guard is not None:
            return setting
        return replace(setting, rival=RIVALS[setting.rival].healthy or setting.rival)


def play_all(
    jobs: Sequence[Job], *, processes: int
) -> tuple[dict[Setting, Clean], list[dict[str, Any]]]:
    """Return what all runs without a fault came to, and the records of all with one.

    Args:
        jobs: The latter.
        processes: Of one thread each; 0 for none but this one.
    """
    # The long ones first, so that none is left over for one process at the end.
    settings = sorted(dict.fromkeys(job.clean for job in jobs), key=lambda s: -s.updates)
    order = sorted(range(len(jobs)), key=lambda i: -jobs[i].setting.updates)
    clean = play(play_clean, settings, jobs=processes, title="without a fault")
    struck = [(jobs[i], clean[jobs[i].clean].validation) for i in order]
    found = play(play_struck, struck, jobs=processes, title="with a fault")
    return clean, [found[job, clean[job.clean].validation] for job in jobs]


def play_clean(setting: Setting) -> Clean:
    """Play a run without a fault."""
    outcome = run(setting, None)
    return Clean(outcome.validation, len(outcome.events))


def play_struck(work: tuple[Job, float]) -> dict[str, Any]:
    """Play a run with a fault, and ours once more without it.

    Args:
        work: The run, and the validation loss without the fault.

    Returns:
        Its record.
    """
    job, clean = work
    fault = FAULTS[job.fault]
    strike = Strike(fault=fault, phase=job.phase, moment=job.moment, seed=job.seed)
    outcome, twin = run(job.setting, strike), None
    if job.setting.guard is not None:
        twin = run_on(replace(job.setting, guard=None), outcome.history)
    return record_of(job.setting, strike, outcome, clean, twin)
