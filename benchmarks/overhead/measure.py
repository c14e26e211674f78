"""Interleaved rounds of training steps, and the figures that come out of them."""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import Tensor
from torch.nn.utils import get_total_norm

from benchmarks.common.figures import nearest_rank, quartiles, ratios
from benchmarks.common.runner import in_turn
from benchmarks.common.variants import BASELINE, CLIPPED, MAX_NORM, Learner, make_learners
from benchmarks.common.workload import CONTEXT, count_parameters, loss_of, make_batches

FEWEST_ROUNDS = 3
"""Measured even where the time is up: fewer have no quartiles."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One model at one number of tokens per step.

    Attributes:
        name: What ``--cells`` calls it.
        size: The model.
        tokens: Tokens that a step trains on.
        implementation: Of AdamW.
        steps: Steps of one block: what a variant does before the next one's turn.
        rounds: At most so many.
        share: Of the time of the whole run.
        variants: Their names, the baseline among them.
    """

    name: str
    size: str
    tokens: int
    implementation: str = "fused"
    steps: int
    rounds: int = 60
    share: float
    variants: tuple[str, ...]


@dataclass
class Timings:
    """What one variant did: per round, the seconds of the block and of its parts.

    Attributes:
        blocks: Wall time of each block.
        updates: The part of each block that was not forward and backward.
        steps: Wall time of every step of every block.
        loss: Of the last step.
    """

    blocks: list[float] = field(default_factory=list)
    updates: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    loss: float = math.nan


def run_cell(cell: Cell, *, seed: int, seconds: float, directory: Path) -> dict[str, Any]:
    """Measure a cell and return its figures.

    In each round every variant runs one block on the same batches; the order is rotated
    from round to round and reversed in every other one.

    Args:
        cell: What to measure.
        seed: Of the weights and of the data.
        seconds: No round begins that would probably end later, once there are
            :data:`FEWEST_ROUNDS`.
        directory: Where variants may write.
    """
    begun = perf_counter()
    with make_learners(
        cell.variants,
        size=cell.size,
        implementation=cell.implementation,
        seed=seed,
        directory=directory,
    ) as learners:
        _warm_up(cell, learners, seed)
        timings = {name: Timings() for name in learners}
        clipped = []
        for round_ in range(cell.rounds):
            now = perf_counter()
            _run_round(cell, learners, timings, seed=seed, round_=round_)
            clipped.append(_exceeds_bound(learners[BASELINE]))
            end = perf_counter()
            if round_ + 1 >= FEWEST_ROUNDS and end + (end - now) - begun > seconds:
                break
        return _result(cell, learners, timings, clipped)


def _warm_up(cell: Cell, learners: dict[str, Learner], seed: int) -> None:
    """Take two short steps with each: optimizers make their state, allocators their pools."""
    batches = make_batches(2, min(cell.tokens, CONTEXT), seed)
    for learner in learners.values():
        _run_block(learner, batches, Timings())


def _run_round(
    cell: Cell, learners: dict[str, Learner], timings: dict[str, Timings], *, seed: int, round_: int
) -> None:
    batches = make_batches(cell.steps, cell.tokens, seed + 1 + round_)
    for name in in_turn(learners, round_):
        gc.collect()
        _run_block(learners[name], batches, timings[name])


def _run_block(learner: Learner, batches: Sequence[Tensor], timings: Timings) -> None:
    updating = 0.0
    loss = None
    begun = before = perf_counter()
    for batch in batches:
        learner.optimizer.zero_grad()
        loss = loss_of(learner.model, batch)
        loss.backward()
        ready = perf_counter()
        learner.update(loss)
        after = perf_counter()
        updating += after - ready
        timings.steps.append(after - before)
        before = after
    timings.blocks.append(before - begun)
    timings.updates.append(updating)
    timings.loss = math.nan if loss is None else loss.item()


def _exceeds_bound(learner: Learner) -> bool:
    gradients = [p.grad for p in learner.model.parameters() if p.grad is not None]
    return get_total_norm(gradients).item() > MAX_NORM


def _result(
    cell: Cell, learners: dict[str, Learner], timings: dict[str, Timings], clipped: list[bool]
) -> dict[str, Any]:
    bare = timings[BASELINE]
    return {
        "name": cell.name,
        "size": cell.size,
        "parameters": count_parameters(learners[BASELINE].model),
        "tokens": cell.tokens,
        "implementation": cell.implementation,
        "steps_per_block": cell.steps,
        "rounds": len(bare.blocks),
        "steps": len(bare.steps),
        "rounds_above_clipping_bound": sum(clipped),
        "variants": [
            {
                "name": name,
                "to_adamw": ratios(timing.blocks, bare.blocks),
                "to_adamw_clip": ratios(timing.blocks, timings[CLIPPED].blocks)
                if CLIPPED in timings
                else None,
                "added_by_update": quartiles(
                    (mine - theirs) / whole
                    for mine, theirs, whole in zip(
                        timing.updates, bare.updates, bare.blocks, strict=True
                    )
                ),
                "step_p99_to_median": nearest_rank(timing.steps, 0.99)
                / statistics.median(timing.steps),
                "interventions": learners[name].interventions(),
                "last_loss": timing.loss,
                "block_seconds": timing.blocks,
                "update_seconds": timing.updates,
                "step_seconds": {
                    "median": statistics.median(timing.steps),
                    "p99": nearest_rank(timing.steps, 0.99),
                },
            }
            for name, timing in timings.items()
        ],
    }
