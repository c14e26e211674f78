"""Output heads: the weight that is found makes the logits from what its norm gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks.common import workload
from benchmarks.learning_rate import model as lr_model
from benchmarks.learning_rate import other_models as lr_other_models
from stableopt.commands.demo.model import GPT, ModelOptions
from stableopt.errors import ConfigError
from stableopt.layouts import OutputHead, find_head, norm_values
from tests.layouts.models import TOKENS, TRANSFORMERS
from tests.layouts.probe import spread

LANGUAGE_MODELS = [name for name in TRANSFORMERS if name != "bert"]


def logits(model, tokens):
    out = model(tokens)
    return out if isinstance(out, torch.Tensor) else out.logits


def prove(model, head, tokens):
    """Prove a head by computing the logits from the input of its norm."""
    parameters = dict(model.named_parameters())
    norms = {}
    for name, module in model.named_modules():
        if head.norm.gain == f"{name}.weight":
            module.register_forward_hook(lambda _, args, out: norms.update(x=args[0]))
    with torch.no_grad():
        expected = logits(model, tokens)
    x = norms["x"]
    if head.norm.centred:
        x = x - x.mean(-1, keepdim=True)
    x = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    gain, shift = norm_values(head.norm, parameters)
    x = x * gain if shift is None else x * gain + shift
    bias = None if head.bias is None else parameters[head.bias]
    made = functional.linear(x, parameters[head.weight], bias)
    torch.testing.assert_close(made, expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_language_models_of_transformers(name):
    model = spread(TRANSFORMERS[name]()).eval()
    head = find_head(model)
    assert head.tied is (name in ("gpt2", "gemma", "gemma3", "opt"))
    prove(model, head, TOKENS)


@pytest.mark.parametrize(
    "model",
    [
        GPT(ModelOptions(context=16, width=32, depth=1)),
        workload.GPT(workload.SIZES["tiny"]),
        lr_model.GPT(lr_model.Shape(width=32, context=16)),
        nn.Sequential(nn.Embedding(50, 8), nn.LayerNorm(8), nn.Identity(), nn.Linear(8, 9)),
    ],
    ids=lambda model: type(model).__module__,
)
def test_plain_models(model):
    head = find_head(spread(model))
    assert head.tied is (type(model) is GPT)
    prove(model, head, TOKENS)


def test_names_of_the_demo():
    head = find_head(GPT(ModelOptions(context=16, width=32, depth=1)))
    assert (head.weight, head.norm.gain, head.norm.bias) == (
        "bytes.weight",
        "norm.weight",
        "norm.bias",
    )
    assert find_head(lr_other_models.Lstm()) == OutputHead(weight="head.weight", bias="head.bias")


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Embedding(9, 8), nn.LayerNorm(8), nn.Dropout(0.1), nn.Linear(8, 9)],
        [nn.Embedding(9, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 9)],
        [nn.Embedding(9, 8), nn.BatchNorm1d(8), nn.Linear(8, 9)],
        [nn.Linear(8, 9)],
    ],
)
def test_a_norm_that_is_not_right_before_it_is_unknown(layers):
    head = find_head(nn.Sequential(*layers))
    assert head.weight == f"{len(layers) - 1}.weight"
    assert head.norm is None


class Unreadable(nn.Module):
    """Ends with one layer, in a way that the reader of the source does not follow."""

    def __init__(self, last):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.last = last

    def forward(self, x):
        return {"out": self.last(self.first(x))}


def test_the_last_layer_is_the_head_where_forward_does_not_say():
    assert find_head(Unreadable(nn.Linear(8, 9))).weight == "last.weight"
    assert find_head(Unreadable(nn.LayerNorm(8))) is None


def test_models_without_a_head():
    assert find_head(TRANSFORMERS["bert"]()) is None
    assert find_head(nn.Sequential(nn.Embedding(9, 8))) is None
    assert find_head(nn.ReLU()) is None


def test_wrappers_do_not_confuse_names():
    model = workload.GPT(workload.SIZES["tiny"])
    assert find_head(torch.compile(model, backend="eager")) == find_head(model)


def test_a_head_by_hand_is_checked():
    with pytest.raises(ConfigError, match="weight='' must be the name of a parameter"):
        OutputHead(weight="")
