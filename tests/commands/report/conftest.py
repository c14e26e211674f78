"""Runs to look at: one that was trained, and others that are written by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch

from stableopt import ClipGradNorm, JsonLines, StableOptimizer
from stableopt.recorded import load_run
from stableopt.sensors import Sensors

from .parse import Page

METRICS = ("spectral_norm", "effective_rank", "relative_rank")


def event(call, step=None, action="take", **more):
    """Return the record of a call, as :meth:`stableopt.types.Event.to_dict` makes it."""
    record = {
        "event": "step",
        "time": 1_700_000_000.0 + call,
        "call": call,
        "step": call if step is None else step,
        "action": action,
        "loss": 1.0 + 1.0 / call,
        "grad_norm": 0.5,
        "lr": 1e-3,
    }
    return {**record, **more}


@pytest.fixture
def write(tmp_path):
    """Write a run directory; returns it."""

    def make(records, summary=None, number=1, torn="", directory="run"):
        where = tmp_path / directory
        where.mkdir(exist_ok=True)
        suffix = "" if number == 1 else f"-{number}"
        text = "".join(json.dumps(record) + "\n" for record in records)
        (where / f"telemetry{suffix}.jsonl").write_text(text + torn)
        if summary is not None:
            (where / f"summary{suffix}.json").write_text(json.dumps(summary))
        return where

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Train with a bad batch at call 21 and a NaN weight before call 131; directory, optimizer."""
    where = tmp_path_factory.mktemp("runs") / "trained"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(24, 32), torch.nn.GELU(), torch.nn.Linear(32, 24)
        )
    opt = StableOptimizer(
        torch.optim.AdamW(model.parameters(), lr=1e-2),
        model=model,
        sensors=Sensors(budget=None),
        transforms=[ClipGradNorm(1.0)],
        telemetry=JsonLines(where, every=2),
    )
    for call in range(1, 151):
        x = torch.randn(32, 24, generator=generator)
        if call == 131:
            model[0].weight.data[1, 2] = math.nan
        opt.zero_grad()
        loss = (model(x * math.nan if call == 21 else x) - x).pow(2).mean()
        loss.backward()
        opt.observe(loss=loss, accuracy=1 - 1 / call)
        opt.step()
    opt.close()
    torch.set_num_threads(threads)
    return where, opt


@pytest.fixture
def page(trained):
    """Return the page of a run directory, parsed; of the trained run without one."""

    def read(where=None, title="a run"):
        from stableopt.commands.report.page import build_page

        return Page(build_page(load_run(where or trained[0]), title))

    return read
