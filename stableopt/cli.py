"""The command line. It parses and exits; what it does is in the rooms it opens."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from stableopt.audit.options import DEFAULT_OUT, AuditOptions
from stableopt.demo.faults import Inject
from stableopt.demo.options import DEFAULT_STEPS, DemoOptions, Recipe
from stableopt.errors import MissingExtraError, StableOptError
from stableopt.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

FAILED = 2
INTERRUPTED = 130

app = typer.Typer(
    name="stableopt",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"stableopt {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Keep a training run alive, and change nothing while it is healthy."""


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
        bool, typer.Option("--no-guard", help="Show only the run that nobody guards.")
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
    with _clean_exit():
        options = DemoOptions(
            recipe=Recipe(steps=steps, seed=seed), out=out, inject=inject, at=at, guard=not no_guard
        )
        code = _run_demo(options)
    raise typer.Exit(code)


def _run_demo(options: DemoOptions) -> int:
    try:
        from stableopt.demo.scenario import run_demo
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise MissingExtraError("the picture of stableopt demo", "report") from error
    return run_demo(options, Console(highlight=False))


@app.command()
def audit(
    checkpoint: Annotated[
        Path, typer.Argument(help="A .pt, .pth, .bin, .ckpt or .safetensors file.")
    ],
    exact: Annotated[
        bool,
        typer.Option(
            help="Decompose every matrix, for effective rank and condition number: on two cores "
            "less than 1 s for 1024 x 1024, about 3 s for 2048 x 2048, 20 s for 4096 x 4096."
        ),
    ] = True,
    match: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="Only tensors whose name fits, e.g. '*.attn.*'.",
            show_default="all of them",
        ),
    ] = None,
    published: Annotated[
        bool,
        typer.Option(
            "--published", help="Add the formulas as published by ASSR/Gradience, to compare."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the JSON and nothing else, instead of the table.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Directory for audit.json and audit.png.")] = (
        DEFAULT_OUT
    ),
) -> None:
    """Measure the spectrum of every weight in a checkpoint, and say which are in danger.

    Nothing in the file is executed. The exit code is 1 if a weight is in danger,
    and 2 if the file cannot be used.
    """
    with _clean_exit(interrupted="the audit is not complete"):
        options = AuditOptions(
            checkpoint=checkpoint,
            out=out,
            exact=exact,
            match=match,
            published=published,
            as_json=as_json,
        )
        code = _run_audit(options)
    raise typer.Exit(code)


def _run_audit(options: AuditOptions) -> int:
    try:
        from stableopt.audit.run import run_audit
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise MissingExtraError("the picture of stableopt audit", "report") from error
    return run_audit(options, Console(highlight=False))


@contextmanager
def _clean_exit(interrupted: str = "the telemetry is complete up to here") -> Iterator[None]:
    """Turn what the user can mend into one line, and Ctrl-C into the usual exit code."""
    try:
        yield
    except StableOptError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(FAILED) from error
    except KeyboardInterrupt:
        typer.echo(f"Interrupted: {interrupted}.", err=True)
        raise typer.Exit(INTERRUPTED) from None
