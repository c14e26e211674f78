"""``stableopt audit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from stableopt.commands.app import app, clean_exit
from stableopt.commands.audit.directory import AUDITS


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
    out: Annotated[
        Path | None,
        typer.Option(
            help="Directory for audit.json and audit.png.",
            show_default=f"{AUDITS}/NAME, after the checkpoint",
        ),
    ] = None,
) -> None:
    """Measure the spectrum of every weight in a checkpoint, and say which are in danger.

    Nothing in the file is executed. The exit code is 1 if a weight is in danger,
    and 2 if the file cannot be used.
    """
    with clean_exit("the audit is not complete"):
        from stableopt.commands.audit.run import run_audit

        code = run_audit(
            checkpoint,
            Console(highlight=False),
            out=out,
            exact=exact,
            match=match,
            published=published,
            as_json=as_json,
        )
    raise typer.Exit(code)
