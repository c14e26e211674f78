"""The command, its version, and how every part of it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from stableopt.errors import MissingExtraError, StableOptError
from stableopt.runtime.version import __version__

FAILED = 2
INTERRUPTED = 130

app = typer.Typer(
    name="stableopt", add_completion=True, no_args_is_help=True, pretty_exceptions_enable=False
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
    """Keep a training run alive, and change nothing while it is healthy.

    Exit codes: 0 if all is well, 1 if the run or the checkpoint is not (compromised, failed,
    interrupted, or in danger), 2 if the command cannot be carried out, 130 after Ctrl-C.
    """


@contextmanager
def clean_exit(interrupted: str) -> Iterator[None]:
    """Turn errors that the user can fix into one line, and Ctrl-C into the usual exit code.

    Args:
        interrupted: What is true after Ctrl-C.
    """
    try:
        yield
    except (StableOptError, ModuleNotFoundError) as error:
        if isinstance(error, ModuleNotFoundError):
            if (error.name or "").partition(".")[0] != "matplotlib":
                raise
            error = MissingExtraError("the picture", "report")
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(FAILED) from error
    except KeyboardInterrupt:
        typer.echo(f"Interrupted: {interrupted}.", err=True)
        raise typer.Exit(INTERRUPTED) from None
