"""QKClip: the logits that weights allow come under the limit, head by head."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from benchmarks.learning_rate import model as lr_model
from stableopt import QKClip, StableOptimizer
from stableopt.errors import ConfigError
from stableopt.layouts import (
    AttentionLayout,
    NormLayout,
    Projection,
    find_attention,
    key_rows,
    logit_bound,
    query_rows,
)
from tests.contract.bits import assert_same
from tests.contract.scenario import copied
from tests.layouts.models import TOKENS, TRANSFORMERS
from tests.layouts.probe import logits_of, spread
from tests.sensors.runs import stand_still
from tests.transforms.runs import changes, stepped

ROUNDING = {torch.float64: 1e-5, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}


class Block(nn.Module):
    """Attention behind a norm, in all the ways that queries and keys are made."""

    def __init__(self, heads=4, kv_heads=4, head_dim=8, *, packed=False, bias=True, norm=True):
        super().__init__()
        torch.manual_seed(0)
        width = heads * head_dim
        self.norm = nn.LayerNorm(width)
        if packed:
            self.qkv = nn.Linear(width, 3 * width, bias=bias)
        else:
            self.q = nn.Linear(width, width, bias=bias)
            self.k = nn.Linear(width, kv_heads * head_dim, bias=bias)
        spread(self)
        names = ("qkv", "qkv") if packed else ("q", "k")
        sides = [
            Projection(weight=f"{name}.weight", bias=f"{name}.bias" if bias else None, start=start)
            for name, start in zip(names, (0, width if packed else 0), strict=True)
        ]
        fed = NormLayout(features=width, gain="norm.weight", bias="norm.bias", centred=True)
        self.layout = AttentionLayout(
            name="block",
            query=sides[0],
            key=sides[1],
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm=fed if norm else None,
        )

    def bound(self, layout=None):
        return logit_bound(self.layout if layout is None else layout, parameters_of(self))

    def sides(self):
        """Return copies of query and key rows by head, biases too."""
        parameters = parameters_of(self)
        return [
            None if x is None else x.clone()
            for rows in (query_rows(self.layout, parameters), key_rows(self.layout, parameters))
            for x in rows
        ]


def parameters_of(model):
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def raised(model, heads, factor=30.0):
    """Make the queries of some heads much larger."""
    rows, bias = query_rows(model.layout, parameters_of(model))
    for head in heads:
        rows[head] *= factor
        if bias is not None:
            bias[head] *= factor
    return model


class TestWeightsAlone:
    @pytest.mark.parametrize("dtype", ROUNDING)
    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("slack", [1.0, 3.0])
    def test_the_bound_comes_under_the_limit_at_once(self, dtype, packed, bias, slack):
        model = Block(packed=packed, bias=bias).to(dtype)
        limit = float(model.bound().min()) / 50
        opt = stepped(model, QKClip(limit, slack=slack, every=1, layouts=[model.layout]), steps=4)
        after = model.bound()
        assert (after <= limit * slack * (1 + ROUNDING[dtype])).all()
        assert (after >= limit * slack * (1 - 3 * ROUNDING[dtype])).all()
        assert changes(opt) == 1

    @pytest.mark.parametrize("packed", [False, True])
    def test_other_heads_stay_bit_for_bit(self, packed):
        model = raised(Block(packed=packed), [1])
        before, others = model.sides(), copied(model.state_dict())
        limit = float(model.bound()[[0, 2, 3]].max()) * 1.01
        stepped(model, QKClip(limit, slack=1, every=1, layouts=[model.layout]))
        keep = [0, 2, 3]
        for old, new in zip(before, model.sides(), strict=True):
            assert_same(new[keep], old[keep])
            factor = float((new[1] / old[1]).mean())
            assert factor < 0.8
            torch.testing.assert_close(new[1], factor * old[1], rtol=1e-5, atol=1e-8)
        after = model.state_dict()
        for name in others:
            if name.startswith("norm"):
                assert_same(after[name], others[name])
        if packed:
            assert_same(after["qkv.weight"][64:], others["qkv.weight"][64:])
            assert_same(after["qkv.bias"][64:], others["qkv.bias"][64:])

    def test_where_heads_share_keys_the_queries_take_all_of_it(self):
        model = raised(Block(heads=4, kv_heads=2), [1])
        before = model.sides()
        limit = float(model.bound()[[0, 2, 3]].max()) * 1.01
        stepped(model, QKClip(limit, slack=1, every=1, layouts=[model.layout]))
        after = model.sides()
        assert_same(after[2], before[2])
        assert_same(after[3], before[3])
        for old, new in zip(before[:2], after[:2], strict=True):
            assert_same(new[[0, 2, 3]], old[[0, 2, 3]])
        assert float(model.bound()[1]) == pytest.approx(limit, rel=1e-5)

    def test_rotary_positions_are_bounded_by_both_norms(self):
        model = Block(bias=False)
        rotated = AttentionLayout(**{**fields(model.layout), "rope": True})
        limit = float(model.bound(rotated).min()) / 4
        stepped(model, QKClip(limit, slack=1, every=1, layouts=[rotated]))
        assert (model.bound(rotated) <= limit * (1 + 1e-5)).all()
        assert (model.bound() <= model.bound(rotated)).all()

    def test_it_looks_every_few_steps(self):
        model = raised(Block(), [0])
        opt = stepped(model, QKClip(1.0, every=3, layouts=[model.layout]), steps=2)
        assert changes(opt) == 0
        stand_still(opt)
        assert changes(opt) == 1
        assert (model.bound() <= 3.0 * (1 + 1e-5)).all()

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.parametrize("signals", [{}, {"max_attention_logit": 1e6}])
    def test_a_head_that_is_not_finite_is_left_alone(self, value, signals):
        model = Block()
        with torch.no_grad():
            model.q.weight[9, 3] = value  # in head 1
        before = model.sides()
        clip = QKClip(0.1, slack=1, every=1, layouts=[model.layout])
        stepped(model, clip, signals, guard=False)
        after = model.sides()
        for old, new in zip(before, after, strict=True):
            assert_same(new[1], old[1])
            assert (new[[0, 2, 3]].abs() < old[[0, 2, 3]].abs()).all()

    def test_state_and_places_stay(self):
        def trained(limit):
            model = Block()
            inner = torch.optim.AdamW(model.parameters(), lr=1e-3)
            clip = QKClip(limit, every=1, layouts=[model.layout])
            opt = StableOptimizer(inner, model=model, sensors=(), transforms=[clip])
            places = [p.data_ptr() for p in model.parameters()]
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            opt.step()
            assert [p.data_ptr() for p in model.parameters()] == places
            return model, changes(opt), copied(inner.state_dict()["state"])

        model, count, state = trained(0.5)
        free, none, other = trained(1e9)
        assert (count, none) == (1, 0)
        assert_same(state, other)
        assert not torch.equal(model.q.weight, free.q.weight)

    def test_a_run_under_the_limit_is_the_bare_run_bit_for_bit(self):
        def trained(transforms):
            torch.manual_seed(0)
            model = lr_model.GPT(lr_model.Shape(width=32, context=12))
            inner = torch.optim.AdamW(model.parameters(), lr=1e-3)
            opt = StableOptimizer(inner, model=model, sensors=(), transforms=transforms)
            for _ in range(4):
                opt.zero_grad()
                model(TOKENS).pow(2).mean().backward()
                opt.step()
            return copied(model.state_dict()), copied(inner.state_dict()["state"])

        assert_same(trained([QKClip(1e4, every=1)]), trained([]))


def fields(layout):
    return {name: getattr(layout, name) for name in layout.__slots__}


class TestQKNorm:
    def layout(self, model, **norm):
        both = {"features": 8, "gain": "gain_q", "bias": "shift_q", **norm}
        other = {**both, "gain": "gain_k", "bias": None}
        norms = {"q_norm": NormLayout(**both), "k_norm": NormLayout(**other), "norm": None}
        return AttentionLayout(**{**fields(model.layout), **norms})

    def model(self, dtype=torch.float32, size=20.0):
        model = Block()
        for name in ("gain_q", "shift_q", "gain_k"):
            model.register_parameter(name, nn.Parameter(size * torch.rand(8)))
        return model.to(dtype)

    @pytest.mark.parametrize("dtype", ROUNDING)
    @pytest.mark.parametrize("offset", [0.0, 1.0])
    def test_its_gains_are_scaled_and_nothing_else(self, dtype, offset):
        model = self.model(dtype)
        layout = self.layout(model, gain_offset=offset)
        before = copied(model.state_dict())
        opt = stepped(model, QKClip(20.0, slack=1, every=1, layouts=[layout]), steps=3)
        bound = model.bound(layout)
        assert (bound <= 20.0 * (1 + ROUNDING[dtype])).all()
        assert float(bound.max()) >= 20.0 * (1 - 3 * ROUNDING[dtype])
        assert changes(opt) == 1
        for name, value in copied(model.state_dict()).items():
            if not name.startswith(("gain", "shift")):
                assert_same(value, before[name])

    def test_one_norm_for_both_is_scaled_once(self):
        model = self.model()
        norm = NormLayout(features=8, gain="gain_q")
        given = {**fields(model.layout), "q_norm": norm, "k_norm": norm, "norm": None}
        layout = AttentionLayout(**given)
        stepped(model, QKClip(20.0, slack=1, every=1, layouts=[layout]))
        assert float(model.bound(layout).max()) == pytest.approx(20.0, rel=1e-5)

    @pytest.mark.parametrize("frozen", ["gain_q", "gain_k", "shift_q"])
    def test_what_is_frozen_is_never_written(self, frozen):
        model = self.model()
        layout = self.layout(model)
        before = copied(model.state_dict())
        trained = [p for name, p in model.named_parameters() if name != frozen]
        clip = QKClip(20.0, slack=1, every=1, layouts=[layout])
        opt = stepped(model, clip, parameters=trained, steps=3)
        assert_same(getattr(model, frozen).detach(), before[frozen])
        assert float(model.bound(layout).max()) == pytest.approx(20.0, rel=1e-5)
        assert changes(opt) == 1

    def test_a_norm_without_gains_cannot_be_clipped(self):
        model = self.model()
        layout = self.layout(model, gain=None, bias=None)
        trained = [p for name, p in model.named_parameters() if not name.startswith("gain")]
        with pytest.raises(ConfigError, match="finds no attention block that is trained"):
            stepped(model, QKClip(1.0, layouts=[layout]), parameters=trained)


class TestFrozen:
    @pytest.mark.parametrize("frozen", ["q.weight", "k.weight", "q.bias", "k.bias"])
    def test_a_block_of_which_a_part_is_frozen_is_left_out(self, frozen):
        model = Block()
        trained = [p for name, p in model.named_parameters() if name != frozen]
        with pytest.raises(ConfigError, match="finds no attention block that is trained"):
            stepped(model, QKClip(1.0, layouts=[model.layout]), parameters=trained)

    def test_the_norm_before_it_may_be_frozen(self):
        model = Block()
        trained = [p for name, p in model.named_parameters() if not name.startswith("norm")]
        clip = QKClip(1.0, slack=1, every=1, layouts=[model.layout])
        stepped(model, clip, parameters=trained)
        assert (model.bound() <= 1 + 1e-5).all()


class TestSignals:
    def test_each_head_by_what_was_measured_of_it(self):
        model = Block()
        before, bound = model.sides(), model.bound()
        measured = torch.tensor([5.0, 400.0, 100.0, math.nan])
        clip = QKClip(100.0, layouts=[model.layout])
        opt = stepped(model, clip, {"max_attention_logit": {"block": measured}})
        for old, new in zip(before, model.sides(), strict=True):
            assert_same(new[[0, 2, 3]], old[[0, 2, 3]])
            torch.testing.assert_close(new[1], old[1] / 2)
        assert float(model.bound()[1] / bound[1]) == pytest.approx(0.25, rel=1e-4)
        assert changes(opt) == 1

    @pytest.mark.parametrize("told", [250.0, torch.tensor(250.0), {"block": 250.0}])
    def test_one_number_leaves_heads_alone_that_cannot_be_beyond_the_limit(self, told):
        model = raised(Block(), [2], 1e4)
        limit = float(model.bound()[[0, 1, 3]].max()) * 1.01
        assert limit < 200
        before, bound = model.sides(), model.bound()
        told = {"max_attention_logit": told}
        stepped(model, QKClip(limit, slack=1, layouts=[model.layout]), told)
        for old, new in zip(before, model.sides(), strict=True):
            assert_same(new[[0, 1, 3]], old[[0, 1, 3]])
        assert float(model.bound()[2] / bound[2]) == pytest.approx(limit / 250, rel=1e-4)

    def test_behind_no_norm_nothing_happens_until_it_is_measured(self):
        model = raised(Block(norm=False), [0], 1e4)
        before = model.sides()
        opt = stepped(model, QKClip(1.0, every=1, layouts=[model.layout]), steps=2)
        assert changes(opt) == 0
        stand_still(opt, max_attention_logit=4.0)
        for old, new in zip(before, model.sides(), strict=True):
            torch.testing.assert_close(new, old / 2)
        stand_still(opt)
        assert changes(opt) == 1

    @pytest.mark.parametrize("told", [0.9, -0.9, torch.tensor([0.1, 0.2]), {"other": 5.0}])
    def test_what_is_under_the_limit_or_about_others_changes_nothing(self, told):
        model = Block()
        before = model.sides()
        clip = QKClip(1.0, layouts=[model.layout])
        opt = stepped(model, clip, {"max_attention_logit": told})
        assert_same(model.sides(), before)
        assert changes(opt) == 0

    def test_negative_logits_count_by_their_size(self):
        model = Block(norm=False)
        before = model.sides()
        told = {"max_attention_logit": torch.tensor([-4.0, 0.5])}
        stepped(model, QKClip(1.0, layouts=[model.layout]), told)
        torch.testing.assert_close(model.sides()[0], before[0] / 2)

    @pytest.mark.parametrize("nothing", [math.nan, torch.tensor(math.nan)])
    def test_what_says_nothing_does_not_keep_it_from_looking(self, nothing):
        model = Block()
        clip = QKClip(1.0, slack=1, every=1, layouts=[model.layout])
        stepped(model, clip, {"max_attention_logit": {"block": nothing}}, guard=False)
        assert (model.bound() <= 1 + 1e-5).all()

    def test_a_tensor_for_several_blocks_is_not_one_by_heads(self):
        model = nn.ModuleList([Block(norm=False), Block(norm=False)])
        layouts = [
            AttentionLayout(
                **{
                    **fields(block.layout),
                    "name": f"{i}",
                    "query": Projection(weight=f"{i}.q.weight", bias=f"{i}.q.bias"),
                    "key": Projection(weight=f"{i}.k.weight", bias=f"{i}.k.bias"),
                }
            )
            for i, block in enumerate(model)
        ]
        before = [block.sides() for block in model]
        told = {"max_attention_logit": torch.tensor([1.0, 4.0, 1.0, 1.0])}
        stepped(model, QKClip(1.0, layouts=layouts), told)
        for block, old in zip(model, before, strict=True):
            torch.testing.assert_close(block.sides(), [x / 2 for x in old])


class TestModels:
    @pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
    def test_no_logit_of_transformers_is_above_the_limit(self, name):
        model = spread(TRANSFORMERS[name]()).eval()
        found = find_attention(model)
        assert len(found) == 2
        before = [float(x.abs().amax()) for x in logits_of(lambda: model(TOKENS))]
        limit = min(before) / 4
        opt = stepped(model, QKClip(limit, slack=1, every=1), steps=2)
        for logits in logits_of(lambda: model(TOKENS)):
            assert logits.abs().amax() <= limit * (1 + 1e-4)
        assert changes(opt) == 2

    @pytest.mark.parametrize(
        ("qk_norm", "norm"), [(False, "pre"), (True, "pre"), (True, "post"), (True, "none")]
    )
    def test_no_logit_of_the_benchmarks_is_above_the_limit(self, qk_norm, norm):
        shape = lr_model.Shape(width=32, context=12, qk_norm=qk_norm, norm=norm)
        model = spread(lr_model.GPT(shape))
        model.watch(True)
        blocks = [block.attention for block in model.blocks]
        with torch.no_grad():
            model(TOKENS)
        limit = min(block.largest for block in blocks) / 4
        stepped(model, QKClip(limit, slack=1, every=1))
        with torch.no_grad():
            model(TOKENS)
        for block in blocks:
            assert 0 < block.largest <= limit * (1 + 1e-4)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_no_logit_of_torch_is_above_the_limit(self, dtype):
        model = spread(nn.TransformerEncoderLayer(32, 4, norm_first=True, dropout=0.0)).to(dtype)
        values = model.self_attn.in_proj_weight[64:].detach().clone()
        stepped(model, QKClip(0.5, slack=1, every=1))
        x = 10 * torch.randn(3, 40, 32, generator=torch.Generator().manual_seed(0))
        wide = copy.deepcopy(model).double()
        with torch.no_grad():
            normed = wide.norm1(x.double())
            weight, bias = wide.self_attn.in_proj_weight, wide.self_attn.in_proj_bias
            made = nn.functional.linear(normed, weight, bias)
            q, k, _ = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in made.chunk(3, -1))
            largest = (q @ k.mT / math.sqrt(8)).abs().amax()
        assert 0.05 < largest <= 0.5 * (1 + 1e-5)
        assert_same(model.self_attn.in_proj_weight[64:].detach(), values)

    def test_attention_behind_no_norm_waits_for_signals(self):
        model = spread(nn.MultiheadAttention(32, 4))
        before = copied(model.state_dict())
        opt = stepped(model, QKClip(1e-3, every=1), steps=2)
        assert_same(copied(model.state_dict()), before)
        stand_still(opt, max_attention_logit=1.0)
        assert changes(opt) == 1


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"limit": 0}, "limit=0 must be a number above 0"),
            ({"limit": math.nan}, "limit=nan must be a number above 0"),
            ({"limit": math.inf}, "limit=inf must be a number above 0 and at most"),
            ({"slack": 0.5}, "slack=0.5 must be at least 1, the limit itself"),
            ({"slack": math.nan}, "slack=nan must be a number above 0"),
            ({"slack": "3"}, "slack='3' must be a number"),
            ({"every": 0}, "every=0 must be an int of at least 1"),
            ({"every": 1.5}, "every=1.5 must be an int of at least 1"),
            ({"layouts": "attn"}, "layouts has 'a', which is no stableopt.layouts.AttentionLayout"),
            ({"layouts": [None]}, "layouts has None, which is no .*: write one for each"),
            ({"params": 1}, "params=1 must be name patterns"),
        ],
    )
    def test_options_that_cannot_work_are_refused(self, options, words):
        with pytest.raises(ConfigError, match=words):
            QKClip(**options)

    def test_without_a_model_layouts_are_needed(self):
        model = Block()
        inner = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(ConfigError, match=r"needs to know where .* give model=, or layouts="):
            StableOptimizer(inner, transforms=[QKClip()])

    def test_a_model_without_attention(self):
        with pytest.raises(ConfigError, match="finds no attention block that is trained"):
            stepped(nn.Linear(3, 3), QKClip())

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"query": Projection(weight="x")}, "'x' is not known"),
            ({"heads": 8, "kv_heads": 8}, "rows, but heads are expected up to row"),
            ({"norm": NormLayout(features=9)}, "norm.features=9 must be the 32 inputs"),
        ],
    )
    def test_layouts_that_do_not_fit_are_refused(self, change, words):
        model = Block()
        layout = AttentionLayout(**{**fields(model.layout), **change})
        with pytest.raises(ConfigError, match=words):
            stepped(model, QKClip(layouts=[layout]))
