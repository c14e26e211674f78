"""What each function of a forward pass computes: laws, oracles and what it is asked in error."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stableopt.functional import (
    attention_entropy,
    clamp_delta_norm,
    clamp_lora_output,
    effective_rank,
    lora_delta_norm,
    lora_norm_penalty,
    overlap_penalty,
    soft_clamp_logits,
    spectral_entropy,
    z_loss,
)

LOW = [torch.bfloat16, torch.float16]
seeds = st.integers(0, 2**16)


def randn(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def every_number(dtype):
    """Return all finite numbers of a dtype of 16 bits, and both infinities, in order."""
    values = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    return values[~values.isnan()].sort(stable=True).values


class TestSoftClamp:
    @pytest.mark.parametrize("dtype", LOW)
    @pytest.mark.parametrize(
        ("threshold", "limit"), [(50.0, 100.0), (0.0, 30.0), (50.3, 100.3), (2.0, 2.01), (1.0, 1e5)]
    )
    def test_every_number_of_sixteen_bits(self, dtype, threshold, limit):
        x = every_number(dtype).requires_grad_()
        y = soft_clamp_logits(x, threshold, limit)
        within = x.double().abs() <= threshold
        assert torch.equal(y[within].view(torch.int16), x[within].view(torch.int16))
        assert y.double().abs().max() <= limit
        assert (y.double().diff() >= 0).all()
        assert torch.equal(soft_clamp_logits(-x, threshold, limit), -y)
        y.sum().backward()
        assert ((x.grad >= 0) & (x.grad <= 1)).all()
        assert (x.grad[within] == 1).all()

    @given(
        x=st.floats(width=32, allow_nan=False),
        threshold=st.floats(0, 1e3),
        width=st.floats(1e-2, 1e3),
    )
    def test_the_formula(self, x, threshold, width):
        limit = threshold + width
        assume(threshold < limit)
        actual = soft_clamp_logits(torch.tensor(x, dtype=torch.float64), threshold, limit).item()
        excess = max(abs(x) - threshold, 0.0)
        expected = math.copysign(min(abs(x), threshold) + width * math.tanh(excess / width), x)
        assert actual == pytest.approx(expected, rel=1e-12, abs=1e-300)
        assert abs(actual) <= limit
        single = soft_clamp_logits(torch.tensor(x), threshold, limit).item()
        assert single == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert abs(single) <= limit

    def test_the_infinities_become_the_limit_and_nan_stays(self):
        x = torch.tensor([math.inf, -math.inf, math.nan, -0.0])
        y = soft_clamp_logits(x)
        assert y[:2].tolist() == [100.0, -100.0]
        assert math.isnan(y[2])
        assert math.copysign(1, y[3].item()) == -1

    def test_without_a_threshold_it_is_the_soft_cap_of_gemma(self):
        x = 200 * randn(50)
        torch.testing.assert_close(soft_clamp_logits(x, 0, 30), 30 * torch.tanh(x / 30))

    def test_the_slope_does_not_jump_at_the_threshold(self):
        x = torch.tensor([50.0, 50.0 + 1e-6], dtype=torch.float64, requires_grad=True)
        soft_clamp_logits(x).sum().backward()
        assert x.grad[0] == 1
        assert x.grad[1] == pytest.approx(1, abs=1e-9)

    @pytest.mark.parametrize(
        ("threshold", "limit"),
        [(-1, 5), (5, 5), (6, 5), (1, math.inf), (math.nan, 5), (1, math.nan)],
    )
    def test_limits_that_are_none(self, threshold, limit):
        with pytest.raises(ValueError, match=r"threshold=.* must be 0 <= threshold < limit < inf"):
            soft_clamp_logits(torch.ones(1), threshold, limit)


@st.composite
def factors(draw):
    """Draw two factors, some of them without full rank, at any scale."""
    rank, inner, outer = (draw(st.integers(1, 7)) for _ in range(3))
    seed = draw(seeds)
    a, b = randn(2, rank, inner, seed=seed), randn(2, outer, rank, seed=seed + 1)
    if draw(st.booleans()):
        a = a[:, :1].expand_as(a)
    if draw(st.booleans()):
        b = b[..., :1].expand_as(b)
    exponents = st.integers(-60, 60)
    return a * 10.0 ** draw(exponents), b * 10.0 ** draw(exponents)


class TestLoraDeltaNorm:
    @settings(max_examples=150, deadline=None)
    @given(ab=factors(), scale=st.sampled_from([1.0, -2.0, 0.25]))
    def test_it_is_the_norm_of_the_product(self, ab, scale):
        a, b = ab
        for order, name in ((None, "fro"), (2, "spectral")):
            product = scale * b @ a
            largest = product.abs().amax((1, 2), keepdim=True)
            exact = torch.stack([torch.linalg.norm(p, order) for p in product / largest])
            exact = exact * largest[:, 0, 0]
            # A Gram matrix squares what cancels.
            parts = abs(scale) * torch.linalg.matrix_norm(a) * torch.linalg.matrix_norm(b)
            error = (lora_delta_norm(a, b, scale=scale, ord=name) - exact).abs()
            assert (error <= exact * (1e-9 + 1e-14 * (parts / exact) ** 2)).all()

    @pytest.mark.parametrize("gap", [0.0, 1e-12, 1e-9, 1e-6, 1e-3])
    def test_singular_values_that_are_close_to_each_other(self, gap):
        left, middle, right = (torch.linalg.qr(randn(16, 16, seed=i)).Q for i in range(3))
        values = torch.linspace(1, 1 - 15 * gap, 16, dtype=torch.float64)
        norm = lora_delta_norm(right, left * values @ middle, ord="spectral")
        assert norm.item() == pytest.approx(1, rel=1e-8)

    @pytest.mark.parametrize("kind", ["fro", "spectral"])
    def test_what_is_left_of_a_cancellation(self, kind):
        half = randn(8, 64, dtype=torch.float32)
        a = torch.cat([half, half + 1e-4 * randn(8, 64, seed=1).float()])
        left = randn(48, 8, seed=2, dtype=torch.float32)
        b = torch.cat([left, -left], dim=1)
        exact = torch.linalg.matrix_norm(b.double() @ a.double(), 2 if kind == "spectral" else kind)
        assert lora_delta_norm(a, b, ord=kind).item() == pytest.approx(exact.item(), rel=1e-6)

    @pytest.mark.parametrize("kind", ["fro", "spectral"])
    @pytest.mark.parametrize("zero", [0, 1])
    def test_a_fresh_adapter_has_norm_zero_and_no_gradient(self, kind, zero):
        leaves = [randn(2, 3, 6, dtype=torch.float32), randn(2, 5, 3, dtype=torch.float32)]
        leaves[zero].zero_()
        leaves = [leaf.requires_grad_() for leaf in leaves]
        norm = lora_delta_norm(*leaves, ord=kind)
        norm.sum().backward()
        assert norm.tolist() == [0.0, 0.0]
        assert not any(leaf.grad.any() for leaf in leaves)

    def test_one_shared_factor_for_all_samples(self):
        a, b = randn(3, 6), randn(4, 5, 3)
        for kind in ("fro", "spectral"):
            shared = lora_delta_norm(a, b, ord=kind)
            assert torch.allclose(shared, lora_delta_norm(a.expand(4, 3, 6), b, ord=kind))

    @pytest.mark.parametrize(
        ("a", "b"), [((3, 6), (5, 4)), ((6,), (5, 6)), ((0, 6), (5, 0)), ((3, 6), (3, 5))]
    )
    def test_shapes_that_do_not_fit(self, a, b):
        with pytest.raises(ValueError, match=r"a.shape=.* must be \(..., r, in\)"):
            lora_delta_norm(torch.ones(a), torch.ones(b))

    def test_a_norm_that_is_none(self):
        with pytest.raises(ValueError, match="ord='nuc' must be 'fro' or 'spectral'"):
            lora_delta_norm(torch.ones(1, 1), torch.ones(1, 1), ord="nuc")


class TestClampLoraOutput:
    @settings(max_examples=80, deadline=None)
    @given(seed=seeds, exponent=st.integers(-3, 3), kind=st.sampled_from(["fro", "spectral"]))
    def test_it_is_the_output_of_a_clamped_update(self, seed, exponent, kind):
        a, b = randn(2, 3, 6, seed=seed), randn(2, 5, 3, seed=seed + 1) * 10.0**exponent
        x = randn(2, 4, 6, seed=seed + 2)
        delta = 0.5 * b @ a
        norm = torch.linalg.matrix_norm(delta, 2 if kind == "spectral" else kind)
        y = 0.5 * (x @ a.mT) @ b.mT
        clamped = clamp_lora_output(y, a, b, 1.0, scale=0.5, ord=kind)
        expected = x @ (delta * (1 / norm).clamp(max=1.0)[:, None, None]).mT
        torch.testing.assert_close(clamped, expected)
        assert torch.equal(clamped[norm <= 1], y[norm <= 1])

    def test_y_has_to_begin_with_the_samples(self):
        with pytest.raises(ValueError, match=r"y.shape=\(4, 2, 5\) must begin with \(2,\)"):
            clamp_lora_output(torch.ones(4, 2, 5), randn(2, 3, 6), randn(2, 5, 3), 1.0)

    @pytest.mark.parametrize("max_norm", [0.0, -1.0, math.nan])
    def test_a_norm_that_is_not_above_zero(self, max_norm):
        with pytest.raises(ValueError, match=r"max_norm=.* must be above 0"):
            clamp_lora_output(torch.ones(5), randn(3, 6), randn(5, 3), max_norm)


class TestClampDeltaNorm:
    @settings(max_examples=150, deadline=None)
    @given(
        seed=seeds,
        dtype=st.sampled_from([torch.float64, torch.float32, *LOW]),
        exponent=st.integers(-6, 3),
        size=st.sampled_from([1, 7, 100, 4096]),
        alike=st.booleans(),
        max_norm=st.floats(1e-3, 100),
    )
    def test_it_is_the_projection_and_never_above(
        self, seed, dtype, exponent, size, alike, max_norm
    ):
        delta = randn(3, size, seed=seed)
        delta = delta[:, :1].expand_as(delta) if alike else delta
        delta = (delta * 10.0**exponent).to(dtype)
        clamped = clamp_delta_norm(delta, max_norm)
        before, after = delta.double().norm(dim=1), clamped.double().norm(dim=1)
        assert (after <= max_norm * (1 + 1e-12)).all()
        under = before <= max_norm * (1 - 1e-6)
        assert torch.equal(clamped[under], delta[under])
        factor = (max_norm / before.clamp(min=1e-300)).clamp(max=1.0)[:, None]
        info = torch.finfo(dtype)
        torch.testing.assert_close(
            clamped.double(),
            delta.double() * factor,
            rtol=2 * info.eps + 2e-6,
            atol=2 * info.tiny * info.eps * math.sqrt(size),
        )
        assert torch.equal(clamp_delta_norm(clamped, max_norm), clamped)

    def test_a_norm_of_millions_of_values_is_as_exact(self):
        for seed in range(5):
            delta = 1 + 0.1 * randn(1, 1000, 2000, seed=seed, dtype=torch.float32)
            clamped = clamp_delta_norm(delta, 3.0)
            assert 3 * (1 - 2e-6) <= clamped.double().norm() <= 3
            assert torch.equal(clamp_delta_norm(clamped, 3.0), clamped)

    @pytest.mark.parametrize("max_norm", [5e-3, 6e-3, 7e-3, 8e-3, 9e-3])
    def test_values_that_become_subnormal(self, max_norm):
        delta = torch.full((1, 2**20), 1.0, dtype=torch.float16)
        norm = clamp_delta_norm(delta, max_norm).double().norm().item()
        assert 0.97 * max_norm <= norm <= max_norm

    def test_samples_do_not_touch_each_other(self):
        delta = randn(4, 3, 5, dtype=torch.float32)
        delta[1, 0, 0], delta[2, 0, 0] = math.nan, math.inf
        clamped = clamp_delta_norm(delta, 0.1)
        assert torch.equal(clamped[1:3].isnan(), delta[1:3].isnan())
        assert torch.equal(clamped[2], delta[2])
        for i in (0, 3):
            assert torch.equal(clamped[i], clamp_delta_norm(delta[i : i + 1], 0.1)[0])

    def test_other_dimensions(self):
        delta = randn(4, 3, 5)
        assert clamp_delta_norm(delta, 0.5, dim=(0, 1, 2)).norm() == pytest.approx(0.5, rel=1e-5)
        rows = clamp_delta_norm(delta, 0.5, dim=-1)
        assert torch.equal(rows, clamp_delta_norm(delta.flatten(0, 1), 0.5).view_as(delta))

    def test_no_samples(self):
        assert clamp_delta_norm(torch.ones(0, 3), 1.0).shape == (0, 3)

    def test_what_has_no_norm(self):
        with pytest.raises(ValueError, match="leave nothing to take the norm over"):
            clamp_delta_norm(torch.ones(3), 1.0)
        with pytest.raises(ValueError, match=r"dim=\(\) leave nothing"):
            clamp_delta_norm(torch.ones(3, 3), 1.0, dim=())

    @pytest.mark.parametrize("max_norm", [0.0, -1.0, math.nan, math.inf])
    def test_a_limit_that_is_none(self, max_norm):
        with pytest.raises(ValueError, match=r"max_norm=.* must be above 0 and finite"):
            clamp_delta_norm(torch.ones(3, 3), max_norm)


class TestLoraNormPenalty:
    @given(seed=seeds, target=st.floats(0, 10))
    def test_it_is_the_mean_distance_of_the_mean_norm(self, seed, target):
        deltas = {"gate": randn(4, 3, 5, seed=seed), "context": randn(4, 7, 2, seed=seed + 1)}
        means = [d.flatten(1).norm(dim=1).mean().item() for d in deltas.values()]
        expected = sum(abs(mean - target) for mean in means) / 2
        assert lora_norm_penalty(deltas, target).item() == pytest.approx(expected)
        assert lora_norm_penalty(list(deltas.values()), target).item() == pytest.approx(expected)

    def test_a_step_down_the_gradient_moves_the_norm_towards_the_target(self):
        for factor in (0.2, 5.0):
            delta = (factor * torch.nn.functional.normalize(randn(1, 12))).requires_grad_()
            lora_norm_penalty([delta]).backward()
            moved = (delta - 0.1 * delta.grad).norm().item()
            assert moved == pytest.approx(factor + math.copysign(0.1, 1 - factor))

    def test_what_is_no_collection_of_updates(self):
        with pytest.raises(ValueError, match="deltas is empty"):
            lora_norm_penalty({})
        with pytest.raises(ValueError, match="deltas is one tensor"):
            lora_norm_penalty(torch.ones(2, 3, 3))
        with pytest.raises(ValueError, match=r"deltas\['up'\].shape=\(3,\) must be \(B, ...\)"):
            lora_norm_penalty({"up": torch.ones(3)})
        with pytest.raises(ValueError, match=r"deltas\[1\].shape=\(0, 3\)"):
            lora_norm_penalty([torch.ones(2, 3), torch.ones(0, 3)])
        with pytest.raises(ValueError, match=r"target=-1.0 must be at least 0"):
            lora_norm_penalty([torch.ones(2, 3)], -1.0)


class TestAttentionEntropy:
    @given(seed=seeds, sharpness=st.floats(0, 50), places=st.integers(1, 30))
    def test_it_is_that_of_a_distribution_whatever_the_scale(self, seed, sharpness, places):
        weights = torch.softmax(sharpness * randn(3, 2, places, seed=seed), -1)
        entropy = attention_entropy(weights)
        expected = torch.distributions.Categorical(probs=weights).entropy()
        torch.testing.assert_close(entropy, expected, rtol=1e-9, atol=1e-9)
        assert (entropy >= 0).all()
        assert (entropy <= math.log(places) + 1e-12).all()
        torch.testing.assert_close(attention_entropy(1e-30 * weights), entropy)
        torch.testing.assert_close(attention_entropy(weights.mT, dim=-2), entropy)

    def test_masked_places_and_rows(self):
        logits = randn(2, 5, dtype=torch.float32)
        logits[:, 3:] = -math.inf
        logits.requires_grad_()
        weights = torch.softmax(logits, -1)
        entropy = attention_entropy(torch.cat([weights, torch.zeros(1, 5)]))
        torch.testing.assert_close(entropy[:2], attention_entropy(weights[:, :3]))
        assert entropy[2] == 0
        entropy.sum().backward()
        assert torch.isfinite(logits.grad).all()
        assert logits.grad[:, :3].all()

    def test_what_is_no_attention(self):
        assert attention_entropy(torch.tensor([0.5, -0.1, 0.6])).isnan()
        assert attention_entropy(torch.tensor([-0.5, -0.5])).isnan()
        with pytest.raises(ValueError, match="must have at least one place"):
            attention_entropy(torch.ones(2, 0))


class TestOverlapPenalty:
    @given(seed=seeds, count=st.integers(2, 6), power=st.integers(-12, 12))
    def test_it_is_the_mean_cosine_over_pairs(self, seed, count, power):
        maps = randn(2, count, 3, 4, seed=seed).relu()
        flat = maps.flatten(2)
        pairs = [(k, m) for k in range(count) for m in range(count) if k != m]
        cosines = [torch.cosine_similarity(flat[:, k], flat[:, m], dim=1) for k, m in pairs]
        expected = torch.stack(cosines).mean().item()
        value = overlap_penalty(maps)
        assert value.item() == pytest.approx(expected, abs=1e-9)
        factors = 10.0 ** (power * randn(2, count, 1, 1, seed=seed).tanh())
        torch.testing.assert_close(overlap_penalty(maps * factors), value)

    def test_from_nothing_in_common_to_all_alike(self):
        assert overlap_penalty(torch.eye(6)[None]).item() == 0
        assert overlap_penalty(torch.ones(2, 5, 4, 4)).item() == pytest.approx(1)
        # Spread out, and yet the same: a sum of products would call this 1/16.
        assert overlap_penalty(torch.full((1, 3, 16), 1 / 16)).item() == pytest.approx(1)

    def test_one_map_has_nothing_to_overlap_with(self):
        maps = randn(2, 1, 3, 3).abs().requires_grad_()
        value = overlap_penalty(maps)
        value.backward()
        assert value.item() == 0
        assert not maps.grad.any()

    def test_a_map_of_zeros_is_left_alone(self):
        maps = torch.ones(1, 3, 4)
        maps[0, 1] = 0
        maps.requires_grad_()
        value = overlap_penalty(maps)
        value.backward()
        assert value.item() == pytest.approx(1 / 3)
        assert not maps.grad[0, 1].any()

    @pytest.mark.parametrize("shape", [(2, 3), (0, 2, 3), (2, 0, 3)])
    def test_what_is_no_map(self, shape):
        with pytest.raises(ValueError, match=r"maps.shape=.* must be \(B, K, ...\)"):
            overlap_penalty(torch.ones(shape))


class TestSpectralEntropy:
    @settings(max_examples=80, deadline=None)
    @given(seed=seeds, rows=st.integers(1, 12), columns=st.integers(1, 12), rank=st.integers(1, 12))
    def test_its_exponential_is_the_effective_rank(self, seed, rows, columns, rank):
        matrix = randn(3, rows, rank, seed=seed) @ randn(3, rank, columns, seed=seed + 1)
        ranks = torch.stack([effective_rank(m) for m in matrix])
        torch.testing.assert_close(spectral_entropy(matrix).exp(), ranks, rtol=1e-9, atol=0)
        single = spectral_entropy(1e30 * matrix.float()).exp()
        torch.testing.assert_close(single.double(), ranks, rtol=1e-5, atol=0)

    def test_repeated_and_missing_directions(self):
        values = torch.tensor([2.0, 2.0, 2.0, 0.0, 0.0], dtype=torch.float64)
        u, v = torch.linalg.qr(randn(5, 5)).Q, torch.linalg.qr(randn(7, 5, seed=1)).Q
        matrix = (u * values @ v.mT).requires_grad_()
        entropy = spectral_entropy(matrix)
        assert entropy.item() == pytest.approx(math.log(3))
        entropy.backward()
        # All alike is a maximum among matrices of this rank.
        assert matrix.grad.abs().max() < 1e-12

    def test_a_step_up_the_gradient_raises_it(self):
        matrix = (randn(6, 8) * torch.logspace(0, -3, 8).double()).requires_grad_()
        before = spectral_entropy(matrix)
        before.backward()
        step = 1e-4 / matrix.grad.norm()
        assert spectral_entropy(matrix + step * matrix.grad) > before

    def test_odd_matrices(self):
        zero = torch.zeros(2, 3, 4, requires_grad=True)
        spectral_entropy(zero).sum().backward()
        assert spectral_entropy(zero).tolist() == [0.0, 0.0]
        assert not zero.grad.any()
        batch = randn(3, 4, 4, dtype=torch.float32)
        batch[0, 0, 0], batch[1, 0, 0] = math.nan, math.inf
        assert spectral_entropy(batch).isnan().tolist() == [True, True, False]
        for shape in [(3,), (0, 3), (2, 3, 0)]:
            with pytest.raises(ValueError, match=r"matrix.shape=.* must be \(..., m, n\)"):
                spectral_entropy(torch.ones(shape))


class TestZLoss:
    @given(seed=seeds, shift=st.floats(-100, 100))
    def test_it_is_the_mean_square_of_log_z(self, seed, shift):
        logits = randn(4, 3, 7, seed=seed) + shift
        expected = logits.exp().sum(-1).log().square().mean()
        torch.testing.assert_close(z_loss(logits), expected)
        torch.testing.assert_close(z_loss(logits.mT, dim=-2), expected)
        mask = torch.rand(4, 3, generator=torch.Generator().manual_seed(seed)) < 0.5
        mask[0, 0] = True
        torch.testing.assert_close(z_loss(logits, mask=mask), z_loss(logits[mask]))

    def test_what_is_not_counted_may_be_anything(self):
        logits = randn(4, 5, dtype=torch.float32)
        logits[1], logits[2] = math.nan, -math.inf
        logits[3, 2:] = -math.inf
        logits.requires_grad_()
        mask = torch.tensor([True, False, False, True])
        value = z_loss(logits, mask=mask)
        torch.testing.assert_close(value, z_loss(logits[mask]))
        value.backward()
        assert torch.isfinite(logits.grad).all()
        assert not logits.grad[1:3].any()
        assert logits.grad[[0, 3], 0].all()

    def test_nothing_counts(self):
        logits = randn(2, 3).requires_grad_()
        value = z_loss(logits, mask=torch.zeros(2, dtype=torch.bool))
        value.backward()
        assert value.item() == 0
        assert not logits.grad.any()

    def test_what_is_no_mask_or_no_logits(self):
        with pytest.raises(ValueError, match=r"mask.dtype=torch.float32 must be torch.bool"):
            z_loss(torch.ones(2, 3), mask=torch.ones(2))
        with pytest.raises(ValueError, match=r"logits.shape=\(0, 3\)"):
            z_loss(torch.ones(0, 3))
