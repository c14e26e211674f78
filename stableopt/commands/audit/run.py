"""Run an audit, from the file to the exit code."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import track

from stableopt.commands.audit.checkpoint import Checkpoint, read_checkpoint
from stableopt.commands.audit.directory import directory_of
from stableopt.commands.audit.findings import Audit
from stableopt.commands.audit.measure import is_vector, is_weight, measure_weight
from stableopt.commands.audit.picture import draw_audit
from stableopt.commands.audit.show import show_table, show_verdict
from stableopt.commands.terminal import claim_directory
from stableopt.runtime.paths import usable
from stableopt.telemetry.encode import encode
from stableopt.types import Standing


def run_audit(
    path: Path,
    console: Console,
    *,
    out: Path | None = None,
    exact: bool = True,
    match: str | None = None,
    published: bool = False,
    as_json: bool = False,
) -> int:
    """Measure every weight of a checkpoint, write the files, and show the result.

    Args:
        path: The checkpoint.
        console: Of the standard output.
        out: Where ``audit.json`` and ``audit.png`` go; a directory of that checkpoint's own below
            ``runs/audit`` if ``None``.
        exact: Whether every matrix is decomposed, for effective rank and condition number.
        match: A pattern of :mod:`fnmatch`: only tensors whose name fits it.
        published: Whether the formulas of ASSR and Gradience are computed, too.
        as_json: Whether JSON is printed, and nothing else, instead of the table.

    Returns:
        1 if a weight is in danger, else 0.

    Raises:
        ConfigError: The file, the pattern or the directory cannot be used.
        MissingExtraError: A package for that kind of file is not installed.
    """
    checkpoint = read_checkpoint(path)
    if match is not None:
        checkpoint = checkpoint.matching(match)
    out = claim_directory(directory_of(path) if out is None else out)
    bar = Console(stderr=True) if as_json else console
    audit = audit_checkpoint(checkpoint, bar, exact=exact, published=published)
    text = encode(audit.to_dict(), indent=2)
    with usable("out", out, "written", "give a directory with room for audit.json and audit.png"):
        (out / "audit.json").write_text(f"{text}\n", encoding="utf-8")
        draw_audit(audit, out / "audit.png")
    if as_json:
        console.out(text, highlight=False)
    else:
        show_table(console, audit, published=published)
        show_verdict(console, audit, (out / "audit.json", out / "audit.png"))
    return int(audit.standing is Standing.DANGER)


def audit_checkpoint(
    checkpoint: Checkpoint, console: Console, *, exact: bool = True, published: bool = False
) -> Audit:
    """Measure every floating tensor of a checkpoint, with a bar on a terminal.

    Args:
        checkpoint: What was read.
        console: Where the bar is.
        exact: Whether to decompose the whole matrices.
        published: Whether to compute the formulas of ASSR and Gradience as well.

    Cost:
        That of :func:`~stableopt.commands.audit.measure.measure_weight` for each.
    """
    weights = [named for named in checkpoint.tensors if is_weight(named)]
    reports = []
    vectors = 0
    hidden = not console.is_terminal
    for named in track(weights, "measuring", console=console, transient=True, disable=hidden):
        report = measure_weight(named, exact=exact, published=published)
        if is_vector(named) and report.standing is Standing.UNJUDGED:
            vectors += 1
        else:
            reports.append(report)
    return Audit(
        path=checkpoint.path,
        exact=exact,
        reports=tuple(reports),
        vectors=vectors,
        optimizer_tensors=checkpoint.optimizer_tensors,
        integer_tensors=len(checkpoint.tensors) - len(weights),
    )
