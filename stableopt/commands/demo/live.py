"""The progress of a run: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from stableopt.types import Action

_PLAIN_LINES = 10
_ROOMY = 100
"""Columns of a terminal that has room for everything."""
_COUNTED = {Action.TAKE: "taken", Action.SKIP: "skipped", Action.ROLL_BACK: "rolled back"}
_STYLES = {"skip": "yellow", "roll_back": "bold cyan", "stop": "bold red"}


class Live(Progress):
    """Show one run; a context manager.

    Args:
        console: Where.
        title: Its name.
        steps: How many there will be.
    """

    def __init__(self, console: Console, title: str, steps: int) -> None:
        super().__init__(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=console,
            disable=not console.is_terminal,
            expand=True,
        )
        self._title, self._steps = title, steps
        self._counts: Counter[Action] = Counter()
        self._task = self.add_task(title, total=steps, numbers="")

    def stepped(self, step: int, loss: float, lr: float, action: Action) -> None:
        """Show the numbers of a step."""
        self._counts[action] += 1
        counts = "  ".join(f"{word} {self._counts[done]}" for done, word in _COUNTED.items())
        narrow = self.console.is_terminal and self.console.width < _ROOMY
        numbers = f"loss {loss:<5.3f}  {'' if narrow else f'lr {lr:.1e}  '}{counts}"
        self.update(self._task, completed=step, numbers=numbers)
        due = step == self._steps or step % max(1, self._steps // _PLAIN_LINES) == 0
        if due and not self.console.is_terminal:
            self.console.print(f"{self._title:<10} {step:>4}/{self._steps}  {numbers}")

    def struck(self, strike: str) -> None:
        """Print that a fault was injected."""
        self.console.print(Text(f"injected {strike}", style="magenta"), soft_wrap=True)


@contextmanager
def log_to(console: Console) -> Iterator[None]:
    """Show the warnings of stableopt, skipped steps among them, on ``console`` alone."""
    logger = logging.getLogger("stableopt")
    handler = _ConsoleHandler(console)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


class _ConsoleHandler(logging.Handler):
    """Print records above the bar instead of through it."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        style = next((s for word, s in _STYLES.items() if f": {word}: " in message), "yellow")
        self._console.print(Text(message, style=style), soft_wrap=True)
