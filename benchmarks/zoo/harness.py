"""What every training of the zoo is given: an optimizer bare or wrapped, data, and a record."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stableopt import StableOptimizer
from stableopt.types import Action, Event

Record = dict[str, Any]

REASONS = 3
"""Of the first interventions of a run, that are kept."""

_WORLD = 12345

LONGEST = 400
"""Characters of a reason or of a message that are kept."""


class Run:
    """One training, bare or wrapped: the same code for both.

    Args:
        seed: Of the data; whoever plays the run seeds torch itself for the weights.
        wrapped: Whether optimizers are wrapped.

    Attributes:
        data: Draws the samples, and is no part of torch's global random state.
        world: Draws what is to be learned, the same for every seed: seeds then differ by chance
            alone, and not by how hard their task is.
    """

    def __init__(self, seed: int, *, wrapped: bool) -> None:
        self.data = torch.Generator().manual_seed(seed)
        self.world = torch.Generator().manual_seed(_WORLD)
        self._wrapped = wrapped
        self._optimizers: list[StableOptimizer] = []
        self._models: list[nn.Module] = []
        self._bare_calls = 0

    def wrap(self, optimizer: Optimizer, model: nn.Module) -> StableOptimizer:
        """Return the optimizer as a user would have it, or bare.

        A bare one has the methods ``observe`` and ``track``, which do nothing.
        """
        if self._wrapped:
            trained = StableOptimizer(optimizer, model=model)
        else:
            optimizer.register_step_post_hook(self._count)
            for name in ("observe", "track"):
                setattr(optimizer, name, _nothing)
            trained = cast("StableOptimizer", optimizer)
        self._optimizers.append(trained)
        self._models.append(model)
        return trained

    def step(self, optimizer: StableOptimizer, loss: Tensor) -> None:
        """Go one step along the gradient of a loss, as the README has it."""
        optimizer.zero_grad()
        loss.backward()
        optimizer.observe(loss=loss)
        optimizer.step()

    def rand(self, *shape: int) -> Tensor:
        """Draw uniformly from 0 to 1."""
        return torch.rand(shape, generator=self.data)

    def randn(self, *shape: int) -> Tensor:
        """Draw normally."""
        return torch.randn(shape, generator=self.data)

    def randint(self, high: int, *shape: int) -> Tensor:
        """Draw integers below ``high``."""
        return torch.randint(high, shape, generator=self.data)

    def chance(self, probability: float) -> bool:
        """Return ``True`` with a probability."""
        return self.rand().item() < probability

    @property
    def calls(self) -> int:
        """Calls of ``step`` of all optimizers."""
        if not self._wrapped:
            return self._bare_calls
        return sum(optimizer.summary()["calls"] for optimizer in self._optimizers)

    @property
    def events(self) -> list[Event]:
        """The ledgers of all optimizers; empty in a bare run."""
        if not self._wrapped:
            return []
        return [event for optimizer in self._optimizers for event in optimizer.ledger]

    def digest(self) -> str:
        """Return a digest of everything that was trained, and of all buffers."""
        found = hashlib.sha256()
        for tensor in self._tensors():
            if not tensor.is_meta:
                found.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())
        return found.hexdigest()[:16]

    def _tensors(self) -> Iterator[Tensor]:
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                yield from group["params"]
        for model in self._models:
            yield from model.buffers()

    def _count(self, *_: Any) -> None:
        self._bare_calls += 1


def _nothing(**_: Any) -> None:
    """Do nothing: what a bare run says to nobody."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training of the zoo.

    Attributes:
        name: On the command line.
        title: What it is, as a sentence.
        metric: What its function returns.
        function: Trains, and returns the metric.
        at_least: The metric of a bare run that has learned; ``None`` where less is better.
        at_most: The same where less is better.
    """

    name: str
    title: str
    metric: str
    function: Callable[[Run], float]
    at_least: float | None = None
    at_most: float | None = None

    def learned(self, metric: float) -> bool:
        """Tell whether a metric shows that something was learned."""
        least = -math.inf if self.at_least is None else self.at_least
        most = math.inf if self.at_most is None else self.at_most
        return least <= metric <= most


TRAININGS: dict[str, Training] = {}
"""All trainings by name, once :mod:`benchmarks.zoo.catalogue` is imported."""


def training(
    metric: str, *, at_least: float | None = None, at_most: float | None = None
) -> Callable[[Callable[[Run], float]], Callable[[Run], float]]:
    """Enter a function in the zoo, under its own name and with its docstring as the title.

    Args:
        metric: What it returns.
        at_least: The metric that a bare run has to reach.
        at_most: The same where less is better.
    """

    def enter(function: Callable[[Run], float]) -> Callable[[Run], float]:
        name = function.__name__.replace("_", "-")
        TRAININGS[name] = Training(
            name=name,
            title=(function.__doc__ or "").strip().splitlines()[0].rstrip("."),
            metric=metric,
            function=function,
            at_least=at_least,
            at_most=at_most,
        )
        return function

    return enter


def play(training: Training, seed: int, *, wrapped: bool) -> Record:
    """Train once, and return the record of it as plain values.

    An exception, and a metric that is not finite, make it a failed run: its ``error`` says why,
    its ``metric`` is ``None``.

    Args:
        training: What is trained.
        seed: Of weights and data.
        wrapped: Whether its optimizers are wrapped.
    """
    run, metric, error = Run(seed, wrapped=wrapped), math.nan, None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        begun = perf_counter()
        try:
            metric = float(training.function(run))
        except Exception as raised:  # noqa: BLE001 (of any kind: it is what a run came to)
            error = f"{type(raised).__name__}: {raised}"[:LONGEST]
        seconds = perf_counter() - begun
    if error is None and not math.isfinite(metric):
        error = f"the metric is {metric}"
    events = run.events
    interventions = [event for event in events if event.intervened]
    return {
        "training": training.name,
        "seed": seed,
        "wrapped": wrapped,
        "metric": None if error else metric,
        "calls": run.calls,
        "left_out": sum(left_out(event) for event in events),
        "tamed": sum(bool(getattr(event, "tames", False)) for event in events),
        "interventions": len(interventions),
        "reasons": [f"call {e.call}: {e.reason}"[:LONGEST] for e in interventions[:REASONS]],
        "seconds": round(seconds, 4),
        "error": error,
        "digest": run.digest(),
    }


def left_out(event: Event) -> int:
    """Return how many batches one call of ``step`` took out of a run.

    A skip is one; a rollback is the batch that it answers, and all whose updates it undid.
    """
    if event.rollback is not None:
        return 1 + event.rollback.from_step - event.rollback.to_step
    return int(event.action in (Action.SKIP, Action.STOP))
