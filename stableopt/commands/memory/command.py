"""``stableopt memory``."""

from __future__ import annotations

from typing import Annotated

import typer

from stableopt.commands.app import app, clean_exit
from stableopt.commands.memory.estimate import STATE, WIDTHS, estimate_memory, parse_count
from stableopt.runtime.words import size
from stableopt.telemetry.encode import encode


@app.command()
def memory(
    params: Annotated[str, typer.Option(help="Parameters of the model: 7e9, 7B, 350M.")],
    trainable: Annotated[
        str | None,
        typer.Option(
            help="Parameters that the optimizer is given, e.g. those of LoRA adapters.",
            show_default="all of them",
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help=f"Of all of them: {', '.join(WIDTHS)}.")] = "float32",
    optimizer: Annotated[str, typer.Option(help=f"One of {', '.join(STATE)}.")] = "adamw",
    slots: Annotated[int, typer.Option(help="Guard(slots=...): 0, or at least 2.")] = 3,
    buffers: Annotated[str, typer.Option(help="Numbers in the buffers of the model.")] = "0",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print bytes as JSON and nothing else.")
    ] = False,
) -> None:
    """Estimate what a training takes in memory, with the snapshots of the guard.

    Weights, gradients, optimizer state and snapshots; activations are not included. What a run
    really takes is in opt.summary()["snapshots"].
    """
    with clean_exit("nothing was estimated"):
        found = estimate_memory(
            parse_count("params", params),
            trainable=None if trainable is None else parse_count("trainable", trainable),
            dtype=dtype,
            optimizer=optimizer,
            slots=slots,
            buffers=parse_count("buffers", buffers),
        )
        if as_json:
            typer.echo(encode(found.to_dict(), indent=2))
            return
        rows = [
            ("weights", found.weights),
            ("gradients", found.gradients),
            ("optimizer state", found.state),
            *([("buffers", found.buffers)] if found.buffers else []),
            ("without stableopt", found.bare),
            (f"{slots} snapshots of {size(found.slot)}", found.snapshots),
            *([("a copy of the buffers", found.buffers)] if found.buffers else []),
            ("with stableopt", found.total),
        ]
        unit, name = (1e9, "GB") if found.total >= 1e9 else (1e6, "MB")
        for title, amount in rows:
            typer.echo(f"{title:28s}{amount / unit:>12,.3f} {name}")
