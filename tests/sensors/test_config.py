"""Sensors from a plain dict, alone and on top of a preset."""

from __future__ import annotations

import pytest
import torch

from stableopt import ConfigError, StableOptimizer


def build(config):
    model = torch.nn.Linear(4, 3)
    return StableOptimizer.from_config(torch.optim.AdamW(model.parameters()), config, model=model)


def options(config):
    return build(config)._loop.sensing.options


@pytest.mark.parametrize("value", [None, True])
def test_the_default_set(value):
    assert options({"sensors": value}) == options({})


@pytest.mark.parametrize("value", [False, [], {"use": []}])
def test_none(value):
    assert build({"sensors": value})._loop.sensing is None


def test_a_list_of_names_and_options():
    found = options({"sensors": ["SpectralNorm", {"SampledSpectrum": {"rows": 64}}]})
    assert [repr(sensor) for sensor in found.use] == [
        "SpectralNorm()",
        "SampledSpectrum(rows=64)",
    ]


def test_everything():
    config = {
        "use": ["SpectralNorm", {"ConditionNumber": {"always": True}}],
        "sampler": {"ratio": 0.5, "every": 20, "order": "random", "seed": 3},
        "params": ["w*"],
        "heads": [],
        "budget": None,
    }
    found = options({"sensors": config})
    assert [repr(sensor) for sensor in found.use] == [
        "SpectralNorm()",
        "ConditionNumber(always=True)",
    ]
    assert found.sampler.coverage == 40
    assert found.params == ("w*",)
    assert found.heads == ()
    assert found.budget is None


def test_on_top_of_a_preset():
    found = options({"preset": "gradience", "sensors": {"budget": 0.05}})
    assert found.budget == 0.05
    assert found.risk == "kappa_tilde"
    assert found.sampler.every == 50
    with pytest.raises(ConfigError, match="act_on_risk=True needs sensors"):
        build({"preset": "gradience", "sensors": False})
    config = {"preset": "gradience", "sensors": False, "guard": {"act_on_risk": False}}
    assert build(config)._loop.sensing is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("SpectralNorm", "sensors='SpectralNorm' must be a list"),
        (["SpectralNrom"], "sensors entry='SpectralNrom' is not known"),
        ([{"SpectralNorm": {}, "KappaTilde": {}}], "must have one key"),
        ([{"SampledSpectrum": {"row": 3}}], "SampledSpectrum option='row' is not known"),
        ([{"SampledSpectrum": 3}], "SampledSpectrum=3 must be a dict"),
        ({"every": 10}, "sensors option='every' is not known"),
        ({"sampler": {"evry": 10}}, "sampler option='evry' is not known"),
        ({"sampler": {"every": 0}}, "every=0 must be"),
        ({"params": ["nothing*"]}, "matches no parameter"),
        (3, "sensors=3 must be a list"),
    ],
)
def test_bad_values(value, message):
    with pytest.raises(ConfigError, match=message):
        build({"sensors": value})
