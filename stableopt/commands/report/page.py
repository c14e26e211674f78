"""A run as one HTML file that needs nothing else."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

from stableopt.commands.report import marks, sections, setup
from stableopt.commands.report.axes import span
from stableopt.commands.report.curves import draw_curve
from stableopt.commands.report.heatmap import draw_heatmap
from stableopt.commands.report.ledger import tell_ledger
from stableopt.commands.report.markup import Html, el, join
from stableopt.commands.report.risk_line import draw_risk
from stableopt.health.spectra.tiers import TIERS
from stableopt.runtime.words import count
from stableopt.version import __version__

if TYPE_CHECKING:
    from stableopt.commands.report.axes import Axis
    from stableopt.recorded.run import Run

MOST_METRICS = 16
"""Heatmaps of a page."""

_PARTS = {
    "loss": "Loss",
    "ledger": "Ledger",
    "gradients": "Gradient norm",
    "risk": "Risk",
    "layers": "Layers",
    "sensors": "Sensors",
    "transforms": "Transforms",
    "signals": "Learning rate and signals",
    "cost": "Memory and overhead",
    "reproduce": "To reproduce",
}

MOST_CURVES = 8
"""Signals that are drawn."""


def build_page(run: Run, title: str) -> str:
    """Return the report of a run as HTML: styles and drawings inside, no script, no request.

    Args:
        run: What was read.
        title: Of the page, e.g. its directory.

    Cost:
        Bounded: some 100 kB of page for a small model, below 3 MB for any.
    """
    x = span(float(run.first_call), float(max(run.call, run.first_call)))
    ledger, linked = tell_ledger(run)
    body = [
        None if run.records else _empty(),
        draw_curve(
            run, run.loss, x, title="Loss", name="loss", height=240, linked=linked, level="h2"
        ),
        None if run.loss or not run.records else _no_loss(run, x, linked),
        ledger,
        draw_curve(run, run.grad_norm, x, title="Gradient norm", name="gradients", level="h2"),
        draw_risk(run, x),
        sections.offenders(run),
        _sensors(run, x),
        sections.transforms(run),
        _others(run, x),
        setup.costs(run),
        setup.reproduce(run),
        _footer(run),
    ]
    content = join(*body)
    head = join(marks.shapes(), sections.headline(title, run), _contents(content))
    page = el("html", _head(title), el("body", el("main", head, content)), lang="en")
    return f"<!doctype html>\n{page}\n"


def _contents(content: Html) -> Html:
    """Return links to the parts that there are."""
    links = [
        el("a", words, href=f"#{name}")
        for name, words in _PARTS.items()
        if f'id="{name}"' in content
    ]
    return el("nav", *links, aria_label="Contents")


def _head(title: str) -> Html:
    style = resources.files("stableopt.commands.report").joinpath("page.css").read_text(encoding="utf-8")
    return el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", f"{title} · stableopt report"),
        el("style", Html(style)),
    )


def _empty() -> Html:
    words = (
        "Nothing is recorded yet. Healthy steps are recorded every so often (every tenth by "
        "default), interventions always."
    )
    return el("p", words, class_="note")


def _no_loss(run: Run, x: Axis, linked: set[int]) -> Html:
    """Return the interventions alone, where nobody told the loss."""
    words = "The loss was not observed. Call opt.observe(loss=loss) before opt.step() to have it."
    label = "Interventions over calls of step()"
    inside = marks.marks(run, x, 0, linked)
    svg = el("svg", inside, class_="area", height=marks.LANE, role="group", aria_label=label)
    parts = (el("div", svg, class_="frame lone"), marks.legend(run)) if run.interventions else ()
    return sections.section("Loss", el("p", words, class_="note"), *parts, name="loss")


def _sensors(run: Run, x: Axis) -> Html | None:
    """Return a heatmap for every metric: those with limits first, the others folded."""
    if not run.readings:
        return None
    judged = [metric for metric in TIERS if metric in run.readings]
    others = sorted(metric for metric in run.readings if metric not in judged)
    known = (judged + others)[:MOST_METRICS]
    open_ = known[: max(len(judged), 1)]
    folded = known[len(open_) :]
    words = (
        "A row is a layer, time runs to the right; a colour holds until the next reading. Limits "
        "apply to weights of at least 16 rows and columns that are no output layer."
    )
    more = None
    if folded:
        maps = [draw_heatmap(run, metric, x) for metric in folded]
        more = el("details", el("summary", f"More metrics: {', '.join(folded)}"), *maps)
    return sections.section(
        "Sensors",
        el("p", words),
        *(draw_heatmap(run, metric, x) for metric in open_),
        more,
        sections.layer_numbers(run),
        name="sensors",
    )


def _others(run: Run, x: Axis) -> Html | None:
    """Return the learning rate and the signals."""
    curves = [draw_curve(run, run.lr, x, title="Learning rate", name="lr", height=110, linear=True)]
    for i, (signal, trace) in enumerate(list(run.signals.items())[:MOST_CURVES]):
        curves.append(draw_curve(run, trace, x, title=signal, name=f"signal-{i}", height=110))
    left_out = len(run.signals) - MOST_CURVES
    more = f"{count(left_out, 'more signal')} are in the records." if left_out > 0 else None
    found = [curve for curve in curves if curve is not None]
    if not found:
        return None
    note = None if more is None else el("p", more, class_="note")
    return sections.section("Learning rate and signals", *found, note, name="signals")


def _footer(run: Run) -> Html:
    words = [f"Made by stableopt {__version__} from {run.path} ({count(run.records, 'record')})."]
    if run.unreadable:
        words.append(
            f"{count(run.unreadable, 'line')} could not be read, torn by a crash or damaged, and "
            "left out."
        )
    if run.siblings > 1:
        words.append(f"This is run {run.number}; the directory has {run.siblings}.")
    words.append(
        "Healthy steps are recorded every so often, interventions always. Long series are drawn "
        "with neighbours merged: lowest and highest values, what is not finite and all "
        "interventions are kept."
    )
    return el("footer", el("p", " ".join(words)))
