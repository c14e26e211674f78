"""Hold every sensor against exact values and the published formulas: error, time, verdict.

Run as ``python -m benchmarks.sensors``; see ``--help``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.command import results_directory, torch_threads
from benchmarks.environment import describe_environment
from benchmarks.sensors_matrices import KINDS, QUICK_RUNS, RUNS, make_matrix, train
from benchmarks.sensors_report import render
from benchmarks.sensors_rows import SINGULAR, exact_spectrum, measure, read, rows_needed
from benchmarks.sensors_targets import targets
from benchmarks.sensors_track import Follower, simulate, spike
from stableopt.functional import (
    assr_condition_number,
    assr_fiedler,
    gaussian_condition_number,
    kappa_tilde,
    square_condition_tail,
)
from stableopt.sensors import SampledSpectrum

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor

    from benchmarks.sensors_matrices import Run

SIZES = (256, 512, 1024, 2048, 4096)
QUICK_SIZES = (64,)
REPEATS = {256: 7, 512: 7, 1024: 5, 2048: 1, 4096: 1}
"""Of the decompositions, by the smaller dimension; fewer where one takes seconds."""

VISITS = {256: 160, 512: 160, 1024: 80, 2048: 24, 4096: 3}
DRAWS = {256: 20, 512: 20, 1024: 10, 2048: 3}
WIDE = 4
"""The rectangle has this many times as many rows as columns, 256 of them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write ``sensors.json`` and ``sensors.md``, and print the latter's summary.

    Args:
        arguments: The command line; ``None`` for that of the process.

    Returns:
        The exit status: 0.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments)
    sizes = options.sizes or (QUICK_SIZES if options.quick else SIZES)
    complete = not options.quick and tuple(sizes) == SIZES
    begun = perf_counter()
    with torch_threads():
        result = {
            "command": shlex.join(["python", "-m", "benchmarks.sensors", *arguments]),
            "seed": options.seed,
            "complete": complete,
            "environment": describe_environment(),
            **_measure(sizes, options.seed, quick=options.quick),
        }
    result["seconds"] = perf_counter() - begun
    result["targets"] = targets(result)
    default = results_directory(complete=complete)
    directory = options.out or default
    directory.mkdir(parents=True, exist_ok=True)
    text = render(result, "sensors.json")
    (directory / "sensors.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (directory / "sensors.md").write_text(text, encoding="utf-8")
    print(text.partition("\n## Every reading")[0])
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sensors", description=__doc__)
    parser.add_argument(
        "--sizes",
        type=_size,
        nargs="+",
        metavar="N",
        help=f"of the square matrices (default: {' '.join(map(str, SIZES))})",
    )
    parser.add_argument("--quick", action="store_true", help="64 only, a tiny model: seconds")
    parser.add_argument("--seed", type=int, default=0, help="of matrices and runs (default: 0)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where to write (default: benchmarks/results for the complete run, else "
        "runs/benchmarks)",
    )
    return parser


def _size(text: str) -> int:
    value = int(text)
    if value < 32:
        raise argparse.ArgumentTypeError(f"{text} must be at least 32")
    return value


def _measure(sizes: Sequence[int], seed: int, *, quick: bool) -> dict[str, Any]:
    runs: list[dict[str, Any]] = []
    trained: dict[tuple[int, int], tuple[str, Tensor]] = {}
    for run in _progress(QUICK_RUNS if quick else RUNS, "training", lambda run: run.name):
        runs.append(_follow(run, seed, trained))
    shapes = [(size, size) for size in sizes]
    base = 64 if quick else 256
    if base in sizes:
        shapes.insert(1, (WIDE * base, base))
    cells = [(kind, *shape) for shape in shapes for kind in KINDS]
    rows = []
    for kind, m, n in _progress(cells, "matrices", lambda cell: f"{cell[0]} {cell[1]} x {cell[2]}"):
        source = None
        if kind == "trained":
            if (m, n) not in trained:
                continue  # what has not been trained is not faked
            source, weight = trained[m, n]
        else:
            weight = make_matrix(kind, m, n, seed)
        repeats = 2 if quick else REPEATS.get(n, 3)
        row = measure(weight, repeats=repeats)
        sick = KINDS[kind].sick
        for who in ("ours", "assr"):
            row[who]["right"] = None if sick is None else row[who]["complains"] == sick
        row["rows_needed"] = rows_needed(weight) if sick else None
        rows.append({"kind": kind, "sick": sick, "source": source, "repeats": repeats, **row})
    simulated = [
        simulate(size, 16 if quick else VISITS.get(size, 24), seed)
        for size in _progress(sizes, "simulated training", str)
    ]
    spikes = [
        spike(size, 3 if quick else DRAWS.get(size, 3), seed)
        for size in _progress([s for s in sizes if s < 4096], "spikes", str)
    ]
    return {
        "sizes": list(sizes),
        "matrices": rows,
        "untrained": [list(shape) for shape in shapes if shape not in trained],
        "runs": runs,
        "simulated": simulated,
        "spikes": spikes,
        "ends": ends(base, seed),
        "gaussian_squares": [
            {
                "size": size,
                "typical": gaussian_condition_number(size, size),
                "above_1000": square_condition_tail(size, 1000.0),
            }
            for size in sizes
        ],
    }


def _follow(
    run: Run, seed: int, trained: dict[tuple[int, int], tuple[str, Tensor]]
) -> dict[str, Any]:
    follower = Follower()
    begun = perf_counter()
    model, loss = train(run, seed, follower.look)
    for name, weight in model.named_parameters():
        if name in run.kept:
            shape = (weight.shape[0], weight.shape[1])
            trained[shape] = (f"{run.name}, {name}", weight.detach().clone())
    return {
        "name": run.name,
        "steps": run.steps,
        "loss": loss,
        "seconds": perf_counter() - begun,
        **follower.result(),
    }


def ends(size: int, seed: int) -> list[dict[str, Any]]:
    """Return what everybody reads at the ends of the scale, where the truth is known.

    Args:
        size: Rows and columns.
        seed: Of what is drawn.
    """
    weight = make_matrix("gaussian", size, size, seed)
    damaged = weight.clone()
    damaged[0, 0] = float("nan")
    cases = {
        "orthogonal rows (κ = 1)": torch.linalg.qr(weight).Q,
        "all rows identical": weight[:1].expand(size, size).contiguous(),
        "Gaussian": weight,
        "the same, x 0.01": weight * 0.01,
        "the same, x 100": weight * 100,
        "Gaussian with a NaN": damaged,
        "zero": torch.zeros(size, size),
    }
    found = []
    for title, matrix in cases.items():
        sampled = read(SampledSpectrum(), matrix)[0].values
        found.append(
            {
                "title": title,
                "condition": _condition(matrix),
                "assr_fiedler": assr_fiedler(matrix),
                "assr_condition_number": assr_condition_number(matrix),
                "kappa_tilde": float(kappa_tilde(matrix)),
                **{m: sampled[m] for m in ("relative_rank", "redundancy", "fiedler")},
            }
        )
    return found


def _condition(matrix: Tensor) -> float:
    if not bool(torch.isfinite(matrix).all()) or not bool(matrix.any()):
        return float("nan")
    spectrum = exact_spectrum(matrix)
    value = float(spectrum[0] / spectrum[-1])
    return value if value < SINGULAR else float("inf")


def _progress(items: Iterable[Any], title: str, label: Any) -> Iterator[Any]:
    """Yield ``items`` with a bar on stderr: on one line if it is a terminal."""
    items = list(items)
    end = "\r" if sys.stderr.isatty() else "\n"
    for number, item in enumerate(items):
        done = "#" * round(20 * number / len(items))
        line = f"{title} [{done:<20}] {number + 1}/{len(items)} {label(item)}"
        print(f"{line:<79}", end=end, file=sys.stderr, flush=True)
        yield item
    if end == "\r":
        print(file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
