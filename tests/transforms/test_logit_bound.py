"""LogitBound: no class can have a logit above the limit, and the others stay as they are."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks.learning_rate import model as lr_model
from stableopt import LogitBound, StableOptimizer
from stableopt.errors import ConfigError
from stableopt.layouts import NormLayout, OutputHead
from tests.contract.bits import assert_same
from tests.contract.scenario import copied
from tests.layouts.probe import spread
from tests.sensors.runs import stand_still
from tests.transforms.runs import changes, stepped

ROUNDING = {torch.float64: 1e-5, torch.float32: 1e-5, torch.bfloat16: 0.0, torch.float16: 0.0}
"""In half precision it is aimed lower."""

NORMS = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


def classifier(norm="layer", bias=True, dtype=torch.float32):
    layers = [nn.Embedding(11, 16), NORMS[norm](16), nn.Linear(16, 9, bias=bias)]
    return spread(nn.Sequential(*layers)).to(dtype)


class Tied(nn.Module):
    """A language model whose head is its table."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 16)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 9, bias=False)
        self.head.weight = self.table.weight
        spread(self)

    def forward(self, tokens):
        return self.head(self.norm(self.table(tokens)))


def largest(model):
    """Return the largest logit of each class, over inputs that are made to reach it."""
    wide = copy.deepcopy(model).double()
    norm, head = wide[1], wide[2]
    with torch.no_grad():
        rows = head.weight * norm.weight
        drawn = torch.randn(
            200, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
        x = 1e4 * torch.cat([rows, -rows, drawn])
        return head(norm(x)).abs().amax(0)


class TestWeightsAlone:
    @pytest.mark.parametrize("norm", NORMS)
    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("dtype", ROUNDING)
    def test_no_logit_of_any_input_is_above_the_limit(self, norm, bias, dtype):
        model = classifier(norm, bias, dtype)
        limit = float(largest(model).min()) / 3
        opt = stepped(model, LogitBound(limit, slack=1, every=1), steps=3)
        after = largest(model)
        assert (after <= limit * (1 + ROUNDING[dtype])).all()
        # Not one logit more than that was taken: some input reaches it.
        assert float(after.max()) >= limit * (1 - 3e-5 if dtype.itemsize > 2 else 0.97)
        assert changes(opt) == 1

    @pytest.mark.parametrize("bias", [False, True])
    def test_rows_under_the_limit_stay_bit_for_bit(self, bias):
        model = classifier(bias=bias)
        with torch.no_grad():
            model[2].weight[4] *= 50
        before = copied(model.state_dict())
        limit = 1.5 * float(largest(model)[[0, 1, 2, 3, 5, 6, 7, 8]].max())
        stepped(model, LogitBound(limit, slack=1, every=1))
        others = [i for i in range(9) if i != 4]
        for name, value in copied(model.state_dict()).items():
            rows = others if name.startswith("2") else slice(None)
            assert_same(value[rows], before[name][rows])
        factor = float((model[2].weight.detach()[4] / before["2.weight"][4]).mean())
        assert factor < 0.9
        if bias:
            assert float(model[2].bias[4].detach()) == pytest.approx(
                factor * float(before["2.bias"][4]), rel=1e-5
            )

    @pytest.mark.parametrize("slack", [1.0, 3.0])
    def test_slack_is_how_far_above_the_bound_may_be(self, slack):
        model = classifier("rms", bias=False)
        limit = float(largest(model).min()) / 9
        stepped(model, LogitBound(limit, slack=slack, every=1))
        assert float(largest(model).max()) == pytest.approx(slack * limit, rel=1e-4)

    def test_tied_embeddings_are_scaled_as_the_head_they_are(self):
        model = Tied()
        limit = 0.5
        opt = stepped(model, LogitBound(limit, slack=1, every=1), steps=2)
        with torch.no_grad():
            assert model(torch.arange(9)).abs().amax() <= limit * (1 + 1e-5)
        assert model.head.weight is model.table.weight
        assert changes(opt) == 1

    def test_a_language_model(self):
        model = spread(lr_model.GPT(lr_model.Shape(width=32, context=12)))
        tokens = torch.randint(256, (4, 12), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            before = float(model(tokens).abs().amax())
            stepped(model, LogitBound(before / 4, slack=1, every=1))
            assert 0 < float(model(tokens).abs().amax()) <= before / 4 * (1 + 1e-5)

    def test_it_looks_every_few_steps(self):
        model = classifier()
        opt = stepped(model, LogitBound(0.1, every=3), steps=2)
        assert changes(opt) == 0
        stand_still(opt)
        assert changes(opt) == 1

    def test_rows_that_are_not_finite_are_left_alone(self):
        model = classifier()
        with torch.no_grad():
            model[2].weight[2, 5] = math.nan
        before = copied(model.state_dict())
        stepped(model, LogitBound(0.1, slack=1, every=1), guard=False)
        after = copied(model.state_dict())
        assert_same(after["2.weight"][2], before["2.weight"][2])
        assert (after["2.weight"][3:].abs() < before["2.weight"][3:].abs()).all()

    def test_a_run_under_the_limit_is_the_bare_run_bit_for_bit(self):
        def trained(transforms):
            model = classifier()
            inner = torch.optim.AdamW(model.parameters(), lr=1e-3)
            opt = StableOptimizer(inner, model=model, sensors=(), transforms=transforms)
            for _ in range(4):
                opt.zero_grad()
                functional.cross_entropy(model(torch.arange(9)), torch.arange(9)).backward()
                opt.step()
            return copied(model.state_dict()), copied(inner.state_dict()["state"])

        assert_same(trained([LogitBound(1e4, every=1)]), trained([]))


class TestSignals:
    @pytest.mark.parametrize(
        "told", [40.0, -40.0, torch.tensor([-40.0, 3.0]), {"2": 40.0}, {"2.weight": 40.0}]
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_what_was_measured_scales_the_whole_layer(self, told, dtype):
        model = classifier(dtype=dtype)
        before = copied(model.state_dict())
        opt = stepped(model, LogitBound(10.0), {"max_logit": told})
        tolerance = 1e-6 if dtype == torch.float32 else 2e-2
        for name, value in copied(model.state_dict()).items():
            if name.startswith("2"):
                torch.testing.assert_close(value, before[name] / 4, rtol=tolerance, atol=0)
            else:
                assert_same(value, before[name])
        assert changes(opt) == 1

    @pytest.mark.parametrize("told", [9.0, math.inf, math.nan, {"0": 40.0}])
    def test_what_is_under_the_limit_or_no_number_changes_nothing(self, told):
        model = classifier()
        before = copied(model.state_dict())
        opt = stepped(model, LogitBound(10.0), {"max_logit": told}, guard=False)
        assert_same(copied(model.state_dict()), before)
        assert changes(opt) == 0

    def test_without_a_norm_it_waits_for_a_signal(self):
        model = spread(nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 9)))
        before = copied(model.state_dict())
        opt = stepped(model, LogitBound(1e-3, slack=1, every=1), steps=2)
        assert_same(copied(model.state_dict()), before)
        stand_still(opt, max_logit=2e-3)
        torch.testing.assert_close(model[2].weight.detach(), before["2.weight"] / 2)


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"limit": 0}, "limit=0 must be a number above 0"),
            ({"limit": math.nan}, "limit=nan must be a number above 0"),
            ({"limit": math.inf}, "limit=inf must be a number above 0 and at most"),
            (
                {"limit": 1, "slack": 0.9},
                "slack=0.9 must be at least 1, the limit itself",
            ),
            ({"limit": 1, "slack": math.inf}, "slack=inf must be a number above 0 and at most"),
            ({"limit": 1, "every": 0}, "every=0 must be an int of at least 1"),
            ({"limit": 1, "head": "2.weight"}, "head='2.weight' must be a stableopt.layouts.Out"),
            ({"limit": 1, "params": 0}, "params=0 must be name patterns"),
        ],
    )
    def test_options_that_cannot_work_are_refused(self, options, words):
        with pytest.raises(ConfigError, match=words):
            LogitBound(**options)

    @pytest.mark.parametrize(
        ("head", "words"),
        [
            ({"weight": "x"}, "head: 'x' is no parameter of the optimizer: the names are 0.weight"),
            ({"weight": "2.weight", "bias": "x"}, "head: 'x' is no parameter"),
            ({"weight": "1.weight"}, r"head: 1.weight \(16,\) must be a matrix"),
            ({"weight": "2.weight", "bias": "1.bias"}, r"1.bias \(16,\) must have 9 entries"),
            (
                {"weight": "2.weight", "norm": NormLayout(features=15)},
                "norm.features=15 must be the 16 inputs of 2.weight: name the norm that feeds it",
            ),
            (
                {"weight": "2.weight", "norm": NormLayout(features=16, gain="x")},
                "head: 'x' is no parameter",
            ),
            (
                {"weight": "2.weight", "norm": NormLayout(features=16, gain="2.bias")},
                r"2.bias \(9,\) must have 16 entries",
            ),
        ],
    )
    def test_heads_that_do_not_fit_are_refused(self, head, words):
        with pytest.raises(ConfigError, match=words):
            stepped(classifier(), LogitBound(1.0, head=OutputHead(**head)))

    @pytest.mark.parametrize("frozen", ["2.weight", "2.bias"])
    def test_a_head_of_which_a_part_is_frozen_is_not_found(self, frozen):
        model = classifier()
        trained = [p for name, p in model.named_parameters() if name != frozen]
        with pytest.raises(ConfigError, match="finds no output layer that is trained: give model="):
            stepped(model, LogitBound(1.0), parameters=trained)

    def test_the_norm_before_it_may_be_frozen(self):
        model = classifier()
        stepped(model, LogitBound(1.0, slack=1, every=1), parameters=list(model[2].parameters()))
        assert (largest(model) <= 1 + 1e-5).all()

    def test_without_a_model_the_head_is_needed(self):
        model = classifier()
        inner = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(ConfigError, match="give model=, or head= by the name of its weight"):
            StableOptimizer(inner, transforms=[LogitBound(1.0)])
