"""Which runs the learning-rate benchmark consists of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from benchmarks.learning_rate.methods import BASELINE, COMPARED, INNER, ROBUST
from benchmarks.learning_rate.tasks import LONG, MAIN, TASKS

SEEDS = (103, 104, 105)
"""Those of the comparison. Seeds 0 to 9 are for tuning, and 100 to 102 are used up."""

LRS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
LION_LRS = (1e-4, 3e-4, *LRS)
LONG_LRS = {BASELINE: (3e-3, 1e-2, 3e-2), ROBUST: (1e-2, 1e-1, 1.0)}
QUICK_LRS = (3e-3, 1.0)

VARIANTS = ("gpt2 init", "post-LN", "zero init", "LSTM", "convolutions")
UNSEEN = ("deep", "n-gram")
"""Run with the first of the seeds alone."""


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        task: One of ``TASKS``.
        method: One of ``METHODS``.
        lr: The peak of the learning rate.
        seed: Of weights and batches.
    """

    task: str
    method: str
    lr: float
    seed: int

    @property
    def cost(self) -> int:
        """About how long it takes, in no unit."""
        task = TASKS[self.task]
        return task.steps * task.batch * task.context * task.shape.layers * task.shape.width


def plan(
    seeds: Sequence[int] = SEEDS,
    *,
    tasks: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    lrs: Sequence[float] | None = None,
) -> list[Cell]:
    """Return all runs: the main tasks, then the rest, the longest first.

    Args:
        seeds: Of the comparison.
        tasks: Only these.
        methods: Only these.
        lrs: In place of every grid.
    """
    cells = [
        Cell(task, method, lr, seed)
        for task, method, grid, chosen in _grids(seeds)
        if (tasks is None or task in tasks) and (methods is None or method in methods)
        for lr, seed in product(grid if lrs is None else lrs, chosen)
    ]
    return sorted(cells, key=lambda cell: (cell.task not in MAIN, -cell.cost))


def _grids(seeds: Sequence[int]) -> Iterator[tuple[str, str, Sequence[float], Sequence[int]]]:
    """Yield task, method, learning rates and seeds."""
    for task, method in product(MAIN, COMPARED):
        yield task, method, LRS, seeds
    for task, method in product(VARIANTS, (BASELINE, ROBUST)):
        yield task, method, LRS, seeds
    for task, method in product(UNSEEN, (BASELINE, ROBUST)):
        yield task, method, LRS, seeds[:1]
    for method in INNER:
        yield MAIN[0], method, LION_LRS if method.startswith("Lion") else LRS, seeds
    for method, grid in LONG_LRS.items():
        yield LONG, method, grid, seeds
