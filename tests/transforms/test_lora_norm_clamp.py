"""LoRANormClamp: the delta of every adapter stays under the bound, by its B alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from stableopt import LoRANormClamp, StableOptimizer
from stableopt.errors import ConfigError
from stableopt.layouts import LoraPair
from tests.contract.bits import assert_same
from tests.contract.scenario import copied
from tests.transforms.runs import changes, stepped

NORMS = {"frobenius": "fro", "spectral": 2}
ROUNDING = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 0.0, torch.bfloat16: 0.0}
"""In half precision it is aimed lower."""


class Adapted(nn.Module):
    """A frozen layer and an adapter with the names of peft."""

    def __init__(self, rank=4, scale=None, names=("lora_A", "lora_B"), dtype=torch.float32):
        super().__init__()
        self.base_layer = nn.Linear(12, 10)
        self.base_layer.requires_grad_(False)
        first, second = names
        self.add_module(first, nn.ModuleDict({"default": nn.Linear(12, rank, bias=False)}))
        self.add_module(second, nn.ModuleDict({"default": nn.Linear(rank, 10, bias=False)}))
        if scale is not None:
            self.scaling = {"default": scale}
        self.to(dtype)

    @property
    def factors(self):
        first, second = (m["default"] for m in list(self.children())[1:])
        return first.weight, second.weight


class Plain(nn.Module):
    """An adapter whose factors are parameters of their own."""

    def __init__(self, names=("A", "B"), size=3.0):
        super().__init__()
        torch.manual_seed(0)
        self.register_parameter(names[0], nn.Parameter(size * torch.randn(3, 8)))
        self.register_parameter(names[1], nn.Parameter(size * torch.randn(6, 3)))


def delta(a, b, scale=1.0, ord="fro"):  # noqa: A002
    """Return the norm of the product, formed in float64."""
    product = scale * b.detach().double().flatten(1) @ a.detach().double().flatten(1)
    return float(torch.linalg.matrix_norm(product, ord))


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 6)),
    norm=st.sampled_from(sorted(NORMS)),
    dtype=st.sampled_from(sorted(ROUNDING, key=str)),
    share=st.floats(0.01, 2.0),
    scale=st.floats(0.05, 20.0),
    seed=st.integers(0, 999),
)
def test_the_norm_is_at_most_the_limit_and_a_stays(sizes, norm, dtype, share, scale, seed):
    rows, columns, rank = sizes
    assume(rank <= max(rows, columns))  # else A and B look as if they were the other way round
    generator = torch.Generator().manual_seed(seed)
    a = nn.Parameter(torch.randn(rank, columns, generator=generator).to(dtype))
    b = nn.Parameter(torch.randn(rows, rank, generator=generator).to(dtype))
    before = a.detach().clone(), b.detach().clone()
    size = delta(a, b, scale, NORMS[norm])
    limit = share * size
    clamp = LoRANormClamp(limit, norm=norm, pairs=[("0.0", "0.1", scale)])
    opt = stepped(None, clamp, parameters=[a, b])
    assert_same(a.detach(), before[0])
    # Within 1e-5 of the limit it is let be.
    assert delta(a, b, scale, NORMS[norm]) <= limit * (1 + max(ROUNDING[dtype], 1.001e-5))
    if share < 0.95:
        assert delta(a, b, scale, NORMS[norm]) >= 0.97 * limit
        # The subspace stays: all of B is scaled by one factor.
        factor = float(b.detach().double().norm() / before[1].double().norm())
        torch.testing.assert_close(
            b.detach().double(), factor * before[1].double(), rtol=2e-2, atol=1e-3
        )
    if share > 1.001:
        assert_same(b.detach(), before[1])
        assert changes(opt) == 0
    once = b.detach().clone()
    b.grad = torch.zeros_like(b)
    opt.step()
    assert_same(b.detach(), once)


class TestNames:
    @pytest.mark.parametrize(
        "names",
        [("lora_A", "lora_B"), ("lora_a", "lora_b"), ("lora_down", "lora_up"), ("A", "B")],
    )
    def test_pairs_are_found_by_their_names(self, names):
        model = Plain(names)
        stepped(model, LoRANormClamp(0.5))
        assert delta(*model.parameters()) == pytest.approx(0.5, rel=1e-5)

    def test_those_of_peft_with_their_scale(self):
        model = nn.Sequential(Adapted(scale=3.0), Adapted(scale=0.1))
        base = copied(model[0].base_layer.state_dict())
        opt = stepped(model, LoRANormClamp(0.2))
        assert delta(*model[0].factors, scale=3.0) == pytest.approx(0.2, rel=1e-5)
        assert delta(*model[1].factors, scale=0.1) < 0.2
        assert changes(opt) == 1
        assert_same(copied(model[0].base_layer.state_dict()), base)

    @pytest.mark.parametrize("pair", [LoraPair(name="x", a="A", b="B", scale=2.0), ["A", "B", 2]])
    def test_explicit_pairs(self, pair):
        model = Plain()
        stepped(model, LoRANormClamp(0.5, pairs=[pair]))
        assert delta(*model.parameters(), scale=2.0) == pytest.approx(0.5, rel=1e-5)

    def test_patterns_choose_among_pairs(self):
        model = nn.ModuleList([Plain(), Plain()])
        before = copied(model[0].state_dict())
        stepped(model, LoRANormClamp(0.5, params="1.*"))
        assert_same(copied(model[0].state_dict()), before)
        assert delta(*model[1].parameters()) == pytest.approx(0.5, rel=1e-5)

    def test_convolutions_whose_second_kernel_is_one_pixel(self):
        torch.manual_seed(0)
        model = nn.Module()
        model.lora_A, model.lora_B = nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 6, 1, bias=False)
        stepped(model, LoRANormClamp(0.1))
        assert delta(model.lora_A.weight, model.lora_B.weight) == pytest.approx(0.1, rel=1e-5)


class TestFrozen:
    @pytest.mark.parametrize("pairs", [None, [("lora_A.default.weight", "lora_B.default.weight")]])
    def test_a_may_be_frozen(self, pairs):
        model = Adapted()
        a, b = model.factors
        a.requires_grad_(False)
        before = a.detach().clone()
        stepped(model, LoRANormClamp(0.1, pairs=pairs), parameters=[b], steps=2)
        assert delta(a, b) == pytest.approx(0.1, rel=1e-5)
        assert_same(a.detach(), before)

    def test_a_pair_whose_b_is_frozen_is_left_out(self):
        model = nn.ModuleList([Plain(), Plain()])
        before = copied(model[0].state_dict())
        trained = [model[0].A, model[1].A, model[1].B]
        opt = stepped(model, LoRANormClamp(0.1), parameters=trained)
        assert_same(copied(model[0].state_dict()), before)
        assert changes(opt) == 1

    def test_naming_a_b_that_is_frozen_is_an_error(self):
        model = Plain()
        with pytest.raises(ConfigError, match="pairs: 'B' is no parameter of the optimizer"):
            stepped(model, LoRANormClamp(0.1, pairs=[("A", "B")]), parameters=[model.A])

    def test_a_b_that_two_pairs_share_is_scaled_once(self):
        torch.manual_seed(0)
        model = nn.Module()
        model.one, model.two = (nn.Parameter(torch.randn(3, 8) * s) for s in (1.0, 2.0))
        model.b = nn.Parameter(torch.randn(6, 3))
        opt = stepped(model, LoRANormClamp(0.5, pairs=[("one", "b"), ("two", "b")]))
        found = [delta(a, model.b) for a in (model.one, model.two)]
        assert max(found) == pytest.approx(0.5, rel=1e-5)
        assert changes(opt) == 1


class TestOddFactors:
    def test_a_fresh_adapter_stays_as_it_is(self):
        model = Adapted()
        with torch.no_grad():
            model.factors[1].zero_()
        opt = stepped(model, LoRANormClamp(1e-6))
        assert changes(opt) == 0
        assert not model.factors[1].any()

    @pytest.mark.parametrize("norm", NORMS)
    def test_large_factors_of_a_small_product(self, norm):
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(8, generator=generator), torch.randn(6, generator=generator)
        a = nn.Parameter(torch.stack([x, x + 1e-3 * torch.randn(8, generator=generator)]) * 1e4)
        b = nn.Parameter(torch.stack([y, -y], 1) * 1e4)
        size = delta(a, b, ord=NORMS[norm])
        assert size < 1e-2 * float(a.detach().norm() * b.detach().norm())
        clamp = LoRANormClamp(0.5 * size, norm=norm, pairs=[("0.0", "0.1")])
        stepped(None, clamp, parameters=[a, b])
        assert delta(a, b, ord=NORMS[norm]) == pytest.approx(0.5 * size, rel=1e-4)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.parametrize("which", ["A", "B"])
    def test_what_is_not_finite_is_left_alone(self, value, which):
        model = Plain()
        with torch.no_grad():
            getattr(model, which)[0, 0] = value
        before = copied(model.state_dict())
        opt = stepped(model, LoRANormClamp(0.1), guard=False)
        assert_same(copied(model.state_dict()), before)
        assert changes(opt) == 0

    def test_the_state_of_the_optimizer_stays(self):
        def trained(limit):
            torch.manual_seed(0)
            model = Plain()
            inner = torch.optim.AdamW(model.parameters(), lr=1e-3)
            opt = StableOptimizer(inner, model=model, sensors=(), transforms=[LoRANormClamp(limit)])
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            opt.step()
            return model, copied(inner.state_dict()["state"])

        clamped, state = trained(1.0)
        free, other = trained(1e6)
        assert_same(state, other)
        assert_same(clamped.A.detach(), free.A.detach())
        assert not torch.equal(clamped.B, free.B)


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"limit": 0}, "limit=0 must be a number above 0"),
            ({"limit": math.nan}, "limit=nan must be a number above 0"),
            ({"limit": math.inf}, "limit=inf must be a number above 0 and at most"),
            ({"limit": 1, "norm": "nuclear"}, "norm='nuclear' must be one of frobenius, spectral"),
            ({"limit": 1, "norm": ["fro"]}, "norm=.* must be one of frobenius, spectral"),
            ({"limit": 1, "pairs": ("A", "B")}, "pairs has 'A', which is no pair of LoRA factors"),
            ({"limit": 1, "pairs": "A"}, r"pairs has 'A', .* give \(a, b\) or \(a, b, scale\)"),
            ({"limit": 1, "pairs": [("A",)]}, r"pairs has \('A',\), which is no pair"),
            ({"limit": 1, "pairs": 3}, "pairs has 3, which is no pair"),
            ({"limit": 1, "pairs": [("A", "A")]}, "must be the names of two parameters"),
            ({"limit": 1, "pairs": [("A", "B", 0.0)]}, "scale=0.0 must be a number above 0"),
            ({"limit": 1, "params": [1]}, r"params=\[1\] must be name patterns"),
        ],
    )
    def test_options_that_cannot_work_are_refused(self, options, words):
        with pytest.raises(ConfigError, match=words):
            LoRANormClamp(**options)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"pairs": [("A", "C")]}, "pairs: 'C' is no parameter .*: the names are A, B; give"),
            ({"pairs": [("C", "B")]}, "pairs: 'C' is no parameter"),
            ({"pairs": [("B", "A")]}, r"pairs: B \(6, 3\) and A \(3, 8\) must be \(r, in\) and"),
            ({"pairs": []}, "finds no pair of LoRA factors .* give pairs="),
            ({"params": "A"}, "finds no pair of LoRA factors"),
            ({"params": "C"}, "params='C' matches no parameter"),
        ],
    )
    def test_pairs_that_do_not_fit_are_refused(self, options, words):
        with pytest.raises(ConfigError, match=words):
            stepped(Plain(), LoRANormClamp(1.0, **options))

    @pytest.mark.parametrize(
        ("a", "b", "words"),
        [
            (torch.ones(3), torch.ones(4, 3), "must be .r, in. and .out, r."),
            (torch.ones(0, 3), torch.ones(4, 0), "must be .r, in. and .out, r."),
            (torch.ones(2, 3).cfloat(), torch.ones(4, 2).cfloat(), "dtype=torch.complex64"),
        ],
    )
    def test_factors_that_are_no_matrices_are_refused(self, a, b, words):
        with pytest.raises(ConfigError, match=words):
            stepped(
                None,
                LoRANormClamp(1.0, pairs=[("0.0", "0.1")]),
                parameters=[nn.Parameter(a), nn.Parameter(b)],
            )

    def test_a_model_without_adapters(self):
        with pytest.raises(ConfigError, match="finds no pair of LoRA factors among the parameters"):
            stepped(nn.Linear(3, 3), LoRANormClamp(1.0))
