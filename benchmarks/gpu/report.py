"""What was measured on a GPU, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common.report import facts, grid, heading


def render(result: Mapping[str, Any]) -> str:
    """Return the Markdown of a result, what ``gpu.json`` holds."""
    lines = [
        heading(f"On {result['device']}", "gpu"),
        f"A GPT of {result['parameters'] / 1e6:.0f}M parameters, {result['tokens']:,} tokens "
        f"a step, AdamW, {result['steps']} steps (one whole interval of snapshots), the faster of "
        "two rounds. Every way is compared with the bare one above it.",
        "",
        facts(result, f"{result['seconds']:.0f} s"),
        *_table(result["ways"]),
    ]
    if (largest := result["largest"]) is not None:
        lines += [
            "",
            f"{largest['parameters'] / 1e6:,.0f}M parameters, {largest['tokens']:,} tokens a step, "
            f"{largest['steps']} steps:",
            "",
            *_table(largest["ways"]),
        ]
    overlap = result["overlap"]
    if overlap is not None and overlap["hidden"] is not None:
        lines += [
            "",
            f"Beside the main stream: {overlap['beside_ms']:.2f} ms in 20 steps, "
            f"{overlap['hidden']:.0%} of it while the main stream was at work.",
        ]
    if result["tests"] is not None:
        lines += ["", f"Tests: {result['tests']['summary']}"]
        lines += [f"- {line}" for line in result["tests"]["failed"]]
    return "\n".join([*lines, ""])


def _table(ways: Sequence[Mapping[str, Any]]) -> list[str]:
    head = ("", "step", "added", "update", "waits of the host", "peak memory")
    bare, rows = ways[0], []
    for way in ways:
        if way["way"].startswith("bare"):
            bare = way
        added = way["step_seconds"] / bare["step_seconds"] - 1
        syncs, peak = way["syncs_per_step"], way["peak_bytes"]
        rows.append(
            [
                way["way"],
                f"{way['step_seconds'] * 1e3:.2f} ms",
                "-" if way is bare else f"{added:+.2%}",
                f"{way['update_seconds'] * 1e3:.2f} ms",
                "-" if syncs is None else f"{syncs:g}",
                "-" if peak is None else f"{peak / 2**30:.2f} GiB",
            ]
        )
    return grid(head, rows)
