"""A run as one HTML file that needs nothing else."""

from __future__ import annotations

import json
from functools import cache, partial
from importlib import resources
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from stableopt.commands.report import marks, tables
from stableopt.commands.report.axes import Axis, span
from stableopt.commands.report.curves import draw_curve
from stableopt.commands.report.heatmap import draw_heatmap
from stableopt.commands.report.markup import join, text
from stableopt.commands.report.reproduce import recipe_of
from stableopt.commands.report.risk_line import draw_risk
from stableopt.health.spectra.tiers import TIERS
from stableopt.recorded import status as states
from stableopt.recorded.interventions import WORDS
from stableopt.recorded.offenders import say_undefined
from stableopt.recorded.run import TAIL, Run
from stableopt.recorded.status import Status
from stableopt.recorded.values import number_of, whole_of
from stableopt.runtime.version import __version__
from stableopt.runtime.words import clock, count, duration, listed, size, spell
from stableopt.sensors.governor import CREDIT
from stableopt.telemetry.encode import plain

MOST_METRICS = 16
"""Heatmaps of a page."""

MOST_CURVES = 8
"""Signals that are drawn."""

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


def build_page(run: Run, title: str) -> str:
    """Return the report of a run as HTML: styles and drawings inside, no script, no request.

    Args:
        run: What was read.
        title: Of the page, e.g. its directory.

    Cost:
        Bounded: some 100 kB of page for a small model, below 3 MB for any.
    """
    x = span(float(run.first_call), float(max(run.call, run.first_call)))
    rows, left_out = tables.ledger_rows(run)
    linked = {row[0].call for row in rows if row}
    status = states.status_of(run)
    judged = [metric for metric in TIERS if metric in run.readings]
    others = sorted(metric for metric in run.readings if metric not in judged)
    tabled = tables.tabled_metrics(run)
    return _template().render(
        run=run,
        title=title,
        setting=run.setting,
        parts=_PARTS,
        status=status,
        badge=_badge(status),
        sentences=(
            say_undefined(run),
            states.say_integrity(status),
            states.say_interventions(status),
            states.say_risk(status),
            states.say_state(status),
        ),
        curves=_curves(run, x, linked),
        more_signals=len(run.signals) - MOST_CURVES,
        marks=marks.marks(run, x, 0, linked),
        legend=marks.legend(run),
        rows=rows,
        left_out=left_out,
        offenders=tables.offender_rows(run),
        metrics=(judged + others)[:MOST_METRICS],
        unfolded=max(len(judged), 1),
        heatmap=lambda metric: draw_heatmap(run, metric, x),
        tabled=tabled,
        layers=tables.layer_rows(run, tabled),
        transforms=tables.transform_rows(run),
        pace=_pace(run),
        recipe=recipe_of(run),
    )


class _Badge(NamedTuple):
    sign: str
    words: str
    kind: str


def _badge(status: Status) -> _Badge:
    known = {
        "COMPROMISED": _Badge("✖", "Compromised", "bad"),
        "UNCHECKED": _Badge("?", "Unchecked", "warn"),
        "UNKNOWN": _Badge("?", "Unknown", "warn"),
    }
    badge = known.get(status.integrity, _Badge("✔", "OK", "good"))
    if status.state in states.BROKEN:
        joint = "and" if badge.kind == "bad" else "but"
        return _Badge("✖", f"{badge.words}, {joint} {status.state}", "bad")
    if status.bad and badge.kind != "bad":
        return _Badge("■", f"{badge.words}, but in danger", "bad")
    return badge


def _curves(run: Run, x: Axis, linked: set[int]) -> dict[str, Markup | None]:
    """Return everything that is drawn over calls but the heatmaps; what is empty is ``None``."""
    low = partial(draw_curve, run, x=x, height=110)
    signals = [
        low(trace, title=signal, name=f"signal-{i}")
        for i, (signal, trace) in enumerate(list(run.signals.items())[:MOST_CURVES])
    ]
    high = partial(draw_curve, run, x=x, level="h2")
    return {
        "loss": high(run.loss, title="Loss", name="loss", height=240, linked=linked),
        "gradients": high(run.grad_norm, title="Gradient norm", name="gradients"),
        "risk": draw_risk(run, x),
        "signals": join(low(run.lr, title="Learning rate", name="lr", linear=True), *signals),
    }


def _pace(run: Run) -> str | None:
    """Return how long a call took on average; ``None`` if that is not known."""
    if run.began is None or run.ended is None or run.call <= run.first_call:
        return None
    each = (run.ended - run.began) / (run.call - run.first_call)
    return duration(each) if each >= 1 else f"{1000 * each:.3g} ms"


@cache
def _template() -> Template:
    """Return the page to be filled in: every value is made printable and escaped."""
    page = Environment(
        loader=PackageLoader(__package__, ""),
        autoescape=True,
        finalize=text,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.filters.update(
        clock=clock,
        count=count,
        counted=tables.counted,
        duration=duration,
        json=lambda value, **more: json.dumps(plain(value), ensure_ascii=False, **more),
        listed=listed,
        number=number_of,
        percent=lambda value: f"{number_of(value):.2%}",
        size=lambda value: size(number_of(value) or 0.0),
        spell=lambda value, digits=4: spell(number_of(value), digits),
        thousands="{:,}".format,
    )
    page.tests.update(
        list=lambda value: isinstance(value, list),
        numeric=lambda value: number_of(value) is not None,
        whole=lambda value: whole_of(value) is not None,
    )
    style = resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    page.globals.update(
        credit=f"{1000 * CREDIT:.0f} ms",
        icon=marks.icon,
        kinds=WORDS,
        lane=marks.LANE,
        shapes=marks.shapes(),
        style=Markup(style),  # noqa: S704 - our own
        tail=TAIL,
        version=__version__,
    )
    return page.get_template("page.html.j2")
