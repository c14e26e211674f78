"""``stableopt demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from stableopt.commands.app import app, clean_exit
from stableopt.commands.demo.faults import Inject
from stableopt.commands.demo.options import DEFAULT_STEPS, DemoOptions, Recipe


@app.command()
def demo(
    inject: Annotated[Inject, typer.Option(help="What goes wrong, once.")] = Inject.WEIGHTS,
    at: Annotated[
        int | None,
        typer.Option(
            help="The step of the fault, from 1.", show_default="half of the steps; 70% for batch"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the data.")] = 0,
    no_guard: Annotated[
        bool, typer.Option("--no-guard", help="Show only the run without the guard.")
    ] = False,
    steps: Annotated[int, typer.Option(help="Length of each run.")] = DEFAULT_STEPS,
    out: Annotated[Path, typer.Option(help="Directory for the telemetry and the picture.")] = Path(
        "runs/demo"
    ),
) -> None:
    """Train a small GPT, inject a fault, and watch it survive.

    The same training is repeated without the fault, and with the fault but
    without the guard. With --inject none it is repeated with bare AdamW
    instead, and the final weights must be bitwise identical.
    """
    with clean_exit("the telemetry is complete up to here"):
        options = DemoOptions(
            recipe=Recipe(steps=steps, seed=seed), out=out, inject=inject, at=at, guard=not no_guard
        )
        from stableopt.commands.demo.scenario import run_demo

        code = run_demo(options, Console(highlight=False))
    raise typer.Exit(code)
