"""What snapshots and rollbacks cost, as Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.common.report import grid


def render(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    lines = [
        "# What snapshots and rollbacks cost",
        "",
        f"`{result['command']}`, one thread, torch {result['environment']['torch']}, "
        f"commit {result['environment']['commit']}. Medians; a copy",
        "is one `_foreach_copy_` of parameters and both moments. A snapshot also looks at every",
        "value before it copies it, a rollback at every value of the copy, and its time includes",
        "the whole call of `step()`.",
        "",
        *grid(
            ("model, tokens", "copy", "snapshot", "rollback", "snapshots, of a training step"),
            (
                (
                    cell["name"],
                    f"{cell['seconds']['copy'] * 1e3:.2f} ms",
                    f"{cell['snapshot_in_copies']:.2f} copies",
                    f"{cell['rollback_in_copies']:.2f} copies",
                    f"{cell['snapshots_of_a_step']:.3%} (every {result['every']} steps)",
                )
                for cell in result["cells"]
            ),
        ),
    ]
    for cell in result["cells"]:
        whole = cell["whole"]
        if whole:
            lines += [
                "",
                f"{cell['name']}, {whole['intervals']} whole intervals with "
                f"{whole['snapshots_taken']} snapshots, bare and guarded in turn: wall time "
                f"x{whole['ratio']:.4f}; 99th percentile of a step "
                f"{whole['p99_step']['guarded'] * 1e3:.1f} ms guarded, "
                f"{whole['p99_step']['bare'] * 1e3:.1f} ms bare (medians "
                f"{whole['median_step']['guarded'] * 1e3:.1f} and "
                f"{whole['median_step']['bare'] * 1e3:.1f} ms).",
            ]
    return "\n".join(lines) + "\n"


def digest(result: dict[str, Any]) -> str:
    """Return what snapshots and rollbacks cost, as sentences."""
    sentences = []
    for cell in result["cells"]:
        sentences.append(
            f"{cell['name'].replace('-', ' at ')} tokens: a snapshot takes as long as "
            f"{cell['snapshot_in_copies']:.1f} plain copies of parameters and moments, a rollback "
            f"as {cell['rollback_in_copies']:.1f}; one snapshot in {result['every']} steps is "
            f"{cell['snapshots_of_a_step']:.3%} of training."
        )
        if cell["whole"]:
            sentences[-1] += (
                f" Wall time of {cell['whole']['intervals']} whole intervals, guarded by bare: "
                f"x{cell['whole']['ratio']:.3f}."
            )
    return "\n".join(f"- {sentence}" for sentence in sentences)
