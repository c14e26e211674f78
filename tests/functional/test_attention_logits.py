"""The bound on attention logits: never violated, tight where it can be, undefined on NaN."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stableopt.functional.attention_logits import (
    attention_logit_bound,
    qk_norm_logit_bound,
    qk_scales,
)

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


class Block:
    """The weights of one attention block, drawn, and its logits for given ``x̂``."""

    def __init__(self, seed, heads=4, kv_heads=4, head_dim=6, width=16, dtype=torch.float32):
        self.generator = torch.Generator().manual_seed(seed)
        self.query = self.draw(heads, head_dim, width).to(dtype)
        self.key = self.draw(kv_heads, head_dim, width).to(dtype)
        self.gain = self.shift = self.query_bias = self.key_bias = None
        self.scale = head_dim**-0.5

    def draw(self, *shape):
        return torch.randn(shape, generator=self.generator)

    def with_norm(self):
        width, dtype = self.query.shape[-1], self.query.dtype
        self.gain, self.shift = self.draw(width).to(dtype), 0.7 * self.draw(width).to(dtype)
        return self

    def with_biases(self):
        dtype = self.query.dtype
        self.query_bias = self.draw(*self.query.shape[:2]).to(dtype)
        self.key_bias = 2 * self.draw(*self.key.shape[:2]).to(dtype)
        return self

    def options(self):
        names = ("scale", "gain", "shift", "query_bias", "key_bias")
        return {name: getattr(self, name) for name in names}

    def bound(self, **options):
        return attention_logit_bound(self.query, self.key, **self.options(), **options)

    def sides(self):
        """Return ``A (heads, head_dim, d)`` and ``c`` of queries and keys, in float64."""
        found = []
        for weight, bias in ((self.query, self.query_bias), (self.key, self.key_bias)):
            a, c = weight.double(), torch.zeros(weight.shape[:2]).double()
            if self.shift is not None:
                c = c + a @ self.shift.double()
            if bias is not None:
                c = c + bias.double()
            if self.gain is not None:
                a = a * self.gain.double()
            times = len(self.query) // len(weight)
            found += [a.repeat_interleave(times, 0), c.repeat_interleave(times, 0)]
        return found

    def vectors(self, x, y):
        """Return queries and keys ``(heads, n, head_dim)`` for x̂ ``(n, d)`` of both sides."""
        a, c, b, e = self.sides()
        return x.double() @ a.mT + c[:, None], y.double() @ b.mT + e[:, None]

    def worst(self, centred=False):
        """Return the largest logits that alternating maximisation finds, ``(heads,)``."""
        a, c, b, e = self.sides()
        width = a.shape[-1]
        y = self.draw(len(a), width, 4).double()  # one start may lie across the best direction
        radius = math.sqrt(width)
        middle = torch.eye(width).double() - (1 / width if centred else 0)

        def best(against):
            x = middle @ against
            return radius * x / x.norm(dim=1, keepdim=True).clamp(min=1e-300)

        for _ in range(300):
            x = best(a.mT @ (b @ y + e[..., None]))
            y = best(b.mT @ (a @ x + c[..., None]))
        logits = (a @ x + c[..., None]).mT @ (b @ y + e[..., None])
        return logits.abs().amax((1, 2)) * self.scale


@st.composite
def blocks(draw):
    kv_heads = draw(st.integers(1, 3))
    block = Block(
        draw(st.integers(0, 2**20)),
        heads=kv_heads * draw(st.integers(1, 3)),
        kv_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 5)),
        width=draw(st.integers(2, 24)),
        dtype=draw(st.sampled_from(DTYPES)),
    )
    if draw(st.booleans()):
        block.with_norm()
    if draw(st.booleans()):
        block.with_biases()
    size = 10.0 ** draw(st.sampled_from([-12, -3, 0, 3, 12]))
    for name in ("query", "query_bias"):
        value = getattr(block, name)
        setattr(block, name, None if value is None else value * size)
    return block


def layer_norm(x):
    return nn.functional.layer_norm(x.double(), x.shape[-1:], eps=1e-12)


def rms_norm(x):
    return nn.functional.rms_norm(x.double(), x.shape[-1:], eps=1e-12)


def rotate(vectors, positions):
    """Rotate pairs of features by angles that grow with the position."""
    half = vectors.shape[-1] // 2
    angles = positions[:, None] * 0.7 ** torch.arange(half)
    first, second = vectors[..., :half], vectors[..., half:]
    return torch.cat(
        [
            first * angles.cos() - second * angles.sin(),
            first * angles.sin() + second * angles.cos(),
        ],
        -1,
    )


@settings(max_examples=150, deadline=None)
@given(block=blocks(), centred=st.booleans(), rope=st.booleans())
def test_no_input_of_the_norm_violates_the_bound(block, centred, rope):
    norm = layer_norm if centred else rms_norm
    x = norm(block.draw(40, block.query.shape[-1]) * 10 ** block.draw(40, 1))
    query, key = block.vectors(x, x)
    if rope:
        positions = torch.arange(40)
        query, key = rotate(query, positions), rotate(key, positions)
    logits = (query @ key.mT).abs().amax((1, 2)) * block.scale
    bound = block.bound(rope=rope, centred=centred)
    assert (logits <= bound).all()


@settings(max_examples=100, deadline=None)
@given(block=blocks(), centred=st.booleans())
def test_the_worst_input_does_not_violate_the_bound(block, centred):
    worst = block.worst(centred)
    for rope in (False, True):
        assert (worst <= block.bound(rope=rope, centred=centred)).all()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**20), centred=st.booleans(), dtype=st.sampled_from(DTYPES))
def test_without_biases_the_bound_is_reached(seed, centred, dtype):
    block = Block(seed, dtype=dtype)
    if seed % 2:
        block.gain = block.draw(16)
    assert block.bound(centred=centred).tolist() == pytest.approx(
        block.worst(centred).tolist(), rel=1e-3
    )
    a, _, b, _ = block.sides()
    if not centred:
        exact = 16 * block.scale * torch.linalg.matrix_norm(a.mT @ b, 2)
        assert block.bound().tolist() == pytest.approx(exact.tolist(), rel=3e-5)  # rounded up
        assert (block.bound() >= exact).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_with_rotations_the_bound_is_within_two_of_what_some_rotation_reaches(seed):
    block = Block(seed, heads=1, kv_heads=1, head_dim=2).with_norm().with_biases()
    # The longest query and the longest key, which some angle lines up.
    a, c, b, e = block.sides()
    reached = block.scale
    for matrix, constant in ((a[0], c[0]), (b[0], e[0])):
        left, _, right = torch.linalg.svd(matrix)
        x = 4 * right[0] * torch.sign(left[:, 0] @ constant)
        for _ in range(300):
            x = matrix.T @ (matrix @ x + constant)
            x = 4 * x / x.norm()
        reached *= (matrix @ x + constant).norm().item()
    bound = block.bound(rope=True).item()
    assert reached <= bound <= 2.001 * reached
    assert bound >= block.bound().item()


def test_the_bound_with_biases_is_about_as_tight_as_the_augmented_matrix():
    ratios = []
    for seed in range(20):
        block = Block(seed, head_dim=8, width=32).with_norm().with_biases()
        a, c, b, e = block.sides()
        augmented = []
        for t in (0.1, 0.3, 1.0):
            tau = math.sqrt(32) * t
            left = torch.cat([a, c[..., None] / tau], -1)
            right = torch.cat([b, e[..., None] / tau], -1)
            augmented.append(32 * (1 + t * t) * torch.linalg.matrix_norm(left.mT @ right, 2))
        least = torch.stack(augmented).amin(0) * block.scale
        ratios.append(block.bound() / least)
    assert torch.stack(ratios).mean() < 1.1
    assert torch.stack(ratios).max() < 1.4


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    p=st.sampled_from([0.1, 0.5]),
    norm=st.booleans(),
    rope=st.booleans(),
)
def test_no_dropout_mask_violates_the_bound(seed, p, norm, rope):
    block = Block(seed)
    if norm:
        block.with_norm()
    gain = torch.ones(16) if block.gain is None else block.gain
    shift = torch.zeros(16) if block.shift is None else block.shift
    inputs = (layer_norm(block.draw(60, 16)) * gain + shift).double()
    masks = (torch.rand(60, 16, generator=block.generator) > p).double() / (1 - p)
    x = inputs * masks
    query, key = x @ block.query.double().mT, x @ block.key.double().mT
    logits = (query @ key.mT).abs().amax((1, 2)) * block.scale
    assert (logits <= block.bound(dropout=p, rope=rope, centred=True)).all()
    assert (block.bound(dropout=p) > block.bound()).all()


@pytest.mark.parametrize("gain", [0.0, 1e-3, 1.0])
def test_a_mask_that_keeps_all_of_a_shift_does_not_violate_the_bound(gain):
    ones = torch.ones(1, 1, 4)
    vectors = {"gain": gain * ones[0, 0], "shift": ones[0, 0]}
    bound = attention_logit_bound(ones, ones, scale=1.0, dropout=0.5, **vectors)
    # x̂ = 1 as well: every feature is (gain + 1) / (1 - p).
    reached = (4 * (gain + 1) / 0.5) ** 2
    assert reached <= bound.item() <= 1.01 * reached


def test_query_heads_share_their_key_head_and_no_other():
    block = Block(0, heads=6, kv_heads=3)
    before = block.bound()
    block.key[1] *= 5
    ratio = block.bound() / before
    assert ratio.tolist() == pytest.approx([1, 1, 5, 5, 1, 1], rel=1e-5)


class TestQkNorm:
    @settings(max_examples=60, deadline=None)
    @given(seed=st.integers(0, 2**20), shifted=st.booleans(), rope=st.booleans())
    def test_no_query_violates_the_bound(self, seed, shifted, rope):
        generator = torch.Generator().manual_seed(seed)
        norms = [nn.LayerNorm(8, dtype=torch.float64, eps=1e-12) for _ in range(2)]
        for norm in norms:
            norm.weight.data = torch.randn(8, generator=generator).double()
            norm.bias.data = shifted * torch.randn(8, generator=generator).double()
        x = torch.randn(64, 8, generator=generator).double()
        query, key = (norm(x).detach() for norm in norms)
        if rope:
            query, key = (rotate(v, torch.arange(64)) for v in (query, key))
        bound = qk_norm_logit_bound(
            norms[0].weight.detach()[None],
            norms[1].weight.detach()[None],
            scale=0.35,
            query_shift=norms[0].bias.detach()[None] if shifted else None,
            key_shift=norms[1].bias.detach()[None] if shifted else None,
            rope=rope,
            centred=True,
        )
        assert 0.35 * (query @ key.T).abs().max() <= bound.item()

    def test_without_biases_it_is_the_largest_product_of_gains(self):
        bound = qk_norm_logit_bound(
            torch.tensor([[1.0, -3.0]]), torch.tensor([[5.0, 2.0]]), scale=0.5
        )
        assert bound.item() == pytest.approx(0.5 * 2 * 6, rel=1e-5)
        rotated = qk_norm_logit_bound(
            torch.tensor([[1.0, -3.0]]), torch.tensor([[5.0, 2.0]]), scale=0.5, rope=True
        )
        assert rotated.item() == pytest.approx(0.5 * 2 * 15, rel=1e-5)


class TestOddValues:
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("rope", [False, True])
    def test_what_is_not_finite_makes_its_own_heads_undefined(self, value, rope):
        block = Block(0, heads=4, kv_heads=2).with_biases()
        block.query[0, 2, 3] = value
        block.key_bias[1, 1] = value
        assert block.bound(rope=rope).isnan().tolist() == [True, False, True, True]

    @pytest.mark.parametrize("name", ["gain", "shift"])
    @pytest.mark.parametrize("dropout", [0.0, 0.1])
    def test_a_norm_that_is_not_finite_makes_all_heads_undefined(self, name, dropout):
        block = Block(0).with_norm()
        getattr(block, name)[3] = math.inf
        assert block.bound(dropout=dropout).isnan().all()

    @pytest.mark.parametrize("rope", [False, True])
    def test_zero_weights_allow_no_logits(self, rope):
        block = Block(0)
        block.query.zero_()
        assert block.bound(rope=rope).tolist() == [0.0] * 4

    @pytest.mark.parametrize("size", [1e-38, 1e-20, 1e20, 1e37])
    def test_scales_at_the_end_of_the_range_are_safe(self, size):
        block, twin = Block(0), Block(0)
        block.query *= size
        block.key *= size
        expected = twin.bound().double() * size**2
        assert block.bound().tolist() == pytest.approx(expected.tolist(), rel=1e-3)

    def test_it_neither_consumes_random_state_nor_obeys_autocast(self):
        block = Block(0).with_norm()
        before, expected = torch.get_rng_state(), block.bound()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(block.bound(), expected)
        assert torch.equal(torch.get_rng_state(), before)

    def test_shapes_that_do_not_fit_are_refused(self):
        weight = torch.zeros(4, 6, 16)
        with pytest.raises(ValueError, match=r"query \(4, 6, 16\) and key \(4, 6, 8\)"):
            attention_logit_bound(weight, weight[..., :8], scale=1.0)
        with pytest.raises(ValueError, match=r"heads=4 must be a multiple of the 3"):
            attention_logit_bound(weight, weight[:3], scale=1.0)
        with pytest.raises(ValueError, match=r"gain \(4,\) must be \(16,\)"):
            attention_logit_bound(weight, weight, scale=1.0, gain=torch.ones(4))
        with pytest.raises(ValueError, match=r"key_bias \(4, 16\) must be \(4, 6\)"):
            attention_logit_bound(weight, weight, scale=1.0, key_bias=torch.ones(4, 16))


class TestScales:
    @settings(max_examples=60, deadline=None)
    @given(block=blocks(), share=st.floats(0.05, 2.0), rope=st.booleans())
    def test_after_scaling_no_head_is_above_the_limit(self, block, share, rope):
        for name in ("query", "key", "gain", "shift", "query_bias", "key_bias"):
            value = getattr(block, name)
            setattr(block, name, None if value is None else value.double())
        bound = block.bound(rope=rope)
        limit = share * bound.max().item()
        kv_heads = len(block.key)
        query, key = qk_scales(bound, limit, kv_heads=kv_heads)
        under = bound <= limit
        assert (query[under] == 1.0).all()
        assert (query[~under] < 1.0).all()
        block.query *= query[:, None, None]
        block.key *= key[:, None, None]
        if block.query_bias is not None:
            block.query_bias *= query[:, None]
            block.key_bias *= key[:, None]
        after = block.bound(rope=rope)
        assert (after <= limit * (1 + 1e-5)).all()
        assert after[~under].tolist() == pytest.approx([limit] * int((~under).sum()), rel=1e-5)

    def test_shared_keys_are_left_alone(self):
        query, key = qk_scales(torch.tensor([400.0, 50.0, 200.0, 1.0]), 100.0, kv_heads=2)
        assert query.tolist() == [0.25, 1.0, 0.5, 1.0]
        assert key.tolist() == [1.0, 1.0]

    def test_what_is_not_known_is_not_acted_on(self):
        query, key = qk_scales(torch.tensor([math.nan, math.inf, 0.0]), 1.0)
        assert query.tolist() == key.tolist() == [1.0, 1.0, 1.0]

    @pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
    def test_a_limit_that_allows_nothing_is_refused(self, limit):
        with pytest.raises(ValueError, match="must be above 0"):
            qk_scales(torch.ones(2), limit)
