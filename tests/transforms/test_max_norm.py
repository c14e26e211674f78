"""MaxNorm: what is too long is scaled to the bound once, what is not stays as it is."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stableopt import Action, ConfigError, Guard, MaxNorm, StableOptimizer
from tests.contract.bits import assert_same
from tests.sensors.runs import stand_still

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def bounded(parameters, limit, dim=None, params=None, **options):
    inner = torch.optim.SGD(parameters, lr=0.1)
    options = {"sensors": (), **options}
    return StableOptimizer(inner, transforms=[MaxNorm(limit, dim, params)], **options)


def after(weight, limit, dim=None, steps=1, **options):
    """Return what becomes of a weight, and the optimizer."""
    parameter = nn.Parameter(weight.clone())
    opt = bounded([parameter], limit, dim, params="*", **options)
    stand_still(opt, steps)
    return parameter.detach(), opt


def norms(weight, dim=None):
    wide = torch.complex128 if weight.is_complex() else torch.float64
    return torch.linalg.vector_norm(weight.to(wide), dim=dim, keepdim=True)


shapes = st.lists(st.integers(1, 5), min_size=2, max_size=4)


class TestLaws:
    @settings(deadline=None, max_examples=40)
    @given(
        data=st.data(),
        shape=shapes,
        dtype=st.sampled_from(DTYPES),
        limit=st.sampled_from([0.03, 1.0, 1.9, 7.3]),
        size=st.sampled_from([1e-3, 0.5, 2.0, 50.0]),
        seed=st.integers(0, 99),
    )
    def test_the_bound_holds_at_once_and_doing_it_again_changes_nothing(
        self, data, shape, dtype, limit, size, seed
    ):
        dims = data.draw(
            st.none()
            | st.integers(-len(shape), len(shape) - 1)
            | st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True).map(tuple)
        )
        torch.manual_seed(seed)
        old = (torch.randn(shape) * size).to(dtype)
        new, opt = after(old, limit, dims)
        assert bool((norms(new, dims) <= limit * (1 + 1.1e-5)).all())
        again, opt = after(new, limit, dims)
        assert_same(again, new)
        assert opt.summary()["transforms"][0]["steps"] == 0

        under = norms(old, dims) <= limit
        kept = under.expand_as(old)
        assert_same(new[kept], old[kept])
        if dtype is torch.float64:
            exact = old * torch.clamp(limit / norms(old, dims), max=1.0)
            assert torch.allclose(new, exact, rtol=1.1e-5, atol=0)

    @settings(deadline=None, max_examples=40)
    @given(value=st.floats(0.01, 60), limit=st.floats(0.01, 5), dtype=st.sampled_from(DTYPES[2:]))
    def test_equal_values_in_half_precision(self, value, limit, dtype):
        # All roundings go the same way: the worst case for a norm.
        old = torch.full((4, 8), value).to(dtype)
        new, _ = after(old, limit)
        again, _ = after(new, limit)
        assert float(norms(new)) <= limit * (1 + 1.1e-5)
        assert_same(again, new)
        if float(norms(old)) > limit * 1.00001:
            assert float(norms(new)) >= limit * 0.97

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_in_training_it_holds_after_every_step(self, dtype):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)).to(dtype)
        opt = bounded(model.parameters(), 0.8, dim=1)
        for _ in range(10):
            opt.zero_grad()
            (model(torch.randn(5, 4, dtype=dtype)) - 3).float().pow(2).mean().backward()
            opt.step()
            for layer in model:
                assert bool((norms(layer.weight.detach(), 1) <= 0.8 * (1 + 1.1e-5)).all())
        assert opt.summary()["transforms"][0]["steps"] > 0
        assert float(norms(model[1].bias.detach())) > 0.8  # vectors are not bounded by themselves

    def test_the_state_of_the_optimizer_and_the_gradients_are_left_alone(self):
        def trained(limit):
            torch.manual_seed(0)
            weight = nn.Parameter(torch.full((3, 3), 2.0))
            inner = torch.optim.AdamW([weight], lr=0.1)
            opt = StableOptimizer(inner, transforms=[MaxNorm(limit)])
            weight.grad = torch.randn(3, 3)
            opt.step()
            return weight.detach(), weight.grad, inner.state_dict()

        (bound, *ours), (free, *theirs) = trained(1.0), trained(1e9)
        assert_same(ours, theirs)
        assert torch.allclose(bound, free / free.norm())


class TestTensors:
    def test_rows_columns_and_kernels(self):
        weight = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
        rows, _ = after(weight, 1.0, 1)
        assert rows.flatten().tolist() == pytest.approx([0.6, 0.8, 0.3, 0.4, 0, 0])
        columns, _ = after(weight, 3.5, (0,))
        assert norms(columns, 0).flatten().tolist() == pytest.approx([9.09**0.5, 3.5])
        kernels, _ = after(torch.ones(2, 3, 2, 2), 1.0, (1, 2, 3))
        assert kernels.flatten().tolist() == pytest.approx([12**-0.5] * 24)

    @pytest.mark.parametrize("dim", [-1, [1], (-1,)])
    def test_dimensions_are_counted_from_either_end(self, dim):
        found, _ = after(torch.full((2, 4), 3.0), 1.0, dim)
        assert found.flatten().tolist() == pytest.approx([0.5] * 8)

    @pytest.mark.parametrize("weight", [torch.tensor(-5.0), torch.tensor([3.0, 4.0])])
    def test_what_is_named_is_bounded_whatever_its_shape(self, weight):
        found, _ = after(weight, 0.5)
        assert torch.allclose(found, weight / 10)

    def test_complex(self):
        found, _ = after(torch.tensor([[3 + 4j, 0], [0.1j, 0.1]]), 1.0, 1)
        assert torch.allclose(found, torch.tensor([[0.6 + 0.8j, 0], [0.1j, 0.1]]))

    def test_zero_empty_and_integer(self):
        weights = [
            nn.Parameter(torch.zeros(3, 3)),
            nn.Parameter(torch.zeros(0, 3)),
            nn.Parameter(torch.ones(3, 3, dtype=torch.int64), requires_grad=False),
        ]
        opt = bounded(weights, 1.0, dim=1, guard=False)
        for p in weights[:2]:
            p.grad = torch.zeros_like(p)
        opt.step()
        assert opt.summary()["transforms"][0]["parameters"] == 2
        assert opt.summary()["transforms"][0]["steps"] == 0
        assert not weights[0].detach().any()

    @pytest.mark.parametrize(
        ("value", "dtype"),
        [(1e30, torch.float32), (1e200, torch.float64), (6e4, torch.float16)],
    )
    @pytest.mark.parametrize("dim", [None, 1])
    def test_finite_weights_whose_norm_overflows(self, value, dtype, dim):
        old = torch.full((4, 9), value, dtype=dtype)
        found, _ = after(old, 3.0, dim, guard=False)
        expected = 0.5 if dim is None else 1.0
        assert found.flatten().tolist() == pytest.approx([expected] * 36, rel=2e-3)

    def test_one_row_that_overflows_beside_others(self):
        old = torch.tensor([[1e30, 1e30], [0.3, 0.4], [3.0, 4.0]])
        found, _ = after(old, 1.0, 1, guard=False)
        assert found.flatten().tolist() == pytest.approx([0.5**0.5, 0.5**0.5, 0.3, 0.4, 0.6, 0.8])

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_what_is_not_finite_is_left_for_the_guard_to_see(self, bad):
        old = torch.tensor([[bad, 9.0], [3.0, 4.0], [0.0, 0.0]])
        found, _ = after(old, 1.0, 1, guard=False)
        assert_same(found[0], old[0])
        assert found[1:].flatten().tolist() == pytest.approx([0.6, 0.8, 0, 0])
        whole, _ = after(old, 1.0, guard=False)
        assert_same(whole, old)

        class Spoils(torch.optim.SGD):
            def step(self, closure=None):
                with torch.no_grad():
                    self.param_groups[0]["params"][0][0, 0] = bad

        weight = nn.Parameter(torch.ones(2, 2))
        opt = StableOptimizer(
            Spoils([weight], lr=0.1), transforms=[MaxNorm(1.0)], guard=Guard(every=1)
        )
        stand_still(opt, 2)
        assert opt.verdict.action is not Action.TAKE

    def test_it_says_how_large_the_largest_was(self):
        _, opt = after(torch.tensor([[3.0, 4.0], [6.0, 8.0], [0.1, 0.1]]), 1.0, 1, steps=3)
        (event,) = opt.ledger
        assert event.reason == "MaxNorm moves the norm of 0.0 from 10 to 1"
        assert opt.summary()["transforms"][0]["steps"] == 1
        assert not event.intervened


WRONG = [
    ({"limit": 0}, r"^limit=0 must be a number above 0 and at most 1e\+30: the largest norm"),
    ({"limit": -1.0}, "^limit=-1.0 must be a number above 0"),
    ({"limit": math.nan}, "^limit=nan must be a number above 0"),
    ({"limit": math.inf}, "^limit=inf must be a number above 0"),
    ({"limit": True}, "^limit=True must be a number above 0"),
    ({"limit": "1"}, "^limit='1' must be a number above 0"),
    ({"dim": "1"}, "^dim='1' must be an int, a tuple, or None"),
    ({"dim": 1.0}, "^dim=1.0 must be an int, a tuple, or None"),
    ({"dim": True}, "^dim=True must be an int, a tuple, or None"),
    ({"dim": ()}, r"^dim=\(\) must be an int, a tuple, or None"),
    ({"dim": (0, None)}, r"^dim=\(0, None\) must be an int, a tuple, or None"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        MaxNorm(**{"limit": 1.0, **options})


@pytest.mark.parametrize(
    ("dim", "message"),
    [
        (2, r"^dim=2 is no dimension of 0\.0, which has 2: name other params="),
        (-3, r"^dim=-3 is no dimension of 0\.0, which has 2"),
        ((0, 4), r"^dim=4 is no dimension of 0\.0"),
        ((1, 1), r"^dim=\(1, 1\) names a dimension of 0\.0 twice: name it once"),
        ((1, -1), r"^dim=\(1, -1\) names a dimension of 0\.0 twice"),
    ],
)
def test_dimensions_that_a_weight_has_not_are_refused(dim, message):
    with pytest.raises(ConfigError, match=message):
        bounded([nn.Parameter(torch.ones(2, 2))], 1.0, dim)


def test_nothing_of_two_dimensions_is_an_error():
    with pytest.raises(ConfigError, match="finds no parameter that it can act on"):
        bounded([nn.Parameter(torch.ones(3))], 1.0)
