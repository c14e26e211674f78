"""The training loops: one with StableOptimizer around AdamW, one with AdamW alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from stableopt.demo.model import GPT
from stableopt.optimizer import StableOptimizer
from stableopt.telemetry import JsonLines
from stableopt.testing import inject_gradient
from stableopt.transforms import ClipGradNorm
from stableopt.types import Action

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from torch.optim import Optimizer

    from stableopt.demo.corpus import Corpus
    from stableopt.demo.options import Fault, Recipe
    from stableopt.testing import Injection

DEAD_AFTER = 5
"""Losses in a row that are not finite before a run counts as dead."""

TAIL = 20
"""Losses at the end of a run whose mean is its final training loss."""

_WARMUP = 20
_LAST_LR = 0.1
_VALIDATION_WINDOWS = 128


class Watcher(Protocol):
    """Is told what happens while it happens."""

    def stepped(self, step: int, loss: float, lr: float, action: Action) -> None:
        """A step ended."""

    def injected(self, step: int, injection: Injection) -> None:
        """A fault was injected."""


@dataclass(slots=True, kw_only=True)
class Run:
    """What became of a run.

    Attributes:
        losses: Of every batch, before its step.
        actions: What was done with each.
        validation_loss: Of the final weights.
        weights: Those weights.
        died_at: First step from which on the run was lost; ``None`` if it survived.
        injection: What the fault did.
        summary: Of the optimizer; ``None`` for a bare one.
        telemetry: The event file.
        summary_path: The file with the summary.
    """

    losses: list[float] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    validation_loss: float = math.nan
    weights: dict[str, Tensor] = field(default_factory=dict)
    died_at: int | None = None
    injection: Injection | None = None
    summary: dict[str, Any] | None = None
    telemetry: Path | None = None
    summary_path: Path | None = None

    @property
    def training_loss(self) -> float:
        """Mean loss of the last batches."""
        tail = self.losses[-TAIL:]
        return sum(tail) / len(tail)

    @property
    def skipped(self) -> list[int]:
        """The steps that were skipped, from 1."""
        return [i for i, action in enumerate(self.actions, 1) if action is Action.SKIP]


def train(
    corpus: Corpus,
    recipe: Recipe,
    watcher: Watcher,
    *,
    out: Path,
    fault: Fault | None = None,
    guard: bool = True,
) -> Run:
    """Train the GPT with :class:`~stableopt.StableOptimizer` around AdamW.

    Args:
        corpus: The text.
        recipe: How.
        watcher: Whom to tell.
        out: Directory for the telemetry.
        fault: What goes wrong, and when.
        guard: Whether steps are judged.

    Returns:
        The run; one that died ended early.
    """
    model, adamw = _build(recipe)
    writer = JsonLines(out)
    optimizer = StableOptimizer(
        adamw,
        model=model,
        transforms=[ClipGradNorm(recipe.max_norm)],
        guard=None if guard else False,
        telemetry=writer,
    )
    schedule = _schedule(optimizer, recipe)
    run = Run(telemetry=writer.path, summary_path=writer.summary_path)
    try:
        for step in range(1, recipe.steps + 1):
            loss = model.loss(*_batch(corpus, recipe, step))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if fault is not None and step == fault.at:
                run.injection = inject_gradient(
                    optimizer, fault.value, model=model, seed=recipe.seed
                )
                watcher.injected(step, run.injection)
            optimizer.observe(loss=loss)
            optimizer.step()
            _note(run, watcher, loss, optimizer)
            schedule.step()
            if _is_dead(run.losses):
                break
    finally:
        optimizer.close()
    run.summary = optimizer.summary()
    return _finish(run, model, corpus)


def train_bare(corpus: Corpus, recipe: Recipe, watcher: Watcher) -> Run:
    """Train the GPT with AdamW alone, as everybody writes it.

    Args:
        corpus: The text.
        recipe: How.
        watcher: Whom to tell.
    """
    model, optimizer = _build(recipe)
    schedule = _schedule(optimizer, recipe)
    run = Run()
    for step in range(1, recipe.steps + 1):
        loss = model.loss(*_batch(corpus, recipe, step))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_norm)
        optimizer.step()
        _note(run, watcher, loss, optimizer)
        schedule.step()
    return _finish(run, model, corpus)


def identical(a: Run, b: Run) -> bool:
    """Tell whether two runs ended with the same weights, bit for bit."""
    return a.weights.keys() == b.weights.keys() and all(
        # As integers: NaN differs from itself, and -0.0 equals 0.0.
        torch.equal(a.weights[name].view(torch.int32), b.weights[name].view(torch.int32))
        for name in a.weights
    )


def _build(recipe: Recipe) -> tuple[GPT, AdamW]:
    torch.manual_seed(recipe.seed)
    model = GPT(recipe.model)
    optimizer = AdamW(
        model.parameters(), lr=recipe.lr, betas=(0.9, 0.95), weight_decay=recipe.weight_decay
    )
    return model, optimizer


def _schedule(optimizer: Optimizer, recipe: Recipe) -> LambdaLR:
    return LambdaLR(optimizer, partial(_warmup_then_cosine, steps=recipe.steps))


def _warmup_then_cosine(step: int, *, steps: int) -> float:
    warmup = min(_WARMUP, steps // 5)
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / (steps - warmup))
    return _LAST_LR + (1 - _LAST_LR) * 0.5 * (1 + math.cos(math.pi * progress))


def _batch(corpus: Corpus, recipe: Recipe, step: int) -> tuple[Tensor, Tensor]:
    return corpus.batch(step, seed=recipe.seed, size=recipe.batch, context=recipe.model.context)


def _note(run: Run, watcher: Watcher, loss: Tensor, optimizer: Optimizer) -> None:
    verdict = optimizer.verdict if isinstance(optimizer, StableOptimizer) else None
    run.losses.append(loss.item())
    run.actions.append(verdict.action if verdict else Action.TAKE)
    lr = optimizer.param_groups[0]["lr"]
    watcher.stepped(len(run.losses), run.losses[-1], lr, run.actions[-1])


def _is_dead(losses: list[float]) -> bool:
    return len(losses) >= DEAD_AFTER and not any(map(math.isfinite, losses[-DEAD_AFTER:]))


def _finish(run: Run, model: GPT, corpus: Corpus) -> Run:
    run.validation_loss = _validate(model, corpus)
    run.weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    if _is_dead(run.losses) or not math.isfinite(run.validation_loss):
        # What the last step kills has no later loss to show it: blame that step.
        finite = [i for i, loss in enumerate(run.losses, 1) if math.isfinite(loss)]
        run.died_at = min(max(finite, default=0) + 1, len(run.losses))
    return run


@torch.no_grad()
def _validate(model: GPT, corpus: Corpus) -> float:
    context = model.positions.num_embeddings
    text, targets = corpus.validation_batch(size=_VALIDATION_WINDOWS, context=context)
    return model.loss(text, targets).item()
