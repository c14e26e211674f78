"""What every rank does: train in all ways, and take the time."""

from __future__ import annotations

import gc
import pickle
import warnings
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks.common.runner import in_turn
from benchmarks.common.threads import silent
from benchmarks.common.workload import loss_of as loss_on
from benchmarks.common.workload import make_batches, make_model
from benchmarks.ranks.report import VARIANTS
from stableopt import StableOptimizer

STEPS = 5
"""Of every way in a round."""


class Learner:
    """A model on this rank, and one way to train it.

    Args:
        size: Of the model.
        tokens: Of this rank, in a step.
        variant: A key of :data:`~benchmarks.ranks.report.VARIANTS`.
    """

    def __init__(self, size: str, tokens: int, variant: str) -> None:
        model = make_model(size, 0)
        self._variant = variant
        self._model = DistributedDataParallel(model)
        self._batches = make_batches(4, tokens, dist.get_rank())
        inner = torch.optim.AdamW(self._model.parameters(), lr=1e-4, fused=True)
        options = VARIANTS[variant][1]
        self.optimizer: torch.optim.Optimizer = inner
        if options is not None:
            self.optimizer = StableOptimizer(inner, model=self._model, **options)

    def run(self, steps: int) -> tuple[float, float]:
        """Take some steps; return the seconds of one, and those behind its backward pass."""
        whole = update = 0.0
        for number in range(steps):
            dist.barrier()
            begun = perf_counter()
            self.optimizer.zero_grad()
            loss_on(self._model, self._batches[number % len(self._batches)]).backward()
            behind = perf_counter()
            if self._variant == "clip":
                torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
            self.optimizer.step()
            ended = perf_counter()
            whole, update = whole + ended - begun, update + ended - behind
        return whole / steps, update / steps

    def said(self) -> dict[str, Any]:
        """Return how many calls there were in a step, and what the guard did."""
        if not isinstance(self.optimizer, StableOptimizer):
            return {}
        summary = self.optimizer.summary()
        acted = sum(event.intervened for event in self.optimizer.ledger)
        return {**summary.get("ranks", {}), "calls": summary["calls"], "interventions": acted}


def enter(rank: int, size: str, tokens: int, ranks: int, rounds: int, folder: str) -> None:
    """Measure on one rank; the first one writes what was found."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    store = f"file://{folder}/store"
    dist.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=ranks, timeout=timedelta(minutes=5)
    )
    with silent():
        learners = {name: Learner(size, tokens, name) for name in VARIANTS}
        for learner in learners.values():
            learner.run(2)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
        for round_ in range(rounds):
            for name in in_turn(list(VARIANTS), round_):
                gc.collect()
                mine = torch.tensor(learners[name].run(STEPS), dtype=torch.float64)
                dist.all_reduce(mine, op=dist.ReduceOp.MAX)
                times[name].append((float(mine[0]), float(mine[1])))
        if rank == 0:
            found = times, {name: learner.said() for name, learner in learners.items()}
            Path(folder, "found").write_bytes(pickle.dumps(found))
    dist.barrier()
    dist.destroy_process_group()
