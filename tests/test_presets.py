"""Presets, as keyword arguments and by name."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict

import pytest
import torch

from stableopt import ConfigError, Guard, StableOptimizer, presets
from stableopt.telemetry import read_events

GRADIENCE = asdict(
    Guard(every=100, max_rollbacks=3, lr_backoff=0.5, max_weight=1e6, act_on_risk=True)
)


@pytest.fixture
def model():
    return torch.nn.Linear(2, 2)


@pytest.fixture
def adamw(model):
    return torch.optim.AdamW(model.parameters())


def train(opt, model, steps):
    for _ in range(steps):
        opt.zero_grad()
        model(torch.ones(1, 2)).sum().backward()
        opt.step()


def test_gradience(adamw):
    opt = StableOptimizer(adamw, **presets.gradience())

    assert opt.summary()["guard"] == GRADIENCE
    assert opt.summary()["telemetry"] is None


def test_gradience_writes_every_tenth_step(model, adamw, tmp_path):
    opt = StableOptimizer(adamw, model=model, **presets.gradience(tmp_path))
    train(opt, model, 25)
    opt.close()

    assert [event["step"] for event in read_events(tmp_path / "telemetry.jsonl")] == [1, 10, 20]
    assert (tmp_path / "summary.json").exists()


def test_gradience_opens_nothing_by_itself(tmp_path):
    presets.gradience(tmp_path / "new")

    assert list(tmp_path.iterdir()) == []


def test_gradience_limits_weights(model, adamw):
    opt = StableOptimizer(adamw, model=model, **presets.gradience())
    train(opt, model, 3)
    with torch.no_grad():
        model.weight[0, 0] = 2e6
    train(opt, model, 21)

    assert opt.summary()["rollbacks"] == 1
    assert opt.ledger[0].findings[0].kind == "huge_weight"
    assert float(model.weight.detach().abs().max()) < 10


def test_by_name(adamw):
    opt = StableOptimizer.from_config(adamw, {"preset": "gradience"})

    assert opt.summary()["guard"] == GRADIENCE


def test_what_is_given_beside_it_comes_on_top(adamw, tmp_path):
    config = {
        "preset": "gradience",
        "guard": {"every": 50},
        "transforms": [{"ClipGradNorm": {"max_norm": 1.0}}],
        "telemetry": str(tmp_path),
    }
    opt = StableOptimizer.from_config(adamw, config)
    opt.close()

    assert opt.summary()["guard"] == {**GRADIENCE, "every": 50}
    (clip,) = opt.summary()["transforms"]
    assert clip["transform"] == "ClipGradNorm(max_norm=1.0, params=None)"
    assert (tmp_path / "summary.json").exists()
    assert config["preset"] == "gradience"


@pytest.mark.parametrize("guard", [None, True])
def test_the_guard_of_the_preset_stays(adamw, guard):
    opt = StableOptimizer.from_config(adamw, {"preset": "gradience", "guard": guard})

    assert opt.summary()["guard"] == GRADIENCE


def test_the_guard_of_the_preset_can_be_left_out(adamw):
    opt = StableOptimizer.from_config(adamw, {"preset": "gradience", "guard": False})

    assert opt.summary()["guard"] is False


def test_no_preset(adamw):
    opt = StableOptimizer.from_config(adamw, {"preset": None})

    assert opt.summary()["guard"] == asdict(Guard())


@pytest.mark.parametrize("name", ["gradient", 3, ["gradience"]])
def test_unknown(adamw, name):
    with pytest.raises(ConfigError, match=r"^preset=.* is not known: use one of assr, gradience"):
        StableOptimizer.from_config(adamw, {"preset": name})


def test_presets_share_nothing():
    first, second = presets.gradience(), presets.gradience()

    assert first == second
    assert first is not second
    assert all(make() for make in presets.PRESETS.values())


def test_imported_with_the_package():
    code = "import stableopt; stableopt.presets.gradience()"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
