"""A run on a terminal: one frame, or one line."""

from __future__ import annotations

import math

from rich.console import Console, Group, RenderableType
from rich.text import Text

from stableopt.commands.report.axes import fitted, span
from stableopt.recorded.interventions import WORDS, Kind
from stableopt.recorded.offenders import top_offenders
from stableopt.recorded.run import Run
from stableopt.recorded.status import BROKEN, ENDED, Status
from stableopt.recorded.trace import Bucket, Trace
from stableopt.runtime.words import count, duration, printable, spell
from stableopt.types import Standing

_RAMP, _PLAIN_RAMP = "▁▂▃▄▅▆▇█", "_.-~=+*#"
_BROKEN = "x"
_LABEL, _NUMBER = 10, 10
_NARROW = 60
"""Columns below which only what matters is shown."""

_STYLES = {
    Kind.STOP: "bold red",
    Kind.ROLL_BACK: "bold cyan",
    Kind.SKIP: "yellow",
    Kind.TAME: "yellow",
    Kind.BACK_OFF: "yellow",
    Kind.RISK: "magenta",
}
_RISKS = {
    "stable": "green",
    "learning": "green",
    "warning": "yellow",
    "danger": "bold red",
    "instability": "bold red",
}
_INTEGRITIES = {"OK": "bold green", "COMPROMISED": "bold red"}
_SIGNS = {Standing.DANGER: ("!!", "bold red"), Standing.WARNING: ("! ", "yellow")}


def draw_frame(
    run: Run, status: Status, title: str, console: Console, *, now: float, rows: int | None = None
) -> RenderableType:
    """Return everything about a run that fits on a terminal.

    Args:
        run: What was read.
        status: Its state.
        title: Its directory.
        console: Gives the width and the letters that it can show.
        now: Seconds since the epoch.
        rows: Lines that there are; all that there is to say if not given.
    """
    width = max(20, console.width)
    head = [_title(status, title), _progress(run, status, now)]
    body = [
        *_curve("loss", run.loss, status.final_loss, status.best_loss, console),
        *_curve("grad norm", run.grad_norm, run.grad_norm.last, None, console),
        *_curve("lr", run.lr, run.lr.last, None, console),
        _risk(run),
    ]
    layers = _layers(run, 3 if width < _NARROW or (rows or 99) < 20 else 5)
    room = None if rows is None else max(3, rows - len(head) - len(body) - len(layers) - 5)
    listed = _interventions(run, room)
    lines = [*head, Text(""), *body, *layers, *listed]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
        line.no_wrap = True
    return Group(*lines)


def status_line(run: Run, status: Status) -> str:
    """Return the state of a run as one line, for output that is no terminal."""
    parts = [
        f"call {status.calls:,}",
        f"step {status.steps:,}",
        f"loss {spell(run.loss.last)}",
        f"risk {status.risk or '-'}",
        f"skips {status.skips}",
        f"tamed {status.tamed}",
        f"rollbacks {status.rollbacks}",
        status.integrity,
    ]
    return "  ".join([*parts, status.state] if status.state in ENDED else parts)


def _title(status: Status, title: str) -> Text:
    text = Text(status.integrity, style=_INTEGRITIES.get(status.integrity, "bold yellow"))
    return text.append(f"  {printable(title)}", style="default not bold")


def _progress(run: Run, status: Status, now: float) -> Text:
    state = Text(status.state, style="bold red not dim" if status.state in BROKEN else "")
    parts = [f"call {status.calls:,}", f"step {status.steps:,}"]
    if status.calls_per_second is not None and status.state == "open":
        parts.append(f"{status.calls_per_second:.3g} calls/s")
    if status.seconds:
        parts.append(duration(status.seconds))
    if run.ended is not None and status.state == "open":
        parts.append(f"last record {duration(max(0.0, now - run.ended))} ago")
    return Text(style="dim").append_text(state).append("".join(f" · {part}" for part in parts))


def _risk(run: Run) -> Text:
    if run.level is None:
        return _row("risk", "-")
    level = Text(f"{printable(run.level):<{_NUMBER - 1}} ", style=_RISKS.get(run.level, ""))
    return _row("risk", level, f"since call {run.risk[-1][0]:,}")


def _row(label: str, *values: Text | str) -> Text:
    text = Text(f"{label:<{_LABEL}}", style="dim")
    for value in values:
        text.append_text(value if isinstance(value, Text) else Text(value, style="not dim"))
    return text


def _curve(
    label: str, trace: Trace, value: float | None, best: float | None, console: Console
) -> list[Text]:
    if not trace:
        return []
    number = Text(f"{spell(value):<{_NUMBER - 1}} ", style="bold")
    if value is not None and not math.isfinite(value):
        number.stylize("red")
    beside = "" if best is None else f"  best {spell(best)}"
    room = max(0, min(60, console.width - _LABEL - len(number) - len(beside) - 1))
    ramp = _RAMP if console.encoding.lower().startswith("utf") else _PLAIN_RAMP
    return [_row(label, number, sparkline(trace, room, ramp), beside)]


def sparkline(trace: Trace, columns: int, ramp: str = _RAMP) -> Text:
    """Return a whole series in one line; ``x`` where a value is not finite.

    A column without a record shows the last one before it.

    Args:
        trace: The series.
        columns: Of the line, at most.
        ramp: Letters from the lowest to the highest.

    Example:
        >>> from stableopt.recorded.trace import Trace
        >>> trace = Trace()
        >>> for x, value in enumerate([3.0, 2.0, float("nan"), 1.0]):
        ...     trace.add(x, value)
        >>> sparkline(trace, 4).plain
        '█▅x▁'
    """
    columns = min(columns, len(trace.buckets))
    if columns < 1:
        return Text("")
    y = fitted(trace) or span(0.0, 1.0)
    x = span(trace.buckets[0].start, trace.buckets[-1].end)
    low, high = (y.at(min(end or 0.0, y.high)) for end in (trace.low, trace.high))
    cells: list[list[Bucket]] = [[] for _ in range(columns)]
    for bucket in trace.buckets:
        cells[min(columns - 1, int(columns * x.at(bucket.start)))].append(bucket)

    def letter(buckets: list[Bucket]) -> str:
        if any(bucket.undefined or bucket.infinite for bucket in buckets):
            return _BROKEN
        values = [value for bucket in buckets for value in (bucket.first, bucket.last)]
        share = (y.at(sum(values) / len(values)) - low) / (high - low) if high > low else 0.5
        return ramp[min(len(ramp) - 1, max(0, int(share * len(ramp))))]

    text, last = Text(), " "
    for buckets in cells:
        shown = letter(buckets) if buckets else last
        text.append(shown, style="bold red" if shown == _BROKEN else None)
        last = letter(buckets[-1:]) if buckets else last
    return text


def _layers(run: Run, most: int) -> list[Text]:
    found = top_offenders(run, most)
    if not found:
        return []
    lines = [Text(""), Text("layers that stand out", style="dim")]
    for offender in found:
        sign, style = _SIGNS.get(offender.standing, ("  ", ""))
        tally = offender.tally
        counts = {"faults": tally.faults, "risks": tally.risks, "corrections": tally.acts}
        named = ", ".join(f"{what} {number}" for what, number in counts.items() if number)
        says = "; ".join(filter(None, (offender.reading, named)))
        line = Text(f"{sign} ", style=style).append(printable(offender.name), style="default")
        lines.append(line.append(f"  {says}", style="dim default not bold"))
    return lines


def _interventions(run: Run, room: int | None) -> list[Text]:
    lines = [Text(""), Text("interventions, newest first", style="dim")]
    newest = run.interventions[::-1][: room if room is not None else 10]
    if not newest:
        return [*lines, Text("none", style="dim")]
    for found in newest:
        line = Text(f"call {found.call:,} ").append(
            WORDS[found.kind], style=_STYLES.get(found.kind, "")
        )
        lines.append(line.append(f"  {printable(found.reason)}", style="dim"))
    older = len(run.interventions) - len(newest)
    if older:
        lines.append(Text(f"and {count(older, 'older one')}", style="dim"))
    return lines
