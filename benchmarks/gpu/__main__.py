"""What the wrapper does to training on a GPU: tests, synchronisations, time, memory, overlap.

Run as ``python -m benchmarks.gpu``; needs torch, einops and pytest, and installs nothing. With
``--device cpu --tiny`` the same code runs where there is no GPU, in a minute or two, and says so.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from time import perf_counter
from typing import Any

import torch

from benchmarks.common.command import Benchmark
from benchmarks.common.environment import ROOT
from benchmarks.gpu.report import render
from benchmarks.gpu.ways import WAYS, Loop, synchronize
from stableopt.commands.demo.model import GPT, ModelOptions

TESTS = (
    "tests/contract/test_devices.py",
    "tests/snapshots/test_cuda.py",
    "tests/sensors/test_lane.py",
)
"""What has a part that only a GPU can run."""

LARGE = ModelOptions(context=1024, width=768, depth=17, heads=12)
"""121 million parameters."""

LARGEST = ModelOptions(context=1024, width=2048, depth=22, heads=16)
"""1.1 billion parameters: with AdamW and three snapshots some 60 GB."""

TINY = ModelOptions(context=32, width=32, depth=2, heads=2)


OF_THE_LARGEST = (
    "bare, fused",
    "guard and sensors, fused",
    "guard and sensors, fused, sync=lagged",
)
"""Ways that the largest model is trained in."""

WARM = 12
"""Steps before anything is timed: compilers and allocators have done their work by then."""


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="a model that any machine trains")
    parser.add_argument("--no-tests", action="store_true", help="measure alone")


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    if options.device == "cuda" and not torch.cuda.is_available():
        message = "there is no CUDA device: try --device cpu --tiny"
        raise argparse.ArgumentError(None, message)
    device = torch.device(options.device)
    shape, batch = (TINY, 2) if options.tiny else (LARGE, 8)
    steps = 6 if options.tiny else 100
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "parameters": sum(p.numel() for p in GPT(shape).parameters()),
            "tokens": batch * shape.context,
            "steps": steps,
            "tests": None if options.no_tests else run_tests(),
            "ways": [measure(way, shape, batch, device, steps) for way in WAYS],
            "largest": measure_largest(device, tiny=options.tiny),
            "overlap": overlap(shape, batch, device),
        }


def _is_good(result: dict[str, Any]) -> bool:
    passed = result["tests"] is None or result["tests"]["status"] == 0
    ways = [*result["ways"], *(result["largest"] or {"ways": []})["ways"]]
    return passed and not any(way["interventions"] for way in ways)


def run_tests() -> dict[str, Any]:
    """Run the tests that a GPU has a part in; nothing but pytest is needed for them."""
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider"]
    command += ["-o", "addopts=", "-o", "filterwarnings=default", *TESTS]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = run.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"status": run.returncode, "summary": lines[-1] if lines else "", "failed": failed}


def measure(
    way: str, shape: ModelOptions, batch: int, device: torch.device, steps: int
) -> dict[str, Any]:
    """Train in one way, and return what it took.

    Args:
        way: A key of :data:`WAYS`.
        shape: Of the model.
        batch: Sequences in a batch.
        device: Where.
        steps: That are timed; as many make one interval of snapshots.
    """
    loop = Loop(way, shape, batch, device)
    loop.train(WARM)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rounds = [loop.train(steps) / steps for _ in range(2)]
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    updates = []
    for _ in range(max(3, steps // 10)):
        loop.forward_backward()
        synchronize(device)
        begun = perf_counter()
        loop.step()
        synchronize(device)
        updates.append(perf_counter() - begun)
    found = {
        "way": way,
        "step_seconds": min(rounds),
        "update_seconds": median(updates),
        "peak_bytes": peak,
        "syncs_per_step": synchronizations(loop) if device.type == "cuda" else None,
        "interventions": loop.interventions,
    }
    del loop
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def measure_largest(device: torch.device, *, tiny: bool) -> dict[str, Any] | None:
    """Train the largest model that the device has room for, in a few ways; ``None`` if it has not.

    Args:
        device: Where.
        tiny: Whether to do with the tiny model, and on any device.
    """
    shape, batch, steps = (TINY, 2, 3) if tiny else (LARGEST, 4, 30)
    needed = 70 * 2**30
    if not tiny and torch.cuda.get_device_properties(device).total_memory < needed:
        return None
    return {
        "parameters": sum(p.numel() for p in GPT(shape).parameters()),
        "tokens": batch * shape.context,
        "steps": steps,
        "ways": [measure(way, shape, batch, device, steps) for way in OF_THE_LARGEST],
    }


def synchronizations(loop: Loop, steps: int = 5) -> float:
    """Return how often the host waits for the device in a step, the model's part left out."""
    count = 0
    for _ in range(steps):
        loop.forward_backward()
        with _synchronizations_told() as told:
            loop.step()
        count += sum("synchroniz" in str(warning.message) for warning in told)
    return count / steps


@contextmanager
def _synchronizations_told() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield told
        finally:
            torch.cuda.set_sync_debug_mode("default")


def overlap(shape: ModelOptions, batch: int, device: torch.device) -> dict[str, Any] | None:
    """Return how much of what runs beside the main stream does so while the main stream works."""
    if device.type != "cuda":
        return None
    loop = Loop("guard and sensors, fused", shape, batch, device)
    loop.train(100)
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as trace:
        loop.train(20)
    streams: dict[int, list[tuple[int, int]]] = {}
    for event in trace.profiler.kineto_results.events():  # type: ignore[union-attr]
        if str(event.device_type()).endswith("CUDA") and event.duration_ns() > 0:
            begun = event.start_ns()
            span = (begun, begun + event.duration_ns())
            streams.setdefault(event.device_resource_id(), []).append(span)
    if not streams:
        return None
    busy = {stream: sum(b - a for a, b in spans) for stream, spans in streams.items()}
    main_stream = max(busy, key=lambda stream: busy[stream])
    beside = [s for stream, spans in streams.items() if stream != main_stream for s in spans]
    total = sum(b - a for a, b in beside)
    hidden = common(streams[main_stream], beside)
    share = hidden / total if total else math.nan
    return {
        "main_ms": busy[main_stream] / 1e6,
        "beside_ms": total / 1e6,
        "hidden": None if math.isnan(share) else share,
    }


def common(one: Sequence[tuple[int, int]], other: Sequence[tuple[int, int]]) -> int:
    """Return for how long intervals of both kinds run at the same time.

    Args:
        one: Begin and end of intervals that do not overlap each other.
        other: The same, of the other kind; these may.
    """
    total, waiting = 0, sorted(one)
    for begin, end in sorted(other):
        for a, b in waiting:
            if a >= end:
                break
            total += max(0, min(b, end) - max(a, begin))
    return total


main = Benchmark(
    name="gpu",
    about=__doc__,
    measure=_measure,
    render=render,
    options=_options,
    is_complete=lambda options: options.device == "cuda" and not options.tiny,
    threads=None,
    is_good=_is_good,
)

if __name__ == "__main__":
    sys.exit(main())
