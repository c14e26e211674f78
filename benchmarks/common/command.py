"""The command of a benchmark: options, measurement, result files."""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.common.environment import ROOT, describe_environment
from benchmarks.common.threads import silent, torch_threads

Result = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark that is called with the arguments of its command line.

    Attributes:
        name: Of its package.
        about: What ``--help`` says.
        measure: Returns the result: what it measured with these options.
        render: Returns the result as Markdown.
        results: Stem of the result files; ``None`` for the name.
        is_table: Whether the Markdown is written to a file as well.
        draw: Draws the picture of a result into an SVG file.
        options: Adds the options that no other benchmark has.
        is_complete: Whether these options are those of the complete run, which may be quoted.
        quick: Help of ``--quick``; ``None`` for no such option.
        seed: Help of ``--seed``; ``None`` for no such option.
        seeds: Default of ``--seeds``, of which ``--quick`` has the first; empty for no such option.
        jobs: Default of ``--jobs``; ``None`` for no such option.
        threads: Of torch, without an option ``--threads``; ``None`` for as many as there are.
        logged: Least level of what stableopt may log meanwhile.
        may_be_nan: Whether the result may hold numbers that are not finite.
        is_good: Whether the exit status of a result is 0, and not 1.
    """

    name: str
    about: str | None
    measure: Callable[[argparse.Namespace], Result]
    render: Callable[[Result], str]
    results: str | None = None
    is_table: bool = True
    draw: Callable[[Result, Path], None] | None = None
    options: Callable[[argparse.ArgumentParser], object] = lambda parser: None
    is_complete: Callable[[argparse.Namespace], bool] = lambda options: True
    quick: str | None = None
    seed: str | None = None
    seeds: Sequence[int] = ()
    jobs: int | None = None
    threads: int | None = 1
    logged: int = logging.CRITICAL
    may_be_nan: bool = False
    is_good: Callable[[Result], bool] = lambda result: True

    def __call__(self, arguments: Sequence[str] | None = None) -> int:
        """Measure, write the result files, and print the Markdown.

        Args:
            arguments: The command line; ``None`` for that of the process.

        Returns:
            The exit status.
        """
        arguments = sys.argv[1:] if arguments is None else list(arguments)
        options = self.parse(arguments)
        begun = perf_counter()
        with torch_threads(getattr(options, "threads", self.threads)), silent(self.logged):
            result = {
                "command": shlex.join(["python", "-m", f"benchmarks.{self.name}", *arguments]),
                **{key: vars(options)[key] for key in ("seed", "seeds") if key in options},
                "complete": self.whole(options),
                # Before anything runs: files may be edited meanwhile.
                "environment": describe_environment(),
            }
            try:
                result |= self.measure(options)
            except argparse.ArgumentError as error:
                self._parser().error(str(error))
        result.setdefault("seconds", round(perf_counter() - begun, 1))
        text = self.render(result)
        self._write(options.output or results_directory(complete=result["complete"]), result, text)
        print(text)
        return 0 if self.is_good(result) else 1

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Return the options of a command line."""
        options = self._parser().parse_args(arguments)
        if self.seeds and options.seeds is None:
            options.seeds = list(self.seeds[:1] if self.quick and options.quick else self.seeds)
        return options

    def whole(self, options: argparse.Namespace) -> bool:
        """Return whether this is the complete run: not quick, on all seeds, nothing left out."""
        quick = self.quick is not None and options.quick
        few = self.seeds and len(set(options.seeds)) < len(self.seeds)
        return not quick and not few and self.is_complete(options)

    def _parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(
            prog=f"python -m benchmarks.{self.name}", description=self.about
        )
        self.options(parser)
        if self.quick is not None:
            parser.add_argument("--quick", action="store_true", help=self.quick)
        if self.seed is not None:
            parser.add_argument("--seed", type=int, default=0, help=f"{self.seed} (default: 0)")
        if self.seeds:
            default = " ".join(map(str, self.seeds))
            parser.add_argument("--seeds", type=int, nargs="+", help=f"default: {default}")
        if self.jobs is not None:
            parser.add_argument(
                "--jobs",
                type=int,
                default=self.jobs,
                help="processes; 0 for this one alone (default: %(default)s)",
            )
        parser.add_argument(
            "--output",
            type=Path,
            metavar="DIR",
            help="where to write (default: benchmarks/results for the complete run, else "
            "runs/benchmarks)",
        )
        return parser

    def _write(self, directory: Path, result: Result, text: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        stem = self.results or self.name
        content = _json(result, allow_nan=self.may_be_nan)
        (directory / f"{stem}.json").write_text(content, encoding="utf-8")
        if self.is_table:
            (directory / f"{stem}.md").write_text(text, encoding="utf-8")
        if self.draw is not None:
            self.draw(result, directory / f"{stem}.svg")


def _json(result: Result, *, allow_nan: bool) -> str:
    """Return a result as JSON: a list of records has one line for each, however long."""
    plain = {"allow_nan": allow_nan, "ensure_ascii": False}
    records = result.get("records")
    if not isinstance(records, list):
        return json.dumps(result, indent=1, **plain) + "\n"
    rest = {key: value for key, value in result.items() if key != "records"}
    head = json.dumps({**rest, "records": []}, indent=1, **plain).removesuffix("[]\n}")
    return head + "[\n" + ",\n".join(json.dumps(r, **plain) for r in records) + "\n]\n}\n"


def results_directory(*, complete: bool) -> Path:
    """Return where results go: what is complete may be quoted, and is kept with the code."""
    return ROOT / ("benchmarks/results" if complete else "runs/benchmarks")


def names_of(kind: str, known: Iterable[str]) -> Callable[[str], list[str]]:
    """Return what parses names that are separated by commas.

    Args:
        kind: What they are names of, for the message.
        known: All of them.
    """

    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",")]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(
                    f"no {kind} is called {name!r}: give some of {', '.join(known)}"
                )
        return names

    return parse
