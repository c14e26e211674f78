"""What is printed before and after the runs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from stableopt.commands.demo.faults import announce_fault
from stableopt.commands.demo.outcome import DIED, RECOVERED, SCARRED, Outcome, fate_of
from stableopt.commands.terminal import say
from stableopt.runtime.words import count, listed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from rich.console import Console

    from stableopt.commands.demo.corpus import Corpus
    from stableopt.commands.demo.model import GPT
    from stableopt.commands.demo.options import DemoOptions
    from stableopt.commands.demo.train import Run

_UNGUARDED = ": there was no guard"

_LARGE = 1e4
"""Losses from here on are written with an exponent."""

_STYLES = {DIED: "bold red", SCARRED: "bold red", RECOVERED: "green"}


def announce(console: Console, options: DemoOptions, corpus: Corpus, model: GPT) -> None:
    """Print what is about to happen."""
    recipe, fault = options.recipe, options.fault
    parameters = sum(p.numel() for p in model.parameters())
    size = (len(corpus.training) + len(corpus.validation)) / 1e6
    say(
        console,
        f"A byte-level GPT of {parameters / 1e6:.2f} M parameters learns the {size:.1f} MB of "
        f"Python's standard library: {recipe.steps} steps, seed {recipe.seed}.",
    )
    if fault is not None:
        say(console, announce_fault(fault))
    console.print()


def compare(console: Console, runs: Mapping[str, Run]) -> None:
    """Print one row per run."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("run", no_wrap=True)
    for title in ("train", "val", "skips", "tamed", "rollbacks"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("integrity", no_wrap=True)
    table.add_column("outcome")
    for title, run in runs.items():
        losses = map(_number, (run.training_loss, run.validation_loss))
        counts = (str(len(done)) for done in (run.skipped, run.tamed, run.rollbacks))
        integrity, fate = (run.summary or {}).get("integrity", "-"), fate_of(run)
        at = f" at step {run.died_at}" if fate == DIED else ""
        outcome = Text(f"{fate}{at}", style=_STYLES.get(fate, "green"))
        table.add_row(title, *losses, *counts, integrity, outcome)
    console.print()
    console.print(table)
    taken = len(next(iter(runs.values())).tail)
    say(
        console,
        f"Mean losses: train, of the last {taken} batches that were taken; val, of text never "
        "trained on.",
        style="dim",
    )


def print_fate(console: Console, title: str, run: Run) -> None:
    """Print that a run died, and where, or that a fault is still in it."""
    if run.died_at is not None:
        if math.isfinite(run.losses[run.died_at - 1]):
            why = "it left weights whose loss is not finite"
        else:
            why = f"its loss has not been finite since; stopped after step {len(run.losses)}"
        say(console, f"{title}: died at step {run.died_at}: {why}", style="bold red")
    elif run.scars:
        say(console, f"{title}: {SCARRED}: {_scars(run.scars)}", style="bold red")


def print_outcome(console: Console, outcome: Outcome) -> None:
    """Print in words what happened to the run that was asked for, and how it ended."""
    console.print()
    for line in outcome.strikes[:1]:
        more = f" (and {len(outcome.strikes) - 1} more)" if len(outcome.strikes) > 1 else ""
        say(console, f"fault      {line}{more}")
    say(console, f"found      {_found(outcome)}")
    say(console, f"undone     {_undone(outcome)}")
    say(console, f"left       {_left(outcome)}")
    say(console, _conclusion(outcome), style="bold green" if outcome.good else "bold red")


def point_to_files(
    console: Console, runs: Mapping[str, Run], pictures: tuple[Path, ...], summary: Path | None
) -> None:
    """Print where everything is."""
    console.print()
    for run in runs.values():
        if run.telemetry is not None and run.summary_path is not None:
            say(console, f"telemetry  {run.telemetry}  {run.summary_path}")
    say(console, "picture    " + "  ".join(map(str, pictures)))
    if summary is not None:
        say(console, f"summary    {summary}")


def _found(outcome: Outcome) -> str:
    if outcome.found_at is None or outcome.found_after is None:
        why = ": the run ended before the guard had looked at all weights and state"
        return "never" + (_UNGUARDED if not outcome.guarded else why if outcome.scars else "")
    when = f"{count(outcome.found_after, 'step')} later" if outcome.found_after else "at once"
    return f"in step {outcome.found_at}, {when}: {outcome.found}"


def _undone(outcome: Outcome) -> str:
    """Return what the guard did about the fault."""
    deeds = [
        f"in step {back['at']} rolled back from step {back['from_step']} to step "
        f"{back['to_step']}: {count(back['from_step'] - back['to_step'], 'update')} lost"
        for back in outcome.rollbacks
    ]
    for what, steps in (("skipped", outcome.skips), ("tamed", outcome.tamed)):
        if steps:
            where = f"from step {steps[0]} to {steps[-1]}" if steps[1:] else f"step {steps[0]}"
            deeds.append(f"{what} {count(len(steps), 'batch', 'batches')}, {where}")
    return "; ".join(deeds) or "nothing"


def _left(outcome: Outcome) -> str:
    behind = f"{count(outcome.updates, 'update')} in the final weights"
    if outcome.scars:
        return f"{_scars(outcome.scars)}; {behind}"
    return f"nothing of it: no weight, moment or buffer is damaged; {behind}"


def _conclusion(outcome: Outcome) -> str:
    fate = outcome.fate[0].upper() + outcome.fate[1:]
    loss, *others = outcome.validation_loss.values()
    unseen = " (as far as the guard had looked)" if outcome.guarded and outcome.scars else ""
    integrity = f"integrity {outcome.integrity}{unseen}"
    text = f"{fate}: {integrity}, final validation loss {_number(loss)}"
    if outcome.noise is None or not outcome.good:
        return f"{text}."
    relation = "within noise of" if outcome.within_noise else "beyond the noise of"
    return (
        f"{text}, {relation} the clean run's {others[0]:.4f} "
        f"({loss - others[0]:+.4f}; standard error {outcome.noise:.4f})."
    )


def _scars(names: tuple[str, ...]) -> str:
    return f"{listed(names)} {'is' if len(names) == 1 else 'are'} damaged"


def _number(loss: float) -> str:
    return f"{loss:.4f}" if loss < _LARGE else f"{loss:.3g}"
