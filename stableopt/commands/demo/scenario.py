"""Which runs the demo makes, and what they must show."""

from __future__ import annotations

from rich.console import Console

from stableopt.commands.demo import report
from stableopt.commands.demo.corpus import Corpus, load_corpus
from stableopt.commands.demo.curves import draw_curves
from stableopt.commands.demo.faults import Fault
from stableopt.commands.demo.live import Live, log_to
from stableopt.commands.demo.model import GPT
from stableopt.commands.demo.options import DemoOptions
from stableopt.commands.demo.outcome import judge_outcome
from stableopt.commands.demo.train import Run, identical, train, train_bare
from stableopt.commands.report.write import write_report
from stableopt.commands.terminal import claim_directory, say

GUARDED = "guarded"
UNGUARDED = "no guard"
CLEAN = "no fault"
BARE = "bare AdamW"

SUMMARY = "summary.json"
"""The file in ``out`` with the outcome of the run that was asked for."""


def run_demo(options: DemoOptions, console: Console) -> int:
    """Make the runs, compare them and draw them.

    Args:
        options: What was asked for.
        console: Where to print.

    Returns:
        The exit code: 0 if the requested run ended with no fault in it (or, where none was
        injected, equals bare AdamW), else 1.

    Raises:
        ConfigError: ``out`` cannot be written, or there is no text to train on.
    """
    claim_directory(options.out)
    corpus = load_corpus()
    report.announce(console, options, corpus, GPT(options.recipe.model))
    with log_to(console):
        runs = _play(options, corpus, console)
    report.compare(console, runs)
    pictures = draw_curves(runs, options.fault, options.out)
    summary = None if options.fault is None else options.out / SUMMARY
    report.point_to_files(console, runs, pictures, summary)
    good = _conclude(options, console, runs)
    requested = next(iter(runs.values()))
    if requested.telemetry is not None:
        page = write_report(requested.telemetry).path
        say(console, f"report     {page}  (open it in a browser)")
    return 0 if good else 1


def _conclude(options: DemoOptions, console: Console, runs: dict[str, Run]) -> bool:
    """Print how it ended; return whether it ended well."""
    requested = next(iter(runs.values()))
    if options.fault is None:
        same = identical(requested, runs[BARE])
        are = "are bitwise identical" if same else "DIFFER"
        style = "bold green" if same else "bold red"
        say(console, f"The final weights with stableopt and with bare AdamW {are}.", style)
        return same
    outcome = judge_outcome(options.fault, requested, runs, runs.get(CLEAN))
    outcome.write(options.out / SUMMARY)
    report.print_outcome(console, outcome)
    return outcome.good


def _play(options: DemoOptions, corpus: Corpus, console: Console) -> dict[str, Run]:
    """Return the runs by title, the requested one first."""
    recipe, fault = options.recipe, options.fault

    def wrapped(title: str, fault: Fault | None = None, guard: bool = True) -> Run:
        out = options.out / title.replace(" ", "-")
        with Live(console, title, recipe.steps) as live:
            run = train(corpus, recipe, live, out=out, fault=fault, guard=guard)
        report.print_fate(console, title, run)
        return run

    if fault is None:
        runs = {GUARDED: wrapped(GUARDED)}
        with Live(console, BARE, recipe.steps) as live:
            runs[BARE] = train_bare(corpus, recipe, live)
        return runs
    runs = {GUARDED: wrapped(GUARDED, fault), CLEAN: wrapped(CLEAN)} if options.guard else {}
    return {**runs, UNGUARDED: wrapped(UNGUARDED, fault, guard=False)}
