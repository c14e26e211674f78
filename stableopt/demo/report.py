"""What is printed before and after the runs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from stableopt.demo.options import spell
from stableopt.demo.train import TAIL

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from rich.console import Console

    from stableopt.demo.corpus import Corpus
    from stableopt.demo.model import GPT
    from stableopt.demo.options import DemoOptions
    from stableopt.demo.train import Run


def announce(console: Console, options: DemoOptions, corpus: Corpus, model: GPT) -> None:
    """Say what is about to happen."""
    recipe, fault = options.recipe, options.fault
    parameters = sum(p.numel() for p in model.parameters())
    size = (len(corpus.training) + len(corpus.validation)) / 1e6
    say(
        console,
        f"A byte-level GPT of {parameters / 1e6:.2f} M parameters learns the {size:.1f} MB of "
        f"Python's standard library: {recipe.steps} steps, seed {recipe.seed}.",
    )
    if fault is not None:
        say(
            console,
            f"In step {fault.at} one element of one gradient becomes {spell(fault.value)}.",
        )
    console.print()


def compare(console: Console, runs: Mapping[str, Run]) -> None:
    """Print one row per run."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("run")
    table.add_column("train loss", justify="right")
    table.add_column("val loss", justify="right")
    table.add_column("skipped", justify="right")
    table.add_column("integrity")
    table.add_column("outcome", no_wrap=True)
    for title, run in runs.items():
        table.add_row(
            title,
            f"{run.training_loss:.4f}",
            f"{run.validation_loss:.4f}",
            str(len(run.skipped)),
            "-" if run.summary is None else run.summary["integrity"],
            _outcome(run),
        )
    console.print()
    console.print(table)
    say(
        console,
        f"Train loss: mean of the last {TAIL} batches. Val loss: on text never trained on.",
        style="dim",
    )


def tell_fate(console: Console, title: str, run: Run) -> None:
    """Say that a run died, and where, if it did."""
    if run.died_at is None:
        return
    if math.isfinite(run.losses[run.died_at - 1]):
        why = "it left weights whose loss is not finite"
    else:
        why = f"its loss has not been finite since; stopped after step {len(run.losses)}"
    say(console, f"{title}: died at step {run.died_at}: {why}", style="bold red")


def tell_identity(console: Console, same: bool) -> None:
    """Say whether the guarded run and the bare one ended with the same weights."""
    if same:
        text = "The final weights with stableopt and with bare AdamW are bitwise identical."
    else:
        text = "The final weights with stableopt and with bare AdamW DIFFER."
    say(console, text, style="bold green" if same else "bold red")


def point_to_files(console: Console, runs: Mapping[str, Run], pictures: tuple[Path, ...]) -> None:
    """Say where everything is."""
    console.print()
    for run in runs.values():
        if run.telemetry is not None and run.summary_path is not None:
            say(console, f"telemetry  {run.telemetry}  {run.summary_path}")
    say(console, "picture    " + "  ".join(map(str, pictures)))


def say(console: Console, text: str, style: str = "") -> None:
    """Print a line as it is: no markup, and no breaks in the middle of a path."""
    console.print(Text(text, style=style), soft_wrap=True)


def _outcome(run: Run) -> Text:
    if run.died_at is None:
        return Text("survived", style="green")
    return Text(f"died at step {run.died_at}", style="bold red")
