"""Spectral normalization as a projection, beside torch's parametrization."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from benchmarks.closed_loop.tasks import COURSE, QUICK, Course, adamw, loss_of, new_gpt, validate
from stableopt import SpectralNormalization, StableOptimizer

BOUNDS = (1.0, 2.0)
STEPS, QUICK_STEPS, PER_ROUND = 200, 20, 10
"""A round holds one projection of those that are made every tenth update."""


@dataclass
class Learner:
    """A model in training, and what it took.

    Attributes:
        model: It.
        optimizer: Its optimizer.
        norms: The largest spectral norm of its blocks as every forward pass used it.
        rounds: Seconds of every round.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    norms: list[float] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)


class _Scaled(nn.Module):
    """Multiplies a normalized weight by a bound: torch's own knows only that of 1."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = bound

    def forward(self, weight: Tensor) -> Tensor:
        return self.bound * weight


def compare(bound: float, seed: int, *, quick: bool = False) -> list[dict[str, Any]]:
    """Train all variants side by side, in turns, and return a record of each.

    Args:
        bound: On the spectral norms of all linear layers of the blocks.
        seed: Of weights and batches.
        quick: Whether to train the tiny model for some steps.
    """
    course, steps = (QUICK, QUICK_STEPS) if quick else (COURSE, STEPS)
    learners = {name: make(course, bound, seed) for name, make in VARIANTS.items()}
    for first in range(0, steps, PER_ROUND):
        order = list(learners.values())
        turn = first // PER_ROUND
        order = order[turn % len(order) :] + order[: turn % len(order)]
        for learner in order if turn % 2 else order[::-1]:
            learner.rounds.append(_train(learner, course, range(first, first + PER_ROUND), seed))
    bare = learners["bare"].rounds
    return [
        {
            "variant": name,
            "bound": bound,
            "seed": seed,
            "val": validate(learner.model.eval(), course),
            "first": learner.norms[0],
            "largest": max(learner.norms[PER_ROUND:]),
            "last": learner.norms[-1],
            "to_bare": [mine / theirs for mine, theirs in zip(learner.rounds, bare, strict=True)],
        }
        for name, learner in learners.items()
    ]


def norm_rows(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for every bound and variant."""
    cells = dict.fromkeys((record["bound"], record["variant"]) for record in records)
    return [
        _row([record for record in records if (record["bound"], record["variant"]) == cell])
        for cell in cells
    ]


def _row(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    ratios = sorted(ratio for record in records for ratio in record["to_bare"])
    return {
        "bound": records[0]["bound"],
        "variant": records[0]["variant"],
        "val": fmean(record["val"] for record in records),
        "first": max(record["first"] for record in records),
        "largest": max(record["largest"] for record in records),
        "last": max(record["last"] for record in records),
        "cost": {
            "p25": ratios[len(ratios) // 4],
            "median": median(ratios),
            "p75": ratios[len(ratios) * 3 // 4],
        },
    }


def _train(learner: Learner, course: Course, steps: range, seed: int) -> float:
    """Return the seconds that some steps take; measuring norms is no part of them."""
    seconds = 0.0
    for step in steps:
        begun = perf_counter()
        for group in learner.optimizer.param_groups:
            group["lr"] = course.lr_at(step)
        learner.optimizer.zero_grad()
        loss_of(learner.model, course, step, seed).backward()
        seconds += perf_counter() - begun
        learner.norms.append(largest_norm(learner.model))
        begun = perf_counter()
        learner.optimizer.step()
        seconds += perf_counter() - begun
    return seconds


@torch.no_grad()
def largest_norm(model: nn.Module) -> float:
    """Return the largest spectral norm, by full decompositions, that the last forward pass used."""
    norms = [0.0]
    for _, layer in _layers(model):
        # In training mode, to look at a weight is to take a step of torch's power iteration.
        layer.eval()
        norms.append(float(torch.linalg.matrix_norm(layer.weight, 2)))
        layer.train()
    return max(norms)


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.startswith("blocks."):
            yield name, module


def _bare(course: Course, bound: float, seed: int) -> Learner:
    model = new_gpt(course, seed)
    return Learner(model, adamw(model))


def _projected(every: int) -> Callable[[Course, float, int], Learner]:
    def make(course: Course, bound: float, seed: int) -> Learner:
        model = new_gpt(course, seed)
        names = [f"{name}.weight" for name, _ in _layers(model)]
        projection = SpectralNormalization(bound, every=every, params=names)
        wrapped = StableOptimizer(
            adamw(model), model=model, transforms=[projection], sensors=(), guard=False
        )
        return Learner(model, wrapped)

    return make


def _parametrized(course: Course, bound: float, seed: int) -> Learner:
    model = new_gpt(course, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _, layer in list(_layers(model)):
            spectral_norm(layer)
            if not math.isclose(bound, 1.0):
                parametrize.register_parametrization(layer, "weight", _Scaled(bound))
    return Learner(model, adamw(model))


VARIANTS: dict[str, Callable[[Course, float, int], Learner]] = {
    "bare": _bare,
    "SpectralNormalization, every update": _projected(1),
    "SpectralNormalization, every 10": _projected(10),
    "torch's parametrization": _parametrized,
}
"""By name; ``"bare"`` is what the others are compared with."""
