"""Draw what stableopt shows of a run: pictures of its report, as SVG files.

Run it: ``python examples/gallery.py [DIRECTORY]`` (``runs/gallery`` if none is given).
``make gallery`` writes those of the documentation. It needs the extra ``cli``.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree as ET

import torch
from torch import nn

from stableopt import ClipGradNorm, JsonLines, StableOptimizer
from stableopt.commands.demo.corpus import load_corpus
from stableopt.commands.demo.model import GPT, ModelOptions
from stableopt.commands.report import write_report
from stableopt.sensors import SampledSpectrum, Sampler, Sensors, SpectralNorm
from stableopt.testing import corrupt_weight, inject_gradient

WIDTH, LEFT, RIGHT, TOP = 760, 96, 60, 34


def train_with_faults(directory: str) -> None:
    """Train a small GPT on Python's standard library; two things go wrong."""
    torch.manual_seed(0)
    corpus, model = load_corpus(), GPT(ModelOptions(context=32, width=64, depth=2, heads=2))
    opt = StableOptimizer(
        torch.optim.AdamW(model.parameters(), lr=2e-3),
        model=model,
        transforms=[ClipGradNorm(1.0)],
        telemetry=JsonLines(directory, every=2),
    )
    for step in range(1, 301):
        if step == 240:
            corrupt_weight(opt, bit=30, model=model)  # a flipped bit: finite, and absurdly large
        loss = model.loss(*corpus.batch(step, seed=0, size=16, context=32))
        opt.zero_grad()
        loss.backward()
        if step == 120:
            inject_gradient(opt, float("nan"), model=model)
        opt.observe(loss=loss)
        opt.step()
    opt.close()


def train_and_collapse(directory: str) -> None:
    """Train a small network while a bug pulls the rows of one layer towards their mean."""
    torch.manual_seed(0)
    x = torch.rand(4096, 32) * 2 - 1
    y = torch.sin(3 * x).sum(dim=1, keepdim=True)
    layers = [nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 1)]
    model = nn.Sequential(*layers)
    opt = StableOptimizer(
        torch.optim.AdamW(model.parameters(), lr=1e-3),
        model=model,
        sensors=Sensors(
            use=(SpectralNorm(), SampledSpectrum()), sampler=Sampler(ratio=1, every=10), budget=None
        ),
        telemetry=JsonLines(directory, every=5),
    )
    for step in range(600):
        rows = torch.randint(len(x), (64,))
        opt.zero_grad()
        loss = nn.functional.mse_loss(model(x[rows]), y[rows])
        loss.backward()
        opt.observe(loss=loss)
        opt.step()
        if step >= 300:
            with torch.no_grad():
                weight = model[2].weight
                weight.lerp_(weight.mean(dim=0).expand_as(weight), 0.02)
    opt.close()


def draw(page: str, names: list[str]) -> str:
    """Return figures of a report, one below the other, as one SVG file.

    Args:
        page: The HTML of the report.
        names: The ids of the figures.
    """
    (defs,) = re.findall(r'<svg class="defs".*?</svg>', page, re.DOTALL)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    # Sizes of the page are not those of the picture; colours and lines are.
    kept = re.findall(
        r"^(?::root \{.*?\n\}|@media screen.*?\n\})$", style, re.DOTALL | re.MULTILINE
    )
    kinds = r"\.(?:grid|line|spread|across|undone|sign|k-|c-|r-|hover)|use|circle"
    rules = re.findall(rf"^(?:{kinds})[^{{]*\{{[^}}]*\}}[^\n]*", style, re.MULTILINE)
    parts, height = [], 8
    for name in names:
        (source,) = re.findall(rf'<figure id="{name}">.*?</figure>', page, re.DOTALL)
        drawing, tall = figure(ET.fromstring(source), height)  # noqa: S314 - our own page
        parts.append(drawing)
        height += tall
    text = "text { fill: var(--ink); font: 12px system-ui, sans-serif; }"
    more = f"{text} .small {{ fill: var(--muted); font-size: 11px; }} .h {{ font-weight: 600; }}"
    css = "\n".join([*kept, *rules, more])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img">\n<style>\n{css}\n</style>\n'
        f'<rect width="100%" height="100%" rx="6" style="fill: var(--paper)"/>\n'
        f"{defs}\n" + "\n".join(parts) + "\n</svg>\n"
    )


def figure(tree: ET.Element, top: int) -> tuple[str, int]:
    """Return a figure of the report as SVG, and its height."""
    frame = next(div for div in tree.iter("div") if "frame" in div.get("class", "").split())
    area = next(svg for svg in frame.iter("svg") if "area" in svg.get("class", ""))
    title = "".join(tree.find("figcaption")[0].itertext())
    pixels, first = int(area.get("height")), top + TOP
    area.attrib |= {"x": str(LEFT), "y": str(first), "width": str(WIDTH - LEFT - RIGHT)}
    area.set("overflow", "visible")
    inner = area.find("svg") if area.find("svg") is not None else area
    plotted = int(inner.get("height", pixels))
    out = [words(title, 12, top + 18, kind="h"), ET.tostring(area, encoding="unicode")]
    for div in frame.findall("div"):
        kind, side = div.get("class"), [(label(span), span) for span in div.findall("span")]
        if kind in {"ys", "names"}:
            places = [first + plotted * share(span, "top") + 4 for _, span in side]
            out += [words(t, LEFT - 8, y, "end") for (t, _), y in zip(side, places, strict=True)]
        elif kind == "newest":
            out += [
                words(t, WIDTH - RIGHT + 8, first + 17 * i + 13) for i, (t, _) in enumerate(side)
            ]
        elif kind == "xs":
            for said, span in side:
                at = LEFT + (WIDTH - LEFT - RIGHT) * share(span, "left")
                out.append(words(said, at, first + pixels + 15, "middle"))
    out.append(words("call of step()", WIDTH - RIGHT, first + pixels + 30, "end"))
    at, below = LEFT, first + pixels + 30
    for entry in tree.findall("ul/li"):
        said = " ".join("".join(entry.itertext()).split())
        for mark in entry.findall("svg"):
            mark.attrib |= {"x": f"{at}", "y": f"{below - 10}", "width": "12", "height": "12"}
            mark.set("style", "fill: currentColor")
            out.append(ET.tostring(mark, encoding="unicode"))
            out.append(words(said, at + 17, below))
            at += 17 + 6.2 * len(said) + 14
    return "\n".join(out), TOP + pixels + 48


def label(span: ET.Element) -> str:
    """Return what a label says: the full name, where there is a short one for phones."""
    full = next((part for part in span if part.get("class") == "full"), span)
    return "".join(full.itertext())


def words(text: str, x: float, y: float, anchor: str = "start", kind: str = "small") -> str:
    """Return a text of an SVG file."""
    element = ET.Element("text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "class": kind})
    element.set("text-anchor", anchor)
    element.text = text
    return ET.tostring(element, encoding="unicode")


def share(span: ET.Element, side: str) -> float:
    """Return the place of a label, a percentage in its style."""
    return float(re.search(rf"{side}:([0-9.]+)%", span.get("style")).group(1)) / 100


PICTURES = {
    "report-loss": (train_with_faults, ["loss"]),
    "collapse": (train_and_collapse, ["loss", "risk", "metric-relative_rank"]),
}
"""By name of the file: what trains, and which figures of its report are drawn."""

out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/gallery")
out.mkdir(parents=True, exist_ok=True)
for name, (train, figures) in PICTURES.items():
    with tempfile.TemporaryDirectory() as directory:
        train(directory)
        page = write_report(directory).path.read_text(encoding="utf-8")
    path = out / f"{name}.svg"
    path.write_text(draw(page, figures), encoding="utf-8")
    print(f"wrote {path}")
