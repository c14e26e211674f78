"""Plays the runs of the fault benchmark, several at once."""

from __future__ import annotations

import logging
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch

from benchmarks.command import silent, torch_threads
from benchmarks.fault_kinds import FAULTS
from benchmarks.fault_rivals import BARE, BASELINE, RIVALS
from benchmarks.fault_rows import record_of
from benchmarks.fault_runs import Setting, Strike, run, run_on
from benchmarks.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

T = TypeVar("T")
R = TypeVar("R")


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
        fault: A key of :data:`~benchmarks.fault_kinds.FAULTS`.
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
    clean: dict[Setting, Clean] = {}
    records: dict[int, dict[str, Any]] = {}
    with progress_bar() as progress:
        bar = progress.add_task("without a fault", total=len(settings))
        for i, known in _run_all(play_clean, settings, processes):
            clean[settings[i]] = known
            progress.advance(bar)
        bar = progress.add_task("with a fault", total=len(jobs))
        struck = [(jobs[i], clean[jobs[i].clean].validation) for i in order]
        for i, record in _run_all(play_struck, struck, processes):
            records[order[i]] = record
            progress.advance(bar)
    return clean, [records[i] for i in range(len(jobs))]


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


def _run_all(
    function: Callable[[T], R], work: Sequence[T], processes: int
) -> Iterator[tuple[int, R]]:
    """Yield every result with its place as soon as it is there."""
    if processes == 0:
        with torch_threads(), silent():
            for i, item in enumerate(work):
                yield i, function(item)
        return
    context = get_context("spawn")  # a fork would inherit the threads of torch
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_settle)
    try:
        started = {pool.submit(function, item): i for i, item in enumerate(work)}
        for future in as_completed(started):
            yield started[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _settle() -> None:
    torch.set_num_threads(1)
    logging.getLogger("stableopt").setLevel(logging.CRITICAL)  # guards have much to say here
