"""Hold every sensor against exact values and the published formulas: error, time, verdict.

Run as ``python -m benchmarks.sensors``; see ``--help``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.command import Benchmark
from benchmarks.common.runner import track
from benchmarks.sensors.matrices import KINDS, QUICK_RUNS, RUNS, Run, make_matrix, train
from benchmarks.sensors.report import render
from benchmarks.sensors.rows import SINGULAR, exact_spectrum, measure, read, rows_needed
from benchmarks.sensors.targets import targets
from benchmarks.sensors.track import Follower, simulate, spike
from stableopt.functional import (
    assr_condition_number,
    assr_fiedler,
    gaussian_condition_number,
    kappa_tilde,
    square_condition_tail,
)
from stableopt.sensors import SampledSpectrum

SIZES = (256, 512, 1024, 2048, 4096)
QUICK_SIZES = (64,)
REPEATS = {256: 7, 512: 7, 1024: 5, 2048: 1, 4096: 1}
"""Of the decompositions, by the smaller dimension; fewer where one takes seconds."""

VISITS = {256: 160, 512: 160, 1024: 80, 2048: 24, 4096: 3}
DRAWS = {256: 20, 512: 20, 1024: 10, 2048: 3}
WIDE = 4
"""The rectangle has this many times as many rows as columns, 256 of them."""


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sizes",
        type=_size,
        nargs="+",
        metavar="N",
        help=f"of the square matrices (default: {' '.join(map(str, SIZES))})",
    )


def _size(text: str) -> int:
    value = int(text)
    if value < 32:
        raise argparse.ArgumentTypeError(f"{text} must be at least 32")
    return value


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    seed, quick = options.seed, options.quick
    sizes: Sequence[int] = options.sizes or (QUICK_SIZES if quick else SIZES)
    runs: list[dict[str, Any]] = []
    trained: dict[tuple[int, int], tuple[str, Tensor]] = {}
    for run in track(QUICK_RUNS if quick else RUNS, "training"):
        runs.append(_follow(run, seed, trained))
    shapes = [(size, size) for size in sizes]
    base = 64 if quick else 256
    if base in sizes:
        shapes.insert(1, (WIDE * base, base))
    cells = [(kind, *shape) for shape in shapes for kind in KINDS]
    rows = []
    for kind, m, n in track(cells, "matrices"):
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
        for size in track(sizes, "simulated training")
    ]
    spikes = [
        spike(size, 3 if quick else DRAWS.get(size, 3), seed)
        for size in track([s for s in sizes if s < 4096], "spikes")
    ]
    found = {
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
    return {**found, "targets": targets(found)}


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


main = Benchmark(
    name="sensors",
    about=__doc__,
    measure=_measure,
    render=render,
    options=_options,
    is_complete=lambda options: tuple(options.sizes or SIZES) == SIZES,
    quick="64 only, a tiny model: seconds",
    seed="of matrices and runs",
    may_be_nan=True,
)

if __name__ == "__main__":
    sys.exit(main())
