"""Which runs the demo makes, and what they must show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stableopt.demo import report
from stableopt.demo.corpus import load_corpus
from stableopt.demo.curves import draw_curves
from stableopt.demo.live import Live, log_to
from stableopt.demo.model import GPT
from stableopt.demo.options import claim_directory
from stableopt.demo.train import identical, train, train_bare

if TYPE_CHECKING:
    from rich.console import Console

    from stableopt.demo.corpus import Corpus
    from stableopt.demo.options import DemoOptions, Fault
    from stableopt.demo.train import Run

GUARDED = "guarded"
UNGUARDED = "no guard"
CLEAN = "no fault"
BARE = "bare AdamW"


def run_demo(options: DemoOptions, console: Console) -> int:
    """Make the runs, compare them and draw them.

    Args:
        options: What was asked for.
        console: Where to print.

    Returns:
        The exit code: 0 if the requested run survived (and, without a fault, equals bare
        AdamW), else 1.

    Raises:
        ConfigError: ``out`` cannot be written, or there is no text to train on.
    """
    claim_directory(options.out)
    corpus = load_corpus()
    report.announce(console, options, corpus, GPT(options.recipe.model))
    with log_to(console):
        runs = _Stage(options, corpus, console).play()
    requested = next(iter(runs.values()))
    good = requested.died_at is None
    report.compare(console, runs)
    if BARE in runs:
        good = identical(requested, runs[BARE])
        report.tell_identity(console, good)
    report.point_to_files(console, runs, draw_curves(runs, options.fault, options.out))
    return 0 if good else 1


class _Stage:
    """Plays the runs, one after the other.

    Args:
        options: What was asked for.
        corpus: The text.
        console: Where to print.
    """

    def __init__(self, options: DemoOptions, corpus: Corpus, console: Console) -> None:
        self._options = options
        self._corpus = corpus
        self._console = console

    def play(self) -> dict[str, Run]:
        """Return the runs by title, the requested one first."""
        fault = self._options.fault
        if fault is None:
            return {GUARDED: self._wrapped(GUARDED), BARE: self._bare(BARE)}
        if not self._options.guard:
            return {UNGUARDED: self._wrapped(UNGUARDED, fault, guard=False)}
        return {
            GUARDED: self._wrapped(GUARDED, fault),
            CLEAN: self._wrapped(CLEAN),
            UNGUARDED: self._wrapped(UNGUARDED, fault, guard=False),
        }

    def _wrapped(self, title: str, fault: Fault | None = None, guard: bool = True) -> Run:
        out = self._options.out / title.replace(" ", "-")
        with self._live(title) as live:
            run = train(self._corpus, self._options.recipe, live, out=out, fault=fault, guard=guard)
        report.tell_fate(self._console, title, run)
        return run

    def _bare(self, title: str) -> Run:
        with self._live(title) as live:
            return train_bare(self._corpus, self._options.recipe, live)

    def _live(self, title: str) -> Live:
        return Live(self._console, title, self._options.recipe.steps)
