"""``stableopt memory`` says what runs take."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from stableopt import ConfigError, Guard, StableOptimizer
from stableopt.commands.command_line import app
from stableopt.commands.memory.estimate import STATE, WIDTHS, estimate_memory, parse_count

OPTIMIZERS = {
    "adadelta": torch.optim.Adadelta,
    "adagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "adamw": torch.optim.AdamW,
    "amsgrad": lambda params: torch.optim.Adam(params, amsgrad=True),
    "asgd": torch.optim.ASGD,
    "adafactor": torch.optim.Adafactor,
    "muon": torch.optim.Muon,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "rprop": torch.optim.Rprop,
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1),
    "sgd-momentum": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
}


def slot_of(model, optimizer, slots=3):
    """Return what a run of two steps says of its snapshots."""
    opt = StableOptimizer(optimizer, model=model, sensors=(), guard=Guard(slots=slots))
    for _ in range(2):
        opt.zero_grad()
        model(torch.ones(4, 1000, dtype=next(model.parameters()).dtype)).pow(2).mean().backward()
        opt.step()
    return opt.summary()["snapshots"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_snapshots_of_real_optimizers(name):
    model = torch.nn.Linear(1000, 1000, bias=False)
    kept = slot_of(model, OPTIMIZERS[name](model.parameters()))
    found = estimate_memory(1e6, optimizer=name)
    assert found.slot == pytest.approx(kept["slot_bytes"], abs=64)  # step counters
    assert found.snapshots == pytest.approx(kept["bytes_at_most"], abs=200)


def test_every_optimizer_but_the_foreign_one_is_checked():
    assert set(OPTIMIZERS) == set(STATE) - {"lion"}


@pytest.mark.parametrize("dtype", WIDTHS)
def test_snapshots_in_every_dtype(dtype):
    if dtype == "float16":
        assert WIDTHS[dtype] == torch.float16.itemsize
        return
    model = torch.nn.Linear(1000, 16, bias=False, dtype=getattr(torch, dtype))
    kept = slot_of(model, torch.optim.AdamW(model.parameters()))
    assert estimate_memory(16e3, dtype=dtype).slot == pytest.approx(kept["slot_bytes"], abs=64)


def test_frozen_parameters_and_buffers():
    """A snapshot holds what the optimizer was given, and the buffers."""
    model = torch.nn.Sequential(torch.nn.Linear(1000, 100, bias=False), torch.nn.BatchNorm1d(100))
    model[0].requires_grad_(False)
    kept = slot_of(model, torch.optim.AdamW(model[1].parameters()), slots=2)
    found = estimate_memory(100_200, trainable=200, buffers=200, slots=2)
    assert found.slot == pytest.approx(kept["slot_bytes"], abs=64)
    assert found.snapshots == pytest.approx(kept["bytes_at_most"], abs=200)
    assert found.total - found.bare == found.snapshots + found.buffers


def test_totals():
    found = estimate_memory(7e9, slots=2)
    assert (found.weights, found.gradients, found.state) == (28e9, 28e9, 56e9)
    assert (found.bare, found.snapshots, found.total) == (112e9, 168e9, 280e9)


@pytest.mark.parametrize(
    ("text", "number"), [("7e9", 7e9), ("7B", 7e9), ("350m", 35e7), ("1_000", 1e3), (" 2k", 2e3)]
)
def test_numbers(text, number):
    assert parse_count("params", text) == number


@pytest.mark.parametrize("text", ["", "B", "seven", "7 GB", "7X"])
def test_what_is_no_number(text):
    with pytest.raises(ConfigError, match=f"params='{text}' must be a number such as 7e9"):
        parse_count("params", text)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"params": 0}, "params=0 must be at least 1"),
        ({"params": float("nan")}, "params=nan must be at least 1"),
        ({"params": float("inf")}, "params=inf must be at least 1"),
        ({"trainable": 11}, "trainable=11 must be at least 0 and at most 10"),
        ({"buffers": -1}, "buffers=-1 must be at least 0"),
        ({"slots": 1}, "slots=1 must be 0 or at least 2"),
        ({"slots": -3}, "slots=-3 must be 0 or at least 2"),
        ({"dtype": "float8"}, "dtype='float8' is not known"),
        ({"optimizer": "adamv"}, "did you mean 'adam"),
    ],
)
def test_what_cannot_be(options, said):
    with pytest.raises(ConfigError, match=said):
        estimate_memory(**{"params": 10, **options})


def invoke(*arguments):
    return CliRunner().invoke(app, ["memory", *arguments])


def test_the_command():
    result = invoke("--params", "7e9", "--optimizer", "adamw", "--slots", "3")
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines == [
        "weights 28.000 GB",
        "gradients 28.000 GB",
        "optimizer state 56.000 GB",
        "without stableopt 112.000 GB",
        "3 snapshots of 84 GB 252.000 GB",
        "with stableopt 364.000 GB",
    ]


def test_the_command_with_buffers():
    lines = invoke("--params", "1M", "--buffers", "1M", "--slots", "0").stdout
    assert "a copy of the buffers" in lines
    assert lines.splitlines()[-1].split() == ["with", "stableopt", "24.000", "MB"]


def test_json():
    result = invoke("--params", "7B", "--trainable", "20M", "--dtype", "bfloat16", "--json")
    assert json.loads(result.stdout)["slot"] == 3 * 20e6 * 2


@pytest.mark.parametrize("arguments", [("--params", "x"), ("--params", "1", "--slots", "1")])
def test_what_cannot_be_estimated_is_one_line(arguments):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("Error: ")
