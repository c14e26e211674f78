"""``stableopt report``, ``watch`` and ``compare``."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from stableopt.commands.app import app, clean_exit
from stableopt.commands.compare.compare import compare_runs
from stableopt.commands.compare.table import show_comparison
from stableopt.commands.report.write import write_report
from stableopt.commands.watch.watch import WatchOptions, watch_run
from stableopt.recorded.files import read_runs, select_runs
from stableopt.recorded.status import say_integrity, say_interventions, say_risk, say_state
from stableopt.runtime.words import count, listed, printable
from stableopt.telemetry.encode import encode

_WHERE = "The directory that was passed as telemetry=, or a telemetry*.jsonl in it."

_NAMED = 5
"""Paths without a run that are named."""

Number = Annotated[
    int | None,
    typer.Option(
        "--run", help="Which run of the directory, from 1.", show_default="the newest one"
    ),
]


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(help=_WHERE, metavar="DIR")],
    out: Annotated[
        Path | None,
        typer.Option(help="The file to write.", show_default="report.html in the directory"),
    ] = None,
    number: Number = None,
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the state of the run as JSON and nothing else.")
    ] = False,
) -> None:
    """Write the report of a run as one HTML file.

    Loss with every intervention, gradient norms, risk, each sensor by layer and
    time, the ledger in sentences, memory, overhead and the configuration. The
    exit code is 1 if the run is compromised, has failed, was interrupted, or is in danger.
    """
    with clean_exit("no report was written"):
        written, status = write_report(directory, out, number=number)
        console = Console(highlight=False)
        if as_json:
            record = {"report": str(written), **status.to_dict()}
            console.out(encode(record, indent=2), highlight=False)
        else:
            style = "bold red" if status.bad else ""
            words = (status.integrity, say_integrity(status), say_interventions(status))
            console.print(Text(" ".join((f"{words[0]}.", *words[1:])), style=style))
            console.print(Text(f"{say_risk(status)} {say_state(status)}"))
            if status.unreadable_lines:
                lines = count(status.unreadable_lines, "line")
                console.print(Text(f"{lines} of the event file could not be read.", style="yellow"))
            console.print(Text(f"report  {printable(str(written))}"), soft_wrap=True)
        if show:
            webbrowser.open(written.resolve().as_uri())
    raise typer.Exit(status.exit_code)


@app.command()
def watch(
    directory: Annotated[Path, typer.Argument(help=_WHERE, metavar="DIR")],
    number: Number = None,
    once: Annotated[bool, typer.Option("--once", help="Show one frame and end.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --once: print the state as JSON.")
    ] = False,
    every: Annotated[float, typer.Option(help="Seconds between two looks.")] = 1.0,
    wait: Annotated[
        float | None,
        typer.Option(
            help="Seconds to wait for a run that is not there yet.",
            show_default="for ever; with --once not at all",
        ),
    ] = None,
) -> None:
    """Follow a run while it trains: loss, risk, layers, interventions.

    Ends when the run does. The exit code is 1 if the run is compromised, has
    failed, was interrupted, or is in danger, and 2 if there is none.
    """
    with clean_exit("the run itself is not touched"):
        options = WatchOptions(
            where=directory, number=number, once=once, as_json=as_json, every=every, wait=wait
        )
        code = watch_run(options, Console(highlight=False))
    raise typer.Exit(code)


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Run directories, telemetry*.jsonl files, or directories of run directories.",
            metavar="RUN...",
        ),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the JSON and nothing else, instead of the table.")
    ] = False,
) -> None:
    """Show runs beside each other, and what was configured differently.

    Of a directory it is the newest run; of one that has no run itself it is
    the newest of each directory in it. What holds no run is named and left out.
    The exit code is 1 if one of the runs is compromised, has failed, was
    interrupted, or is in danger.
    """
    with clean_exit("nothing was compared"):
        places, without = select_runs(runs)
        if without:
            names = listed([printable(str(path)) for path in without], _NAMED)
            typer.echo(f"Left out, as there is no run: {names}", err=True)
        comparison = compare_runs(read_runs(places))
        console = Console(highlight=False)
        if as_json:
            console.out(encode(comparison.to_dict(), indent=2), highlight=False)
        else:
            show_comparison(console, comparison)
    raise typer.Exit(comparison.exit_code)
