"""UpdateCap: no step is longer than it may be, in its direction, and nothing else changes."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stableopt import Action, ClipGradNorm, ConfigError, Guard, StableOptimizer, UpdateCap
from stableopt.transforms.update_cap import unit_norm
from tests.contract.bits import assert_same
from tests.contract.scenario import copied

RATIO = 0.01


def capped(parameters, ratio=RATIO, make=torch.optim.SGD, lr=1.0, cap=True, **options):
    options = {"sensors": (), **options}
    return StableOptimizer(
        make(parameters, lr=lr), transforms=[UpdateCap(ratio)] if cap else [], **options
    )


def one_step(weight, gradient, ratio=RATIO, **options):
    """Return a weight before and after one step."""
    parameter = nn.Parameter(weight.clone())
    opt = capped([parameter], ratio, **options)
    parameter.grad = gradient.clone()
    opt.step()
    return weight, parameter.detach(), opt


def length(tensor):
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    return float(torch.linalg.vector_norm(tensor.to(wide)))


def room(old):
    """Return what rounding may add to the length of a step that ends near ``old``."""
    return torch.finfo(old.dtype).eps * length(old)


def reach_of(weight):
    """The norm that a step is compared with, as the documentation has it."""
    if weight.numel() == 0:
        return 0.0
    inputs = weight.numel() if weight.dim() < 2 else weight[0].numel()
    unit = math.sqrt(weight.numel() / inputs)
    return min(max(length(weight), unit / 2), 2 * unit)


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
shapes = st.lists(st.integers(1, 5), max_size=4).map(tuple)


class TestLaws:
    @settings(deadline=None, max_examples=60)
    @given(
        shape=shapes,
        dtype=st.sampled_from(DTYPES),
        ratio=st.sampled_from([1e-3, 0.01, 0.1, 2.0]),
        size=st.sampled_from([0.0, 1e-3, 1.0, 30.0]),
        push=st.sampled_from([1e-6, 1e-2, 1.0, 100.0]),
        seed=st.integers(0, 99),
    )
    def test_the_length_is_bounded_and_the_direction_kept(
        self, shape, dtype, ratio, size, push, seed
    ):
        torch.manual_seed(seed)
        old = (torch.randn(shape) * size).to(dtype)
        gradient = (torch.randn(shape) * push).to(dtype)
        _, free, _ = one_step(old, gradient, cap=False)
        _, new, _ = one_step(old, gradient, ratio)
        bound = ratio * reach_of(old)
        step, wanted = (new - old).double(), (free - old).double()
        assert length(step) <= bound * (1 + 1e-5) + room(old) + room(new)
        if length(wanted) <= bound * (1 - 1e-2):
            assert_same(new, free)
        elif dtype is torch.float64:
            share = bound / length(wanted)
            assert torch.allclose(step, wanted * share, rtol=1e-6, atol=1e-12 * (1 + size))

    def test_just_under_the_bound_nothing_changes_and_just_above_it_does(self):
        old = torch.full((4,), 0.5, dtype=torch.float64)
        for push, acts in ((0.00499999, False), (0.00500001, True)):
            _, new, opt = one_step(old, torch.full((4,), push, dtype=torch.float64))
            assert bool(opt.summary()["transforms"][0]["changes"]) is acts
            assert float(old[0] - new[0]) == pytest.approx(min(push, 0.005), rel=1e-9)

    def test_the_run_is_that_of_the_bare_optimizer_while_no_step_is_too_long(self):
        def trained(cap):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2))
            opt = capped(model.parameters(), 0.5, torch.optim.AdamW, 1e-3, cap)
            for _ in range(8):
                opt.zero_grad()
                model(torch.randn(5, 4)).pow(2).mean().backward()
                opt.step()
            return copied(model.state_dict()), copied(opt.optimizer.state_dict())

        assert_same(trained(True), trained(False))

    def test_only_what_is_too_long_changes_and_the_state_not_at_all(self):
        def after(cap):
            torch.manual_seed(0)
            far, near = nn.Parameter(torch.ones(6)), nn.Parameter(torch.ones(3, 2))
            opt = StableOptimizer(
                torch.optim.AdamW([{"params": [far], "lr": 1.0}, {"params": [near]}], lr=1e-5),
                transforms=[UpdateCap(RATIO)] if cap else [],
            )
            far.grad, near.grad = torch.randn(6), torch.randn(3, 2)
            opt.step()
            return far.detach(), near.detach(), copied(opt.optimizer.state_dict()), opt

        far, near, state, opt = after(True)
        free, same, bare, _ = after(False)
        assert length(far - 1) <= RATIO * 2 * (1 + 1e-5)
        assert length(free - 1) > 1
        assert_same((near, state), (same, bare))
        (act,) = opt.ledger[0].acts
        assert act.where == ("0.0",)
        assert act.before[0] == pytest.approx(length(free - 1) / 2)
        assert act.after == (RATIO,)

    def test_weight_decay_is_a_part_of_the_step(self):
        _, new, _ = one_step(
            torch.full((4,), 1.0),
            torch.zeros(4),
            make=lambda p, lr: torch.optim.SGD(p, lr=lr, weight_decay=0.5),
        )
        assert new.tolist() == pytest.approx([0.99] * 4)


class TestTensors:
    @pytest.mark.parametrize(
        ("shape", "expected"),
        [
            ((3, 5), math.sqrt(3)),
            ((3, 4, 2, 2), math.sqrt(3)),
            ((7,), 1.0),
            ((), 1.0),
            ((0,), 0.0),
            ((0, 5), 0.0),
            ((5, 0), 0.0),
        ],
    )
    def test_the_norm_that_keeps_the_size_of_inputs(self, shape, expected):
        assert unit_norm(torch.zeros(shape)) == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("weight", "expected"),
        [
            (torch.tensor(-1.5), 1.5),
            (torch.tensor(-5.0), 2.0),
            (torch.full((4,), 0.6), 1.2),
            (torch.full((4,), 0.1), 0.5),
            (torch.full((3, 3), 0.5), 1.5),
            (torch.full((3, 3), 5.0), 2 * math.sqrt(3)),
            (torch.full((2, 2), 0.3 + 0.4j), 1.0),
            (torch.full((400,), 0.05, dtype=torch.float16), 1.0),
            (torch.full((400,), 4000.0, dtype=torch.float16), 2.0),  # its norm overflows
        ],
    )
    def test_the_step_is_held_against_the_norm_before_it(self, weight, expected):
        old, new, _ = one_step(weight, torch.full_like(weight, 3e4), ratio=0.125)
        share = 2e-2 if weight.dtype is torch.float16 else 1e-4
        moved = length(new - old) if expected * 0.125 > room(old) else 0.0
        assert moved == pytest.approx(0.125 * expected if moved else 0.0, rel=share)

    def test_weights_that_grow_may_move_further(self):
        weight = nn.Parameter(torch.ones(4, dtype=torch.float64))
        opt = capped([weight])
        found = [pushed(opt, weight) for _ in range(3)]
        assert found == pytest.approx([RATIO] * 3, rel=1e-9)
        assert length(weight.detach()) == pytest.approx(2.0 * (1 - RATIO) ** 3, rel=1e-9)

    @pytest.mark.parametrize("shape", [(), (5,), (3, 4), (3, 2, 2, 2)])
    @pytest.mark.parametrize("dtype", [*DTYPES, torch.complex64])
    def test_shapes_and_dtypes_that_begin_at_zero(self, shape, dtype):
        old, new, _ = one_step(torch.zeros(shape, dtype=dtype), torch.ones(shape, dtype=dtype))
        bound = RATIO * (math.sqrt(3) if len(shape) > 1 else 1.0) / 2
        assert length(new - old) == pytest.approx(bound, rel=1e-2 if dtype in DTYPES[2:] else 1e-5)

    def test_complex(self):
        old = torch.tensor([0.6 + 0.8j, 0j])
        _, new, _ = one_step(old, torch.tensor([1j, 2.0]))
        step = new - old
        assert length(step) == pytest.approx(RATIO, rel=1e-5)
        assert torch.allclose(step, torch.tensor([-1j, -2.0]) * RATIO / math.sqrt(5), atol=1e-6)

    def test_empty_integer_and_frozen_ones_are_left_alone(self):
        parameters = [
            nn.Parameter(torch.ones(3)),
            nn.Parameter(torch.ones(0, 3)),
            nn.Parameter(torch.arange(3), requires_grad=False),
            nn.Parameter(torch.ones(2), requires_grad=False),
        ]
        opt = capped(parameters, guard=False)
        for p in parameters[:2]:
            p.grad = torch.ones_like(p)
        opt.step()
        assert opt.summary()["transforms"][0]["parameters"] == 2
        assert length(parameters[0].detach() - 1) == pytest.approx(RATIO * math.sqrt(3))
        assert parameters[2].tolist() == [0, 1, 2]
        assert parameters[3].tolist() == [1.0, 1.0]

    def test_rows_of_a_sparse_gradient(self):
        table = nn.Embedding(6, 3, sparse=True)
        with torch.no_grad():
            table.weight.fill_(1.0)
        opt = capped(table.parameters())
        (table(torch.tensor([1, 4, 4])).sum() * 50).backward()
        opt.step()
        step = table.weight.detach() - 1
        assert length(step) == pytest.approx(RATIO * math.sqrt(18), rel=1e-5)
        assert [bool(row.any()) for row in step] == [False, True, False, False, True, False]
        assert float(step[4, 0] / step[1, 0]) == pytest.approx(2.0, rel=1e-4)

    def test_views_that_are_not_dense(self):
        whole = torch.ones(4, 6)
        view = nn.Parameter(whole[:, ::2])
        opt = capped([view])
        for _ in range(2):
            view.grad = torch.ones(4, 3)
            opt.step()
        way = 1 - (1 - RATIO) ** 2
        assert length(view.detach() - 1) == pytest.approx(way * math.sqrt(12), rel=1e-5)
        assert bool((whole[:, 1::2] == 1).all())

    @pytest.mark.parametrize("old", [torch.zeros(4), torch.full((4,), 2.0)])
    def test_finite_steps_whose_norm_overflows(self, old):
        _, new, opt = one_step(old, torch.full((4,), 1e30))
        assert opt.verdict.action is Action.TAKE
        assert length(new - old) == pytest.approx(RATIO * reach_of(old), rel=1e-5)

    def test_half_precision_whose_norm_overflows(self):
        old = torch.full((400,), 0.1, dtype=torch.float16)
        _, new, _ = one_step(old, torch.full((400,), 6e4, dtype=torch.float16), ratio=0.5)
        assert new.tolist() == pytest.approx([0.05] * 400, abs=1e-3)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_a_step_that_is_not_finite_is_left_for_the_guard_to_see(self, bad):
        class Spoils(torch.optim.SGD):
            def step(self, closure=None):
                super().step()
                with torch.no_grad():
                    self.param_groups[0]["params"][0][1] = bad

        weights = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))]
        opt = capped(weights, make=Spoils, guard=Guard(every=1))
        for p in weights:
            p.grad = torch.ones(3)
        opt.step()
        assert not math.isfinite(float(weights[0].detach()[1]))
        assert float(weights[0].detach()[0]) == 0.0  # nothing hides where it came from
        assert length(weights[1].detach() - 1) == pytest.approx(RATIO * math.sqrt(3), rel=1e-5)
        for p in weights:
            p.grad = torch.ones(3)
        opt.step()
        assert opt.verdict.action is not Action.TAKE
        assert "weight" in opt.verdict.findings[0].kind


def pushed(opt, weight, lr=None):
    """Take a step that is far too long, and return which share of the weight it was in the end."""
    before = weight.detach().clone()
    if lr is not None:
        opt.param_groups[0]["lr"] = lr
    weight.grad = torch.full_like(weight, 1e6)
    opt.step()
    return length(weight.detach() - before) / reach_of(before)


class TestLearningRate:
    def test_the_schedule_brings_the_steps_down_by_the_root(self):
        weight = nn.Parameter(torch.ones(4, 4, dtype=torch.float64))
        opt = capped([weight], lr=3.0)
        found = [pushed(opt, weight, lr) for lr in (1.0, 3.0, 1.5, 0.03, 3.0, 12.0, 3.0)]
        share = [1, 1, math.sqrt(0.5), 0.1, 1, 1, 0.5]
        assert found == pytest.approx([RATIO * s for s in share], rel=1e-9)

    @pytest.mark.parametrize("lr", [1e-2, 1.0, 1e4])
    def test_how_high_it_begins_does_not_matter(self, lr):
        weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
        opt = capped([weight], lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 4)
        found = []
        for _ in range(5):
            found.append(pushed(opt, weight))
            schedule.step()
        roots = [math.sqrt((1 + math.cos(math.pi * t / 4)) / 2) for t in range(5)]
        assert found == pytest.approx([RATIO * r for r in roots], abs=1e-9)

    def test_a_tensor_as_learning_rate(self):
        weight = nn.Parameter(torch.ones(4))
        opt = capped([weight], lr=torch.tensor(0.5))
        assert pushed(opt, weight) == pytest.approx(RATIO, rel=1e-5)
        opt.param_groups[0]["lr"].fill_(0.125)
        assert pushed(opt, weight) == pytest.approx(RATIO / 2, rel=1e-5)
        assert opt.state_dict()["stableopt"]["transforms"]["peaks"] == {"0": 0.5}

    def test_zero(self):
        weight = nn.Parameter(torch.ones(4))
        opt = capped([weight], lr=0.0)
        assert pushed(opt, weight) == 0.0
        assert opt.summary()["transforms"][0]["changes"] == 0
        assert pushed(opt, weight, 2.0) == pytest.approx(RATIO, rel=1e-5)
        assert pushed(opt, weight, 0.0) == 0.0
        opt.register_step_post_hook(lambda *_: weight.data.add_(1.0))
        assert pushed(opt, weight, 0.0) == 0.0

    def test_below_zero_it_is_its_size_that_counts(self):
        weight = nn.Parameter(torch.ones(4, dtype=torch.float64))
        opt = capped([weight])
        assert pushed(opt, weight, 1.0) == pytest.approx(RATIO, rel=1e-6)
        assert pushed(opt, weight, -0.25) == pytest.approx(RATIO / 2, rel=1e-6)

    def test_one_that_is_not_finite_is_no_peak(self):
        class Deaf(torch.optim.SGD):
            def step(self, closure=None):
                with torch.no_grad():
                    self.param_groups[0]["params"][0].sub_(1.0)

        weight = nn.Parameter(torch.ones(4, dtype=torch.float64))
        opt = capped([weight], make=Deaf)
        found = [pushed(opt, weight, lr) for lr in (1.0, math.inf, math.nan, 1.0)]
        assert found[0] == pytest.approx(RATIO) == found[3]

    def test_without_one(self):
        class Bare(torch.optim.Optimizer):
            def __init__(self, params, lr):
                super().__init__(params, {})

            @torch.no_grad()
            def step(self, closure=None):
                for p in self.param_groups[0]["params"]:
                    p.sub_(p.grad)

        weight = nn.Parameter(torch.ones(4))
        assert pushed(capped([weight], make=Bare), weight) == pytest.approx(RATIO, rel=1e-5)

    def test_groups_have_peaks_of_their_own(self):
        a, b = (nn.Parameter(torch.ones(4, dtype=torch.float64)) for _ in range(2))
        inner = torch.optim.SGD([{"params": [a], "lr": 4.0}, {"params": [b], "lr": 0.1}])
        opt = StableOptimizer(inner, sensors=(), transforms=[UpdateCap(RATIO)])
        for first, second, lr in ((1, 1, 4.0), (0.5, 1, 1.0)):
            before = [p.detach().clone() for p in (a, b)]
            inner.param_groups[0]["lr"] = lr
            for p in (a, b):
                p.grad = torch.full_like(p, 1e6)
            opt.step()
            found = [
                length(p.detach() - old) / length(old)
                for p, old in zip((a, b), before, strict=True)
            ]
            assert found == pytest.approx([RATIO * first, RATIO * second], rel=1e-6)

    def test_the_backoff_of_the_guard_shrinks_the_cap(self):
        weight = nn.Parameter(torch.ones(4, dtype=torch.float64))
        opt = capped([weight], guard=Guard(every=1, confirm=1, lr_backoff=0.25, cooldown=50))
        for _ in range(4):
            assert pushed(opt, weight) == pytest.approx(RATIO, rel=1e-6)
        while opt._loop.lr_scale == 1.0:
            with torch.no_grad():
                weight[0] = math.nan
            pushed(opt, weight)
            assert opt.verdict.action is Action.ROLL_BACK
        assert opt._loop.lr_scale == 0.25
        assert pushed(opt, weight) == pytest.approx(RATIO / 2, rel=1e-6)
        assert opt.param_groups[0]["lr"] == 1.0

    def test_lbfgs(self):
        weight = nn.Parameter(torch.full((4,), 5.0))
        opt = capped([weight], make=torch.optim.LBFGS)

        def closure():
            opt.zero_grad()
            loss = (weight**4).sum()
            loss.backward()
            return loss

        found = []
        for _ in range(3):
            before = weight.detach().clone()
            opt.step(closure)
            found.append(length(weight.detach() - before))
        assert found[0] == pytest.approx(RATIO * 2, rel=1e-4)
        assert max(found) <= RATIO * 2 * (1 + 1e-4)


def run(model, opt, steps, first=0, scale=1e4):
    for step in range(first, first + steps):
        opt.zero_grad()
        generator = torch.Generator().manual_seed(step)
        (model(torch.randn(4, 3, generator=generator)).pow(2).mean() * scale).backward()
        opt.step()


class TestMemory:
    def make(self, lr=0.5):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        inner = torch.optim.AdamW(model.parameters(), lr=lr)
        # Sensors keep to a budget of time: what they remember depends on the machine.
        return model, StableOptimizer(
            inner, model=model, sensors=(), transforms=[ClipGradNorm(1.0), UpdateCap(RATIO)]
        )

    def test_resume_is_bit_exact(self):
        model, opt = self.make()
        run(model, opt, 3)
        opt.param_groups[0]["lr"] = 0.1
        run(model, opt, 3, 3)
        buffer = io.BytesIO()
        torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, buffer)
        buffer.seek(0)
        saved = torch.load(buffer, weights_only=True)
        run(model, opt, 5, 6)

        again, resumed = self.make()
        run(again, resumed, 2, 50)
        again.load_state_dict(saved["model"])
        resumed.load_state_dict(saved["opt"])
        run(again, resumed, 5, 6)
        assert_same(again.state_dict(), model.state_dict())
        assert_same(resumed.state_dict(), opt.state_dict())
        assert opt.summary()["transforms"][1]["steps"] == 11

    def test_peaks_are_in_the_checkpoint(self):
        model, opt = self.make()
        run(model, opt, 4)
        opt.param_groups[0]["lr"] = 0.1
        run(model, opt, 1, 4)
        assert opt.state_dict()["stableopt"]["transforms"] == {
            "peaks": {"0": 0.5},
            "states": {"0.ClipGradNorm": {}, "1.UpdateCap": {}},
        }

    def test_a_checkpoint_of_a_bare_optimizer_starts_anew(self):
        model, opt = self.make()
        run(model, opt, 2)
        opt.load_state_dict(opt.optimizer.state_dict())
        assert opt.state_dict()["stableopt"]["transforms"]["peaks"] == {}
        run(model, opt, 1)

    def test_a_rollback_restores_the_peak(self):
        weight = nn.Parameter(torch.ones(4, dtype=torch.float64))
        opt = capped([weight], guard=Guard(every=1, confirm=1))
        for _ in range(4):
            pushed(opt, weight, 1.0)
        opt.snapshot()
        pushed(opt, weight, 1.0)
        pushed(opt, weight, 400.0)
        assert pushed(opt, weight, 1.0) == pytest.approx(RATIO / 20, rel=1e-4)
        opt.rollback()
        pushed(opt, weight, 1.0)
        assert opt.verdict.action is Action.ROLL_BACK
        assert pushed(opt, weight, 1.0) == pytest.approx(RATIO, rel=1e-6)

    def test_a_copy_holds_no_copies(self):
        model, opt = self.make()
        run(model, opt, 2)
        twin = copy.deepcopy(opt)
        assert opt._loop.transforms._bound[1].previous.copies
        assert twin._loop.transforms._bound[1].previous.copies == []

    def test_the_memory_is_taken_once(self):
        model, opt = self.make()
        run(model, opt, 1)
        copies = opt._loop.transforms._bound[1].previous.copies
        places = [tensor.data_ptr() for tensor in copies]
        run(model, opt, 2, 1)
        assert [t.data_ptr() for t in opt._loop.transforms._bound[1].previous.copies] == places

    def test_weights_that_change_their_dtype_are_copied_anew(self):
        model, opt = self.make()
        run(model, opt, 1)
        model.double()
        opt.optimizer.state.clear()
        generator = torch.Generator().manual_seed(0)
        opt.zero_grad()
        model(torch.randn(4, 3, generator=generator).double()).mul(1e4).sum().backward()
        before = [p.detach().clone() for p in model.parameters()]
        opt.step()
        for p, old in zip(model.parameters(), before, strict=True):
            assert 0 < length(p.detach() - old) <= RATIO * reach_of(old) * (1 + 1e-5)


@pytest.mark.parametrize("ratio", [0, -0.1, math.nan, True, "1%", None, [0.01]])
def test_a_ratio_that_cannot_be_is_refused(ratio):
    with pytest.raises(
        ConfigError, match=r"^ratio=.* must be a number above 0: the largest length of a step"
    ):
        UpdateCap(ratio)
