"""The ledger of a run in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stableopt.commands.report.marks import icon
from stableopt.commands.report.markup import Html, el, join
from stableopt.commands.report.sections import section
from stableopt.recorded.interventions import WORDS, in_rows
from stableopt.runtime.words import clock, count

if TYPE_CHECKING:
    from stableopt.recorded.interventions import Intervention
    from stableopt.recorded.run import Run

MOST_ENTRIES = 400
"""Entries of the ledger on a page; of more, the first and the last half are told."""

_OPEN = 40
"""Entries up to which none is folded away."""

_FEW = 6


def tell_ledger(run: Run) -> tuple[Html, set[int]]:
    """Return every intervention in sentences, and the calls that have an entry of their own.

    Interventions of one kind at consecutive calls are one entry.
    """
    rows = list(in_rows(run.interventions))
    left_out = max(0, len(rows) - MOST_ENTRIES)
    half = MOST_ENTRIES // 2
    shown = [*rows[:half], *rows[-half:]] if left_out else rows
    entries = [_entry(row) for row in shown]
    if left_out:
        why = f"{count(left_out, 'entry', 'entries')} left out here; all are in {run.path.name}"
        entries.insert(half, el("li", el("p", why), class_="gap"))
    calls = {row[0].call for row in shown}
    if not entries:
        return section("Ledger", el("p", "Every step was simply taken."), name="ledger"), set()
    says = (
        f"{count(len(run.interventions), 'entry', 'entries')}: every intervention, every rise of "
        "the risk, and the first time that a transform acts, oldest first. Times are UTC."
    )
    return section("Ledger", el("p", says), _fold(entries), name="ledger"), calls


def _fold(entries: list[Html]) -> Html:
    """Return the list; of a long one only both ends are open."""
    if len(entries) <= _OPEN:
        return el("ol", *entries, class_="ledger")
    first, inner, last = (
        entries[: _OPEN // 4],
        entries[_OPEN // 4 : -_OPEN // 2],
        entries[-_OPEN // 2 :],
    )
    folded = el("ol", *inner, class_="ledger")
    return join(
        el("ol", *first, class_="ledger"),
        el("details", el("summary", f"{len(inner)} entries between"), folded),
        el("ol", *last, class_="ledger"),
    )


def _entry(row: list[Intervention]) -> Html:
    first, last = row[0], row[-1]
    if first is last:
        when = [f"call {first.call:,}", f"step {first.step:,}"]
    else:
        when = [f"calls {first.call:,} to {last.call:,}", f"{len(row)} in a row"]
    moment = None
    if first.time is not None:
        moment = el("time", clock(first.time))
    head = el(
        "p",
        icon(first.kind),
        el("strong", f" {WORDS[first.kind].capitalize()}"),
        f" · {' · '.join(when)}",
        " · " if moment else None,
        moment,
        class_="when",
    )
    says = el("p", f"{last.tell() if first is last else first.tell()} ", _because(first))
    more = el("p", "The last of them: ", last.reason) if first is not last else None
    layers = list(dict.fromkeys(name for found in row for name in found.layers))
    named = None
    if layers:
        others = f" and {len(layers) - _FEW} more" if len(layers) > _FEW else ""
        named = el("p", f"Layers: {', '.join(layers[:_FEW])}{others}", class_="layers")
    return el("li", head, says, more, named, id=f"call-{first.call}")


def _because(found: Intervention) -> Html:
    return (
        el("span", f"Why: {found.reason}.")
        if found.reason
        else el("span", "No reason is recorded.")
    )
