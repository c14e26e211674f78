"""The page of a run: whole, self-contained, safe, readable, and true."""

from __future__ import annotations

import json
import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stableopt import ConfigError, StableOptimizer, UpdateCap
from stableopt.commands.report.markup import el
from stableopt.commands.report.page import build_page
from stableopt.commands.report.reproduce import read_call, recipe_of
from stableopt.commands.report.tables import MOST_ENTRIES
from stableopt.commands.report.write import write_report
from stableopt.recorded import load_run
from stableopt.recorded.interventions import WORDS, Kind
from stableopt.recorded.run import Run
from stableopt.sensors import SampledSpectrum

from .conftest import event
from .parse import Page

EVIL = "<script>alert('x')</script>\"'&\x1b[2J"


# Whole and self-contained


def test_it_needs_nothing_else(page):
    found = page()

    assert found.markup.startswith("<!doctype html>")
    tags = {tag for tag, _, _ in found.elements}
    assert not tags & {"script", "link", "img", "image", "iframe", "object", "embed", "base"}
    for tag, attributes, _ in found.elements:
        for key, value in attributes.items():
            assert not key.startswith("on"), (tag, key)
            assert key not in {"src", "srcset", "data", "action", "xlink:href"}, (tag, key)
            if key == "href":
                assert value.startswith("#"), value
    # The one reference of a style is to a pattern in the page itself.
    assert set(re.findall(r"url\(([^)]*)\)", found.markup)) <= {"#hatch"}
    assert "@import" not in found.style
    assert "http" not in found.style


def test_every_reference_leads_somewhere(page):
    found = page()
    names = [attributes["id"] for _, attributes, _ in found.elements if "id" in attributes]

    assert len(names) == len(set(names))
    for _, attributes, _ in found.elements:
        for key in ("href", "aria-labelledby"):
            if key in attributes:
                assert attributes[key].removeprefix("#") in names


def test_the_contents_name_every_part(page):
    found = page()
    linked = [a["href"].removeprefix("#") for t, a, p in found.elements if t == "a" and "nav" in p]
    parts = [
        a["id"] for t, a, p in found.elements if t in ("section", "figure") and p[-1] == "main"
    ]

    assert linked == parts


def test_it_is_readable_without_seeing_it(page):
    found = page()

    assert found.all("html")[0]["lang"] == "en"
    assert len(found.all("h1")) == len(found.all("main")) == 1
    drawings = [a for a in found.all("svg") if "area" in (a.get("class") or "")]
    assert len(drawings) >= 5
    for drawing in drawings:
        assert len(drawing["aria-label"]) > 30
    for _, attributes, parents in found.elements:
        # A drawing is named as a whole, or is hidden and stands beside words.
        if attributes.get("class", "").startswith("icon"):
            assert attributes["aria-hidden"] == "true", parents
    assert "width=device-width" in found.all("meta", name="viewport")[0]["content"]
    assert "@media print" in found.style
    assert "prefers-color-scheme: dark" in found.style


def _luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(a, b):
    low, high = sorted((_luminance(a), _luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast(page, scheme):
    blocks = re.findall(r":root \{([^}]*)\}", page().style)
    colours = dict(re.findall(r"--([\w]+): (#[0-9a-f]{6})", blocks[scheme]))

    for name in ("ink", "muted", "good", "warn", "bad", "back", "quiet", "line", "link"):
        for behind in ("paper", "card"):
            assert _contrast(colours[name], colours[behind]) >= 4.5, (name, behind)
    # Healthy, warning and danger can be told apart without their hues.
    healthy = [_luminance(colours[f"h{i}"]) for i in range(5)]
    assert healthy == sorted(healthy, reverse=scheme == 0)
    assert _contrast(colours["hwarning"], colours["hdanger"]) >= 1.5


# True


def test_it_tells_every_intervention(trained, page):
    found = page()

    for entry in trained[1].ledger:
        assert f"call-{entry.call}" in {a.get("id") for a in found.all("li")}
        assert f"Why: {entry.reason}." in found.text
    marked = [a["href"] for a in found.all("use")]
    assert marked.count("#m-skip") == 1
    assert marked.count("#m-roll_back") == 1
    assert {"#call-21", "#call-131"} <= {a["href"] for a in found.all("a")}
    assert "29 updates undone" in found.text
    assert found.all("rect", class_="undone")
    assert "Layers: 0.weight\n" in found.text


def test_every_metric_of_every_layer_has_a_row(trained, page):
    found = page()
    metrics = {m for readings in trained[1].readings.values() for m in readings}

    assert len(metrics) == 9
    assert {a["id"] for a in found.all("figure")} >= {f"metric-{m}" for m in metrics}
    rows = [a for a in found.all("span") if a.get("title") == "0.weight"]
    assert len(rows) == len(metrics)


def test_the_head_says_what_became_of_it(page):
    text = page(title="my run").text

    assert "my run" in text
    assert (
        "Nothing harmful is known to remain. 1 batch skipped; 1 rollback, 29 updates undone."
        in (text)
    )
    assert "Closed. 150 calls of step(), 119 updates taken and kept" in text


@pytest.mark.parametrize(
    ("summary", "more", "words"),
    [
        (None, {}, "There is no summary.json that can be read"),
        ({"integrity": "OK", "status": "running"}, {}, "Not closed: still running, or killed."),
        ({"integrity": "OK"}, {"loss": "NaN"}, "Compromised"),
        ({"integrity": "OK"}, {"risk": "danger"}, "OK, but in danger"),
        ({"integrity": "UNCHECKED"}, {}, "There was no guard: the weights were not checked"),
        ({"integrity": "OK"}, {"action": "stop"}, "The guard stopped the run"),
        ({"integrity": "OK", "status": "failed"}, {}, "OK, but failed\n"),
        ({"integrity": "OK", "status": "failed"}, {}, "Failed: an exception ended the program."),
        ({"integrity": "OK", "status": "failed", "ended_by": 3}, {}, "Failed: an exception ended"),
        (
            {"integrity": "OK", "status": "failed", "ended_by": "<E>"},
            {},
            "Failed: <E> ended the program.",
        ),
        ({"integrity": "COMPROMISED", "status": "failed"}, {}, "Compromised, and failed\n"),
        ({"integrity": "UNCHECKED", "status": "interrupted"}, {}, "Unchecked, but interrupted\n"),
        ({"integrity": "OK", "status": "interrupted"}, {}, "Interrupted: Ctrl-C ended the"),
    ],
)
def test_states_in_words(write, page, summary, more, words):
    assert words in page(write([event(1), event(2, **more)], summary)).text


def test_losses_that_are_not_finite_are_marked_and_counted(write, page):
    records = [event(i, loss="NaN" if i in (5, 6) else 1.0 + i % 3) for i in range(1, 20)]
    found = page(write([*records, event(20, 19, "skip", loss="Infinity")]))

    assert "2 values are NaN or infinite, marked with a cross" in found.text
    signs = [a for a in found.all("text") if a["class"].startswith("sign")]
    assert [a["class"] for a in signs].count("sign bad") == 2
    assert [a["class"] for a in signs].count("sign out") == 1
    assert "The loss of 1 batch that was refused is no part of the line" in found.text
    # The line is broken there, not drawn through.
    (line,) = [a["d"] for a in found.all("path", class_="line")][:1]
    assert line.count("M") == 2


def test_a_loss_far_above_the_others_does_not_hide_them(write, page):
    records = [event(i, loss=1e12 if i == 60 else 2.0 - i / 200) for i in range(1, 101)]
    found = page(write(records))

    assert "what lies above the frame is marked with an arrow, the highest 1e+12" in found.text
    line = found.all("path", class_="line")[0]["d"]
    heights = {round(float(y)) for _, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", line)}
    assert len(heights) > 50


def test_without_anything(write, page):
    found = page(write([]))

    assert "Nothing is recorded yet." in found.text
    assert not found.all("figure")


def test_without_losses_the_interventions_are_still_drawn(write, page):
    found = page(write([event(1, loss=None), event(2, 1, "skip", loss=None)]))

    assert "The loss was not observed." in found.text
    assert [a["href"] for a in found.all("use")] == ["#m-skip"]


def test_without_sensors(write, page):
    found = page(write([event(1)], {"integrity": "OK", "sensors": False}))

    assert "No sensor has read anything." in found.text
    assert not [a for a in found.all("figure") if a["id"].startswith("metric-")]


@pytest.mark.parametrize(
    ("budget", "told"), [(0.005, True), (0.05, False), (None, False), ("NaN", False)]
)
def test_sensors_that_took_more_than_their_budget_say_why(write, page, budget, told):
    sensors = {"share": 0.0324, "budget": budget, "weights": 3, "postponed": 2, "waits": 0}
    text = page(write([event(1)], {"integrity": "OK", "sensors": sensors})).text

    assert "3.24% of the time, on 3 weights" in text
    assert ("above the budget of 0.005 (0.50%): the first visit of all weights" in text) is told


def test_what_could_not_be_read_is_told(write, page):
    text = page(write([event(1)], torn="{")).text

    assert "1 line could not be read" in text


def test_more_entries_than_a_page_holds(write, page):
    records = [event(2 * i, i, "skip", reason=f"because {i}") for i in range(1, 1001)]
    found = page(write(records))

    assert len(found.all("li", class_="gap")) == 1
    assert f"{1000 - MOST_ENTRIES} entries left out here" in found.text
    assert "because 1." in found.text
    assert "because 1000." in found.text
    assert "skipped: 1000" in found.text
    # Both ends are open, what is between them is folded away but there.
    assert len(found.all("li", id="call-2")) == 1
    folded = [p for t, a, p in found.elements if t == "li" and "details" in p]
    assert len(folded) == MOST_ENTRIES + 1 - 30


def test_large_runs_give_small_pages(write, page):
    layers = [f"layers.{i}.weight" for i in range(300)]
    records = [
        event(
            call,
            readings={
                name: {
                    "step": call,
                    "relative_rank": (7 * call * i % 101) / 100,
                    "rank": call % i + 1,
                }
                for i, name in enumerate(layers[call % 8 :: 8], 1)
            },
        )
        for call in range(1, 801)
    ]
    found = page(write(records))

    assert len(found.markup) < 1_500_000
    assert all(found.text.count(name) >= 1 for name in layers)


def test_the_settings_build_the_same_wrapper(trained):
    recipe = recipe_of(load_run(trained[0]))
    config = json.loads(json.dumps(recipe.config))
    model = torch.nn.Linear(2, 2)
    again = StableOptimizer.from_config(torch.optim.SGD(model.parameters()), config, model=model)

    for key in ("guard", "compiled"):
        assert again.summary()[key] == trained[1].summary()[key]
    for key in ("use", "sampler", "budget", "params", "heads", "judged_by"):
        assert again.summary()["sensors"][key] == trained[1].summary()["sensors"][key]
    assert not recipe.beyond
    told = [entry["transform"] for entry in trained[1].summary()["transforms"]]
    assert [entry["transform"] for entry in again.summary()["transforms"]] == told


@pytest.mark.parametrize("thing", [UpdateCap(0.1, params="*.weight"), SampledSpectrum(rows=64)])
def test_representations_are_read_back(thing):
    ((name, options),) = read_call(repr(thing)).items()

    assert type(thing)(**options) == thing
    assert name == type(thing).__name__


@pytest.mark.parametrize("text", ["", "f(", "f(1)", "f(x=y)", "f(**{})", "a.b()", "(" * 9999])
def test_nothing_else_is_read(text):
    assert read_call(text) is None


def test_what_a_config_cannot_hold_is_told(write, page):
    transforms = [
        {"transform": "SpectralCap(limit=1, when=above('kappa_p10', 9))"},
        {"transform": "UpdateCap(ratio=0.1)", "group": 2},
    ]
    text = page(write([event(1)], {"integrity": "OK", "transforms": transforms})).text

    assert "has options that a config cannot hold." in text
    assert "UpdateCap(ratio=0.1) belongs to parameter group 2." in text


# Safe


def test_names_cannot_write_markup(write, page):
    record = event(
        1,
        action="skip",
        reason=EVIL,
        risk=EVIL,
        findings=[{"kind": EVIL, "where": [EVIL]}],
        readings={EVIL: {"step": 0, EVIL: 1.0, "relative_rank": 0.1}},
        acts=[{"transform": EVIL, "metric": EVIL, "worst": EVIL, "before": 1, "after": 2}],
    )
    taken = event(2, signals={EVIL: 1.0})
    summary = {
        "integrity": "OK",
        "optimizer": EVIL,
        "versions": {EVIL: EVIL},
        "transforms": [{"transform": EVIL}],
        "guard": {EVIL: EVIL},
        "tracked": [EVIL],
        "snapshots": {"slots": 1, "slot_bytes": 1, "bytes_at_most": 1, "memory": EVIL},
    }
    found = page(write([record, taken], summary), title=EVIL)

    assert not found.all("script")
    assert "\x1b" not in found.markup
    assert found.text.count("<script>alert('x')</script>") > 10


names = st.sampled_from(["a.weight", "b.weight", "head.weight", "é<&"])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
numbers = st.floats() | st.sampled_from(["NaN", "Infinity", "-Infinity", 0.0, -1.0, 1e308, 5e-324])
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=2)
)
records = st.fixed_dictionaries(
    {
        "event": st.just("step"),
        "call": st.integers(0, 10**6),
        "step": st.integers(0, 10**6),
        "action": st.sampled_from(["take", "skip", "roll_back", "stop"]) | anything,
    },
    optional={
        "loss": numbers | anything,
        "grad_norm": numbers | anything,
        "lr": numbers | anything,
        "time": numbers | anything,
        "risk": st.sampled_from(["stable", "danger", "spam"]) | anything,
        "reason": anything,
        "findings": anything,
        "rollback": st.fixed_dictionaries({"from_step": scalars, "to_step": scalars}) | anything,
        "signals": anything,
        "acts": st.lists(st.fixed_dictionaries({"worst": names, "before": numbers}), max_size=2),
        "readings": st.dictionaries(
            names,
            st.dictionaries(
                st.sampled_from(["relative_rank", "relative_kappa_p10", "effective_rank", "x"]),
                numbers | anything,
            ),
        )
        | anything,
    },
)
summaries = st.none() | st.dictionaries(
    st.sampled_from(
        ["guard", "sensors", "transforms", "snapshots", "telemetry", "versions", "calls", "status"]
    ),
    anything | st.fixed_dictionaries({"slots": scalars, "use": anything, "share": scalars}),
)


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(records=st.lists(records, max_size=6), summary=summaries)
def test_whatever_is_recorded_there_is_a_page(tmp_path_factory, records, summary):
    run = Run(tmp_path_factory.getbasetemp() / "telemetry.jsonl")
    for record in records:
        run.add(record)
    run.summary = summary

    found = Page(build_page(run, "a run"))
    assert "nan%" not in found.markup
    for line in found.all("path", class_="line"):
        assert re.fullmatch(r"([ML][\d.]+ [\d.]+)*(h.01)?", line["d"])
    for bars in found.all("path", class_="spread"):
        assert re.fullmatch(r"(M[\d.]+ [\d.]+h[\d.]+v[\d.]+h-[\d.]+z)+", bars["d"])


def test_elements_are_escaped():
    assert el("p", EVIL, title=EVIL).count("<") == 2


def test_every_kind_has_words_and_a_shape(page):
    markup = page().markup

    assert set(WORDS) == set(Kind)
    for kind in Kind:
        assert f'id="m-{kind.value}"' in markup
        assert f".k-{kind.value}" in markup


# As a file


def test_the_file_is_beside_the_records(write):
    where = write([event(1)])
    write([event(1)], number=2)

    assert write_report(where).path == where / "report-2.html"
    assert write_report(where, number=1).path == where / "report.html"
    assert sorted(p.name for p in where.iterdir() if "tmp" in p.name) == []


def test_an_older_report_is_replaced(write, tmp_path):
    where = write([event(1)])
    out = tmp_path / "new" / "page.html"
    write_report(where, out)
    before = out.read_text()
    write([event(1), event(2, 1, "skip")])

    written = write_report(where, out)
    assert written.path == out
    assert out.read_text() != before
    assert out.stat().st_mode & 0o044 == where.stat().st_mode & 0o044


def test_a_file_that_cannot_be_written(write, tmp_path):
    where = write([event(1)])
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match=r"^out='.*' cannot be written"):
        write_report(where, tmp_path / "file" / "report.html")
    with pytest.raises(ConfigError, match=r"^out='.*' is a directory: give a file"):
        write_report(where, tmp_path)
