"""Presets, as keyword arguments and by name."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from stableopt import ConfigError, Guard, StableOptimizer, presets
from stableopt.telemetry import read_events

GRADIENCE = Guard(
    every=100, max_rollbacks=3, lr_backoff=0.5, max_weight=1e6, act_on_risk=True
).as_config()


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

    assert opt.summary()["guard"] == Guard().as_config()


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


class TestRobust:
    def test_no_step_is_longer_than_its_share_whatever_the_learning_rate(self):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 8))
        adamw = torch.optim.AdamW(model.parameters(), lr=100.0)
        opt = StableOptimizer(adamw, model=model, **presets.robust())
        for _ in range(30):
            before = [p.detach().clone() for p in model.parameters()]
            opt.zero_grad()
            model(torch.randn(32, 8)).pow(2).mean().backward()
            opt.step()
            for p, old in zip(model.parameters(), before, strict=True):
                if p.dim() == 2:
                    unit = (p.numel() / p[0].numel()) ** 0.5
                    size = min(max(old.norm().item(), 0.5 * unit), 2 * unit)
                    assert (p - old).norm().item() <= 0.02 * size * (1 + 1e-4)
        assert not any(event.intervened for event in opt.ledger)

    def test_where_there_is_no_attention_that_is_a_note(self, model, adamw, caplog):
        with caplog.at_level("INFO", logger="stableopt"):
            opt = StableOptimizer(adamw, model=model, **presets.robust())

        assert len(opt.summary()["transforms"]) == 2
        assert "QKClip(" in caplog.text
        assert "is left out" in caplog.text

    def test_it_finds_attention(self):
        layer = torch.nn.TransformerEncoderLayer(8, 2, norm_first=True)
        opt = StableOptimizer(
            torch.optim.AdamW(layer.parameters()), model=layer, **presets.robust()
        )

        kinds = [known["transform"].split("(")[0] for known in opt.summary()["transforms"]]
        assert kinds == ["ClipGradNorm", "UpdateCap", "QKClip"]


class TestAssr:
    """The reproduction acts, once per reading, with the λ of the document."""

    def test_it_adds_the_gradient_of_the_penalty(self):
        model = torch.nn.Linear(4, 4, bias=False)
        with torch.no_grad():
            model.weight.copy_(torch.diag(torch.tensor([1.0, 1.0, 1.0, 1e-5])))  # κ = 1e5
        sgd = torch.optim.SGD(model.parameters(), lr=1e-12)
        opt = StableOptimizer(sgd, model=model, **presets.assr())
        weight, added = model.weight.detach().clone(), []
        for _ in range(12):
            model.weight.grad = torch.zeros(4, 4)
            opt.step()
            added.append(model.weight.grad.clone())

        acted = [step for step, gradient in enumerate(added) if bool(gradient.any())]
        assert acted == [0, 9]  # where readings have come, and nowhere else
        assert torch.allclose(added[0], 2 * 2e-5 * 11 * weight)

    def test_without_a_model_it_cannot_tell_layers(self, adamw):
        with pytest.raises(ConfigError, match="needs model="):
            StableOptimizer(adamw, **presets.assr())

    def test_by_name(self, model, adamw):
        opt = StableOptimizer.from_config(adamw, {"preset": "assr"}, model=model)

        assert opt.summary()["sensors"]["use"] == ["AssrFiedler()", "AssrConditionNumber()"]
