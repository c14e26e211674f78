"""The parts of a report that are words and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stableopt.commands.report.markup import Html, el
from stableopt.recorded.offenders import say_undefined, top_offenders
from stableopt.recorded.run import TAIL
from stableopt.recorded.status import (
    BROKEN,
    say_integrity,
    say_interventions,
    say_risk,
    say_state,
    status_of,
)
from stableopt.recorded.values import number_of, whole_of
from stableopt.runtime.words import count, duration, natural, spell
from stableopt.types import Standing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stableopt.recorded.run import ActTally, Run
    from stableopt.recorded.status import Status

MOST_ROWS = 400
"""Rows of the table of layers."""

_STANDINGS = {Standing.DANGER: "■ danger", Standing.WARNING: "▲ warning"}
_TABLED = ("relative_rank", "relative_kappa_p10", "relative_fiedler", "spectral_norm")


def section(title: str, *parts: str | None, name: str) -> Html:
    """Return a section with a heading that it is labelled by."""
    heading = el("h2", title, id=f"{name}-title")
    return el("section", heading, *parts, id=name, aria_labelledby=f"{name}-title")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> Html:
    """Return a table that scrolls sideways where it is too wide.

    Args:
        columns: The heads.
        rows: The cells; the first of each row is its head.
        caption: What it is, for those who do not see it.
    """
    head = el("tr", *(el("th", column, scope="col") for column in columns))
    body = [
        el("tr", el("th", row[0], scope="row"), *(el("td", cell) for cell in row[1:]))
        for row in rows
    ]
    inner = el(
        "table", el("caption", caption, class_="hidden"), el("thead", head), el("tbody", *body)
    )
    return el("div", inner, class_="wide", tabindex="0", role="region", aria_label=caption)


def headline(title: str, run: Run) -> Html:
    """Return what became of the run, in one word, a few sentences and a few numbers."""
    status = status_of(run)
    sign, words, kind = _badge(status)
    badge = el("p", el("span", sign, aria_hidden="true"), f" {words}", class_=f"badge {kind}")
    sentences = (
        say_undefined(run),
        say_integrity(status),
        say_interventions(status),
        say_risk(status),
        say_state(status),
    )
    return el(
        "header",
        el("p", "stableopt report", class_="kicker"),
        el("h1", title),
        badge,
        el("p", " ".join(filter(None, sentences)), class_="lead"),
        _numbers(status),
    )


def _badge(status: Status) -> tuple[str, str, str]:
    """Return a sign, words and a class."""
    known = {
        "COMPROMISED": ("✖", "Compromised", "bad"),
        "UNCHECKED": ("?", "Unchecked", "warn"),
        "UNKNOWN": ("?", "Unknown", "warn"),
    }
    sign, words, kind = known.get(status.integrity, ("✔", "OK", "good"))
    if status.state in BROKEN:
        joint = "and" if kind == "bad" else "but"
        return "✖", f"{words}, {joint} {status.state}", "bad"
    if status.bad and kind != "bad":
        return "■", f"{words}, but in danger", "bad"
    return sign, words, kind


def _numbers(status: Status) -> Html:
    pairs = [
        ("loss", spell(status.final_loss), f"mean of the last {TAIL} records"),
        ("best loss", spell(status.best_loss), "lowest such mean"),
        ("updates", f"{status.steps:,}", f"in {status.calls:,} calls"),
        ("skipped", f"{status.skips:,}", f"batches; {status.tamed:,} tamed"),
        ("rollbacks", f"{status.rollbacks:,}", f"{count(status.steps_lost, 'update')} undone"),
        ("risk", status.risk or "-", "newest level"),
    ]
    if status.seconds:
        pairs.append(("time", duration(status.seconds), "first to last record"))
    return el(
        "dl",
        *(
            el("div", el("dt", name), el("dd", value, el("small", note)))
            for name, value, note in pairs
        ),
        class_="numbers",
    )


def offenders(run: Run) -> Html | None:
    """Return the layers that stand out, the worst first; ``None`` if none does."""
    found = top_offenders(run)
    if not found:
        return None
    rows = [
        [
            o.name,
            el("span", _STANDINGS.get(o.standing, "-"), class_="whole"),
            o.reading or "-",
            str(o.tally.faults),
            str(o.tally.risks),
            str(o.tally.acts),
        ]
        for o in found
    ]
    columns = ("layer", "now", "what its newest readings say", "faults", "risks", "corrected most")
    says = (
        "Those that are undefined and were not before, or beyond a limit, first; then by how often "
        "the findings of interventions (faults), rises of the risk (risks) and transforms have "
        "named them, as far as recorded."
    )
    caption = "The layers that stand out most"
    return section(
        "Layers that stand out", el("p", says), table(columns, rows, caption), name="layers"
    )


def layer_numbers(run: Run) -> Html | None:
    """Return the newest readings of every layer as a table, folded; ``None`` without any."""
    metrics = [metric for metric in _TABLED if metric in run.readings]
    metrics = metrics or sorted(run.readings)[: len(_TABLED)]
    if not metrics:
        return None
    names = sorted({name for metric in metrics for name in run.readings[metric]}, key=natural)
    rows = [
        [name, *(spell(run.newest(metric, name)) for metric in metrics)]
        for name in names[:MOST_ROWS]
    ]
    more = f" (the first {MOST_ROWS} of {len(names)})" if len(names) > MOST_ROWS else ""
    title = f"Newest readings of every layer as numbers{more}"
    return el("details", el("summary", title), table(("layer", *metrics), rows, title))


def transforms(run: Run) -> Html | None:
    """Return what every transform is and did; ``None`` if there is none."""
    listed = run.setting("transforms")
    entries = listed if isinstance(listed, list) else []
    rows = [_transform(entry) for entry in entries if isinstance(entry, dict)]
    if not rows:  # no summary: what the records say
        rows = [_recorded(name, tally) for name, tally in sorted(run.acts.items())]
    if not rows:
        return None
    columns = ("transform", "parameters", "acted in", "changes", "newest change")
    return section("Transforms", table(columns, rows, "What transforms did"), name="transforms")


def _recorded(name: str, tally: ActTally) -> list[str]:
    moved = _moved(tally.metric, tally.before, tally.after)
    return [name, "-", f"{tally.records} recorded steps", "-", moved]


def _transform(entry: dict[str, Any]) -> list[str]:
    newest = entry.get("newest")
    last = newest if isinstance(newest, dict) else {}
    group = f" (group {entry['group']})" if "group" in entry else ""
    name = last.get("worst")
    where = f" of {name}" if isinstance(name, str) else ""
    before, after = number_of(last.get("before")), number_of(last.get("after"))
    moved = _moved(f"{last.get('metric', '')}{where}", before, after)
    return [
        f"{entry.get('transform', '')}{group}",
        counted(entry.get("parameters")),
        f"{counted(entry.get('steps'))} steps",
        counted(entry.get("changes")),
        moved if last else "-",
    ]


def _moved(what: str, before: float | None, after: float | None) -> str:
    return f"{what}: {spell(before)} → {spell(after)}"


def counted(value: Any) -> str:
    """Return a count from a summary, and a dash for what is none."""
    number = whole_of(value)
    return "-" if number is None else f"{number:,}"
