"""What people do with transforms: freeze layers, mistype signals, bring presets and groups."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from stableopt import (
    AdaptiveWeightDecay,
    ConfigError,
    LoRANormClamp,
    MaxNorm,
    QKClip,
    SpectralCap,
    SpectralNormalization,
    StableOptimizer,
    UpdateCap,
    above,
    below,
)
from stableopt.layouts import find_attention, find_lora_pairs
from stableopt.sensors import Sampler, Sensors, SpectralNorm
from tests.contract.bits import assert_same

DENSE = Sensors(use=(SpectralNorm(),), sampler=Sampler(ratio=1.0, every=1), budget=None)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4))


def step(opt, model, **signals):
    opt.zero_grad()
    model(torch.ones(8, 16)).pow(2).mean().backward()
    opt.observe(**signals)
    opt.step()


def steps_of(opt):
    return [known["steps"] for known in opt.summary()["transforms"]]


@pytest.mark.parametrize("shape", [(256, 64), (192, 48), (100, 40), (64, 64)])
def test_a_cap_sees_what_it_left_outside_of_its_subspace(shape):
    """Far more than the subspace holds is above the limit, and the matrix is tall."""
    torch.manual_seed(0)
    weight = nn.Parameter((torch.rand(shape) - 0.5) / 4)
    opt = StableOptimizer(
        torch.optim.SGD([weight], lr=0.1), sensors=DENSE, transforms=[SpectralCap(0.5)]
    )
    for _ in range(3):
        weight.grad = torch.zeros(shape)
        opt.step()
    assert torch.linalg.matrix_norm(weight.detach(), 2).item() <= 0.5 * (1 + 1e-4)
    assert opt.ledger[0].acts[0].after[0] == pytest.approx(0.5, rel=1e-4)


class TestFrozen:
    BOUNDS = (
        MaxNorm(0.1),
        SpectralNormalization(0.1),
        SpectralCap(0.1),
        AdaptiveWeightDecay(when="loss > 1e-9", base=0.5, decoupled=True),
    )

    @pytest.mark.parametrize("transform", BOUNDS, ids=lambda t: type(t).__name__)
    def test_what_is_frozen_is_left_alone_from_the_beginning_or_later(self, transform):
        model = net()
        model[0].requires_grad_(False)
        before = model[0].weight.detach().clone()
        adamw = torch.optim.AdamW(model.parameters(), lr=0.1)
        opt = StableOptimizer(adamw, model=model, sensors=DENSE, transforms=[transform])
        for _ in range(2):
            step(opt, model, loss=1.0)
        assert_same(model[0].weight.detach(), before)

        model[0].requires_grad_(True)
        step(opt, model, loss=1.0)
        assert not torch.equal(model[0].weight, before)
        model.requires_grad_(False)
        model[2].bias.requires_grad_(True)
        before = model[2].weight.detach().clone()
        for _ in range(2):
            step(opt, model, loss=1.0)
        assert_same(model[2].weight.detach(), before)

    def test_nothing_but_frozen_weights_is_an_error(self):
        model = net()
        model[0].requires_grad_(False)
        adamw = torch.optim.AdamW(model.parameters())
        with pytest.raises(ConfigError, match="finds no parameter that it can act on"):
            StableOptimizer(adamw, model=model, transforms=[MaxNorm(1.0, params="0.weight")])


class TestSignals:
    @pytest.mark.parametrize("guard", [None, False])
    def test_the_loss_is_one(self, guard):
        model = net()
        decay = AdaptiveWeightDecay(when="loss > 0.5", base=0.1)
        opt = StableOptimizer(
            torch.optim.AdamW(model.parameters()), model=model, guard=guard, transforms=[decay]
        )
        for loss in (0.4, 0.6, 0.7, 0.2):
            step(opt, model, loss=loss)
        assert steps_of(opt) == [2]

    def test_one_that_never_comes_is_asked_for_once(self, caplog):
        model = net()
        decay = AdaptiveWeightDecay(when="los_gap > 0.5 | gap > 0.1")
        opt = StableOptimizer(torch.optim.AdamW(model.parameters()), transforms=[decay])
        for _ in range(210):
            step(opt, model, gap=0.0)
        told = [record for record in caplog.records if "no value of los_gap" in record.message]
        assert len(told) == 1

    @pytest.mark.parametrize(
        ("shape", "heads_apart"),
        [((4,), True), ((2, 4), True), ((2, 4, 6, 6), True), ((3,), False)],
    )
    def test_attention_logits_by_head_in_the_shapes_they_come_in(self, shape, heads_apart, caplog):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 4, 32, norm_first=True, batch_first=True)
        opt = StableOptimizer(
            torch.optim.SGD(layer.parameters(), lr=0.0), model=layer, transforms=[QKClip(10.0)]
        )
        logits = torch.full(shape, 2.0)
        logits.select(1 if len(shape) in (2, 4) else 0, 1).fill_(1000.0)
        before = layer.self_attn.in_proj_weight.detach().clone()
        layer(torch.randn(2, 6, 16)).pow(2).mean().backward()
        opt.observe(max_attention_logit={"self_attn": logits})
        opt.step()
        after = layer.self_attn.in_proj_weight.detach()
        same = [torch.equal(a, b) for a, b in zip(before.split(4), after.split(4), strict=True)]
        assert same[:4] == ([True, False, True, True] if heads_apart else same[:4])
        assert ("has no dimension of the 4 heads" in caplog.text) is not heads_apart

    def test_a_block_that_does_not_exist_is_told(self, caplog):
        layer = nn.TransformerEncoderLayer(16, 4, 32, norm_first=True, batch_first=True)
        opt = StableOptimizer(
            torch.optim.SGD(layer.parameters(), lr=0.0), model=layer, transforms=[QKClip(10.0)]
        )
        layer(torch.randn(2, 6, 16)).pow(2).mean().backward()
        opt.observe(max_attention_logit={"h.9.attn": 250.0})
        opt.step()
        assert "'h.9.attn', and there is no such attention block" in caplog.text


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "soft", "when": "relative_rank > 0.4"},
        {"mode": "soft", "when": above("fiedler", 0.4)},
        {"mode": "soft", "when": "spectral_norm > 4"},
        {"limit": 4.0, "when": "spectral_norm < 2"},
        {"limit": 4.0, "when": below("condition_number", 10.0) | above("spectral_norm", 4.0)},
    ],
)
def test_a_cap_that_cannot_move_its_trigger_is_refused(options):
    with pytest.raises(ConfigError, match=r"when=.* cannot work: .* does not (fall|rise)"):
        SpectralCap(**options)


@pytest.mark.parametrize("groups", [False, True])
def test_bounds_hold_after_the_cap_of_the_step_whatever_the_order(groups):
    model = net()
    with torch.no_grad():
        model[0].weight.mul_(10)
    own = {"transforms": [UpdateCap(0.01)]} if groups else {}
    adamw = torch.optim.AdamW([{"params": model.parameters(), **own}], lr=0.1)
    given = [MaxNorm(1.0, params="0.weight"), *([] if groups else [UpdateCap(0.01)])]
    opt = StableOptimizer(adamw, model=model, transforms=given)
    for _ in range(3):
        step(opt, model)
        assert model[0].weight.norm().item() <= 1.0 + 1e-4


def test_a_group_that_is_added_to_the_inner_optimizer_brings_its_transforms():
    model = net()
    adamw = torch.optim.AdamW(model[0].parameters())
    opt = StableOptimizer(adamw, model=model)
    adamw.add_param_group({"params": model[2].parameters(), "transforms": [MaxNorm(0.1)]})
    step(opt, model)
    assert model[2].weight.norm().item() <= 0.1 * (1 + 1e-4)
    assert "transforms" not in adamw.param_groups[1]
    assert opt.summary()["transforms"][0]["group"] == 1


def test_a_configuration_adds_to_its_preset_and_replaces_what_moves_the_same():
    model = net()
    config = {"preset": "robust", "transforms": [{"MaxNorm": {"limit": 9.0}}, {"UpdateCap": {}}]}
    opt = StableOptimizer.from_config(torch.optim.AdamW(model.parameters()), config, model=model)
    kinds = [known["transform"].split("(")[0] for known in opt.summary()["transforms"]]
    assert kinds == ["ClipGradNorm", "MaxNorm", "UpdateCap"]


def test_a_name_with_brackets_is_selected_by_itself():
    model = nn.ModuleDict({"a[0]": nn.Linear(2, 2)})
    opt = StableOptimizer(
        torch.optim.AdamW(model.parameters()),
        model=model,
        transforms=[MaxNorm(1.0, params="a[0].weight")],
    )
    assert opt.summary()["transforms"][0]["parameters"] == 1


class Plain(nn.Module):
    def __init__(self, a, b, **known):
        super().__init__()
        self.A, self.B = nn.Parameter(torch.ones(a)), nn.Parameter(torch.ones(b))
        for name, value in known.items():
            setattr(self, name, value)


def test_factors_that_are_stored_the_other_way_round_are_refused():
    model = Plain((16, 4), (4, 16))
    with pytest.raises(ConfigError, match="x @ A @ B has to be stored the other way round"):
        StableOptimizer(
            torch.optim.AdamW(model.parameters()), model=model, transforms=[LoRANormClamp(3.0)]
        )


@pytest.mark.parametrize(
    ("known", "scale"),
    [
        ({"scaling": torch.tensor(8.0)}, 8.0),
        ({"scaling": -2.0}, 2.0),
        ({"lora_alpha": 16, "r": 4}, 4.0),
        ({"scaling": "large"}, 1.0),
        ({"scaling": math.inf}, 1.0),
    ],
)
def test_the_scale_of_an_adapter(known, scale):
    model = Plain((2, 4), (4, 2), **known)
    names = [name for name, _ in model.named_parameters()]
    assert find_lora_pairs(names, model)[0].scale == scale


class Tempered(nn.Module):
    """Attention whose logits are more than q·k."""

    def __init__(self, extra):
        super().__init__()
        self.heads = 2
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(8, 8) for _ in range(3))
        if extra == "temperature":
            self.temp = nn.Parameter(torch.tensor(30.0))
        elif extra == "table":
            self.relative = nn.Embedding(16, 2)

    def forward(self, x):
        q, k = self.q_proj(x), self.k_proj(x)
        return (q @ k.mT).softmax(-1) @ self.v_proj(x)


class Block(nn.Module):
    def __init__(self, extra):
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(8), Tempered(extra)

    def forward(self, x):
        return x + self.attn(self.norm(x))


@pytest.mark.parametrize("extra", ["none", "temperature", "table"])
def test_weights_allow_no_bound_where_logits_are_more_than_products(extra):
    (layout,) = find_attention(Block(extra))
    assert (layout.norm is None) is (extra != "none")
