"""The training loops: one with StableOptimizer around AdamW, one with AdamW alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F  # noqa: N812 - its usual name
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from stableopt.commands.demo.inject import Injector, scars
from stableopt.commands.demo.model import GPT
from stableopt.optimizer import StableOptimizer
from stableopt.telemetry import JsonLines
from stableopt.transforms import ClipGradNorm
from stableopt.types import Action, Event, Rollback

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from stableopt.commands.demo.corpus import Corpus
    from stableopt.commands.demo.faults import Fault
    from stableopt.commands.demo.live import Live
    from stableopt.commands.demo.options import Recipe

DEAD_AFTER = 5
"""Losses in a row that are not finite before a run counts as dead."""

TAIL = 20
"""Batches that were taken, at the end of a run, whose mean loss is its final training loss."""

_WARMUP = 20
_LAST_LR = 0.1
_VALIDATION_WINDOWS = 128


@dataclass(slots=True, kw_only=True)
class Run:
    """The course of a run, and how it ended.

    Attributes:
        losses: Of every batch, before its step.
        actions: What was done with each.
        ledger: Every intervention, and every rise of the risk.
        validation_loss: Of the final weights.
        validation_error: Its standard error, over the windows that it is the mean of.
        weights: Those weights.
        died_at: First step from which on the run was lost; ``None`` if it survived.
        strikes: What the fault did, one sentence for each time.
        scars: Names of the final weights, moments and buffers that hold a value no sane run has.
        summary: Of the optimizer; ``None`` for a bare one.
        telemetry: The event file.
        summary_path: The file with the summary.
    """

    losses: list[float] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    ledger: tuple[Event, ...] = ()
    validation_loss: float = math.nan
    validation_error: float = math.nan
    weights: dict[str, Tensor] = field(default_factory=dict)
    died_at: int | None = None
    strikes: list[str] = field(default_factory=list)
    scars: tuple[str, ...] = ()
    summary: dict[str, Any] | None = None
    telemetry: Path | None = None
    summary_path: Path | None = None

    @property
    def tail(self) -> list[float]:
        """The losses of the last batches that were taken."""
        pairs = zip(self.losses, self.actions, strict=True)
        return [loss for loss, action in pairs if action is Action.TAKE][-TAIL:]

    @property
    def training_loss(self) -> float:
        """Mean loss of the last batches that were taken."""
        return sum(self.tail) / max(1, len(self.tail))

    @property
    def skipped(self) -> list[int]:
        """The steps that were skipped, from 1."""
        return [i for i, action in enumerate(self.actions, 1) if action is Action.SKIP]

    @property
    def tamed(self) -> list[int]:
        """The steps whose gradients were scaled down, from 1."""
        return [event.call for event in self.ledger if event.tames]

    @property
    def rollbacks(self) -> list[tuple[int, Rollback]]:
        """The steps that found a fault in the state, from 1, and the rollback of each."""
        events = [event for event in self.ledger if event.action is Action.ROLL_BACK]
        return [(event.call, event.rollback) for event in events if event.rollback is not None]


def train(
    corpus: Corpus,
    recipe: Recipe,
    live: Live,
    *,
    out: Path,
    fault: Fault | None = None,
    guard: bool = True,
) -> Run:
    """Train the GPT with :class:`~stableopt.StableOptimizer` around AdamW.

    Args:
        corpus: The text.
        recipe: How.
        live: Shows every step, and the fault.
        out: Directory for the telemetry.
        fault: What goes wrong, and when.
        guard: Whether steps are judged.

    Returns:
        The run; one that died ended early.
    """
    model, adamw = _build(recipe)
    writer = JsonLines(out)
    # The default guard: it snapshots what training begins with and every 100th step, so that
    # a fault in the middle of these few hundred steps has a snapshot of the run before it.
    optimizer = StableOptimizer(
        adamw,
        model=model,
        transforms=[ClipGradNorm(recipe.max_norm)],
        guard=None if guard else False,
        telemetry=writer,
    )
    schedule = _schedule(optimizer, recipe)
    if guard:
        optimizer.track(scheduler=schedule)
    run = Run(telemetry=writer.path, summary_path=writer.summary_path)

    def report(strike: str) -> None:
        run.strikes.append(strike)
        live.struck(strike)

    injector = Injector(fault, model=model, optimizer=optimizer, seed=recipe.seed, report=report)
    try:
        for step in range(1, recipe.steps + 1):
            loss = model.loss(*injector.on_batch(step, _batch(corpus, recipe, step)))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            injector.on_gradients(step)
            optimizer.observe(loss=loss)
            optimizer.step()
            _note(run, live, loss, optimizer)
            schedule.step()
            injector.on_state(step)
            if _is_dead(run.losses):
                break
    finally:
        optimizer.close()
    run.ledger, run.summary = optimizer.ledger, optimizer.summary()
    return _finish(run, model, optimizer, corpus)


def train_bare(corpus: Corpus, recipe: Recipe, live: Live) -> Run:
    """Train the GPT with AdamW alone, in the usual loop.

    Args:
        corpus: The text.
        recipe: How.
        live: Shows every step, and the fault.
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
        _note(run, live, loss, optimizer)
        schedule.step()
    return _finish(run, model, optimizer, corpus)


def identical(a: Run, b: Run) -> bool:
    """Return whether two runs ended with the same weights, bit for bit."""
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


def _note(run: Run, live: Live, loss: Tensor, optimizer: Optimizer) -> None:
    verdict = optimizer.verdict if isinstance(optimizer, StableOptimizer) else None
    run.losses.append(loss.item())
    run.actions.append(verdict.action if verdict else Action.TAKE)
    lr = optimizer.param_groups[0]["lr"]
    live.stepped(len(run.losses), run.losses[-1], lr, run.actions[-1])


def _is_dead(losses: list[float]) -> bool:
    return len(losses) >= DEAD_AFTER and not any(map(math.isfinite, losses[-DEAD_AFTER:]))


def _finish(run: Run, model: GPT, optimizer: Optimizer, corpus: Corpus) -> Run:
    run.validation_loss, run.validation_error = _validate(model, corpus)
    run.scars = scars(model, optimizer)
    run.weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    if _is_dead(run.losses) or not math.isfinite(run.validation_loss):
        # What the last step kills has no later loss to show it: blame that step.
        finite = [i for i, loss in enumerate(run.losses, 1) if math.isfinite(loss)]
        run.died_at = min(max(finite, default=0) + 1, len(run.losses))
    return run


@torch.no_grad()
def _validate(model: GPT, corpus: Corpus) -> tuple[float, float]:
    """Return the mean loss of windows of text never trained on, and its standard error."""
    context = len(model.positions)
    text, targets = corpus.validation_batch(size=_VALIDATION_WINDOWS, context=context)
    losses = F.cross_entropy(model(text).mT, targets, reduction="none").mean(dim=1)
    return losses.mean().item(), losses.std().item() / math.sqrt(len(losses))
