"""Pairs of LoRA factors, by the names that adapters give them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from stableopt.errors import ConfigError
from stableopt.layouts import LoraPair, find_lora_pairs


class PeftLinear(nn.Module):
    """A linear layer as peft adapts it, in its names."""

    def __init__(self, base, adapters, r=3, lora_bias=False):
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict()
        self.lora_B = nn.ModuleDict()
        self.lora_embedding_A = nn.ParameterDict()
        self.lora_embedding_B = nn.ParameterDict()
        self.scaling = {}
        for adapter, alpha in adapters.items():
            self.lora_A[adapter] = nn.Linear(base.in_features, r, bias=False)
            self.lora_B[adapter] = nn.Linear(r, base.out_features, bias=lora_bias)
            self.scaling[adapter] = alpha / r

    def forward(self, x):
        out = self.base_layer(x)
        for adapter, scale in self.scaling.items():
            out = out + self.lora_B[adapter](self.lora_A[adapter](x)) * scale
        return out


class PeftEmbedding(nn.Module):
    """An embedding as peft adapts it: factors (r, vocabulary) and (dim, r)."""

    def __init__(self, base, alpha, r=3):
        super().__init__()
        self.base_layer = base
        self.scaling = {"default": alpha / math.sqrt(r)}
        a, b = torch.randn(r, base.num_embeddings), torch.randn(base.embedding_dim, r)
        self.lora_embedding_A = nn.ParameterDict({"default": nn.Parameter(a)})
        self.lora_embedding_B = nn.ParameterDict({"default": nn.Parameter(b)})

    def forward(self, tokens):
        a, b = self.lora_embedding_A["default"], self.lora_embedding_B["default"]
        looked_up = functional.embedding(tokens, a.T)
        return self.base_layer(tokens) + (looked_up @ b.T) * self.scaling["default"]


def names_of(model):
    return [name for name, _ in model.named_parameters()]


def update_of(pair, model):
    parameters = dict(model.named_parameters())
    return pair.scale * parameters[pair.b] @ parameters[pair.a]


def test_a_linear_layer_of_peft_and_its_adapters():
    torch.manual_seed(0)
    model = nn.Sequential(PeftLinear(nn.Linear(5, 4), {"default": 6, "other": 12}))
    pairs = find_lora_pairs(names_of(model), model)
    assert pairs == (
        LoraPair(
            name="0.default", a="0.lora_A.default.weight", b="0.lora_B.default.weight", scale=2.0
        ),
        LoraPair(name="0.other", a="0.lora_A.other.weight", b="0.lora_B.other.weight", scale=4.0),
    )
    x = torch.randn(7, 5)
    expected = model[0].base_layer(x) + x @ sum(update_of(pair, model) for pair in pairs).T
    torch.testing.assert_close(model(x), expected)


def test_an_embedding_of_peft():
    torch.manual_seed(0)
    model = nn.Sequential(PeftEmbedding(nn.Embedding(9, 4), 6))
    (pair,) = find_lora_pairs(names_of(model), model)
    assert (pair.a, pair.b) == ("0.lora_embedding_A.default", "0.lora_embedding_B.default")
    assert pair.scale == pytest.approx(6 / math.sqrt(3))
    tokens = torch.arange(9)
    expected = model[0].base_layer(tokens) + update_of(pair, model).T[tokens]
    torch.testing.assert_close(model(tokens), expected)


def test_a_bias_of_an_adapter_is_no_factor():
    model = PeftLinear(nn.Linear(5, 4), {"default": 6}, lora_bias=True)
    assert "lora_B.default.bias" in names_of(model)
    (pair,) = find_lora_pairs(names_of(model), model)
    assert pair.name == "default"


def test_wrappers_do_not_confuse_the_scale():
    model = PeftLinear(nn.Linear(5, 4), {"default": 6})
    names = [f"layer.{name}" for name in names_of(model)]
    compiled = torch.compile(nn.ModuleDict({"layer": model}), backend="eager")
    (pair,) = find_lora_pairs(names, compiled)
    assert (pair.name, pair.scale) == ("layer.default", 2.0)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("h.lora_A", "h.lora_B"),
        ("h.lora_A.weight", "h.lora_B.weight"),
        ("h.lora_a.weight", "h.lora_b.weight"),
        ("h.lora_down.weight", "h.lora_up.weight"),
        ("h.A", "h.B"),
        ("h.A.weight", "h.B.weight"),
    ],
)
def test_other_namings(a, b):
    names = [b, "h.weight", a, "h.bias"]
    assert find_lora_pairs(names) == (LoraPair(name="h", a=a, b=b),)


@pytest.mark.parametrize(
    "names",
    [
        ["h.lora_A.weight"],
        ["h.lora_A.weight", "g.lora_B.weight"],
        ["h.lora_A.one.weight", "h.lora_B.two.weight"],
        ["A.h.q.weight", "B.h.q.weight"],
        ["h.lora_A.default.bias", "h.lora_B.default.bias"],
        ["h.weight"],
    ],
)
def test_what_is_no_pair_is_left_out(names):
    assert find_lora_pairs(names) == ()


def test_a_number_is_the_scale_of_a_plain_layer():
    class Plain(nn.Module):
        def __init__(self, scaling):
            super().__init__()
            self.lora_A = nn.Parameter(torch.ones(2, 5))
            self.lora_B = nn.Parameter(torch.ones(4, 2))
            self.scaling = scaling

    for scaling, expected in ((0.5, 0.5), (None, 1.0), (True, 1.0), (math.nan, 1.0)):
        model = Plain(scaling)
        assert find_lora_pairs(names_of(model), model)[0].scale == expected


def test_a_pair_by_hand_is_checked():
    with pytest.raises(ConfigError, match="must be the names of two parameters"):
        LoraPair(name="h", a="w", b="w")
    with pytest.raises(ConfigError, match="scale=0 must be a number above 0"):
        LoraPair(name="h", a="v", b="w", scale=0)
