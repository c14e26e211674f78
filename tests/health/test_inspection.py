"""Faults in tensors at rest are found by every way of looking, and nothing else is."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stableopt import Action, Guard, StableOptimizer
from stableopt.guard.options import SCAN_PERIOD
from stableopt.health.tensors.inspection import floating_tensors
from stableopt.health.tensors.laws import MomentLaws
from stableopt.testing import corrupt_buffer, corrupt_moment, corrupt_weight, flip_bit
from tests.contract.specs import VARIANTS, variant_id
from tests.contract.test_rollback import Loop, guarded

ADAMS = {
    "fused": lambda p: torch.optim.AdamW(p, fused=True),
    "foreach": lambda p: torch.optim.AdamW(p, foreach=True),
    "forloop": lambda p: torch.optim.AdamW(p, foreach=False),
    "amsgrad": lambda p: torch.optim.Adam(p, amsgrad=True),
    "NAdam": torch.optim.NAdam,
    "RAdam": torch.optim.RAdam,
}


class Embedded(torch.nn.Module):
    """Rows that no batch touches, statistics that no loss reads, a mask that is not finite."""

    def __init__(self):
        super().__init__()
        self.rows = torch.nn.Embedding(50, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.head = torch.nn.Linear(4, 1)
        self.register_buffer("mask", torch.full((4,), -math.inf))

    def forward(self, ids):
        return self.head(self.norm(self.rows(ids)))


def start(make=ADAMS["fused"], **options):
    torch.manual_seed(0)
    model = Embedded()
    # No sensors: when they run depends on the clock, and they may see it first.
    guard = Guard(**options)
    opt = StableOptimizer(make(model.parameters()), model=model, sensors=(), guard=guard)
    for step in range(30):
        train(model, opt, step)
    return model, opt


def train(model, opt, step):
    ids = torch.randint(0, 20, (8,), generator=torch.Generator().manual_seed(step))
    opt.zero_grad()
    loss = model(ids).pow(2).mean()
    loss.backward()
    opt.observe(loss=loss)
    opt.step()


def calls_until_found(model, opt, limit=SCAN_PERIOD + 2):
    for call in range(limit):
        train(model, opt, 100 + call)
        if opt.ledger:
            assert opt.ledger[-1].action is Action.ROLL_BACK
            return call, opt.ledger[-1]
    raise AssertionError(f"nothing was found in {limit} steps")


UNSEEN_ROW = 45 * 4
SILENT = {
    "NaN in an unseen row": (
        "nonfinite_weight",
        lambda m, o: corrupt_weight(o, model=m, name="rows.weight", index=UNSEEN_ROW),
    ),
    "1e37 in an unseen row": (
        "huge_weight",
        lambda m, o: corrupt_weight(o, 1e37, model=m, name="rows.weight", index=UNSEEN_ROW),
    ),
    "bit 30 in an unseen row": (
        "huge_weight",
        lambda m, o: corrupt_weight(o, bit=30, model=m, name="rows.weight", index=UNSEEN_ROW + 1),
    ),
    "v = Inf": (
        "nonfinite_state",
        lambda m, o: corrupt_moment(o, "exp_avg_sq", math.inf, model=m, name="head.weight"),
    ),
    "v < 0 in an unseen row": (
        "negative_moment",
        lambda m, o: corrupt_moment(
            o, "exp_avg_sq", -1e-12, model=m, name="rows.weight", index=UNSEEN_ROW
        ),
    ),
    "m in an unseen row": (
        "moment_bound",
        lambda m, o: corrupt_moment(
            o, "exp_avg", 0.1, model=m, name="rows.weight", index=UNSEEN_ROW
        ),
    ),
    "m of a trained weight": (
        "moment_bound",
        lambda m, o: corrupt_moment(o, "exp_avg", 1e3, model=m, name="head.weight", index=1),
    ),
    "NaN in running statistics": (
        "nonfinite_buffer",
        lambda m, o: corrupt_buffer(m, name="norm.running_var"),
    ),
    "1e37 in running statistics": (
        "huge_buffer",
        lambda m, o: corrupt_buffer(m, 1e37, name="norm.running_mean"),
    ),
}


@pytest.mark.parametrize("adam", ADAMS.values(), ids=ADAMS)
@pytest.mark.parametrize("fault", SILENT)
def test_what_nothing_else_shows_is_found_within_one_scan(fault, adam):
    kind, strike = SILENT[fault]
    model, opt = start(adam)
    strike(model, opt)
    latency, event = calls_until_found(model, opt)
    assert latency <= SCAN_PERIOD
    assert kind in {finding.kind for finding in event.findings}
    everything = [*model.parameters(), model.norm.running_mean, model.norm.running_var]
    for state in opt.state.values():
        everything += [t for t in state.values() if isinstance(t, torch.Tensor)]
    assert all(torch.isfinite(t).all() and t.abs().max() < 1e6 for t in everything)


@pytest.mark.parametrize("fault", SILENT)
def test_a_snapshot_never_holds_it(fault):
    """Every step takes a snapshot: everything is checked before it is copied."""
    _, strike = SILENT[fault]
    model, opt = start(every=1, confirm=21, slots=24)
    strike(model, opt)
    latency, event = calls_until_found(model, opt)
    # The first snapshot that is due after it finds it, and the next call acts.
    assert latency <= 1
    assert event.rollback.to_step >= 25


def test_the_names_are_those_of_the_model():
    model, opt = start(every=1, confirm=21, slots=24)
    corrupt_buffer(model, name="norm.running_var")
    _, event = calls_until_found(model, opt)
    assert "the buffers norm.running_var are not finite" in event.reason
    model, opt = start(every=1, confirm=21, slots=24)
    corrupt_moment(opt, "exp_avg_sq", math.inf, model=model, name="rows.weight")
    _, event = calls_until_found(model, opt)
    assert "exp_avg_sq of rows.weight is not finite" in event.reason


def test_what_was_never_finite_is_left_alone(caplog):
    """A mask of -inf, in a buffer or as a parameter that was so before training."""
    torch.manual_seed(0)
    model = Embedded()
    with torch.no_grad():
        model.rows.weight[49] = -math.inf
    opt = StableOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
    for step in range(3 * SCAN_PERIOD):
        train(model, opt, step)
    assert not any(event.intervened for event in opt.ledger)
    (told,) = [r.message for r in caplog.records]
    assert "before the first step the weights of rows.weight are not finite" in told


def test_a_lowered_limit_of_the_weights():
    w = torch.nn.Parameter(torch.ones(3))
    opt = StableOptimizer(torch.optim.SGD([w], lr=1.0), guard=Guard(every=1, max_weight=10.0))
    for grad in (1.0, -20.0, 0.0):
        w.grad = torch.full((3,), grad)
        opt.step()
    assert opt.verdict.findings[0].kind == "huge_weight"
    assert opt.verdict.action is Action.ROLL_BACK


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_large_but_possible_values_are_no_fault(dtype):
    largest = {torch.float16: 6e4, torch.float64: 1e100}.get(dtype, 1e18)
    w = torch.nn.Parameter(torch.full((300,), largest, dtype=dtype))
    opt = StableOptimizer(torch.optim.SGD([w], lr=0.0, momentum=0.9), guard=Guard(every=2))
    for _ in range(6):
        w.grad = torch.ones_like(w)
        opt.step()
    assert not any(event.intervened for event in opt.ledger)


@pytest.mark.parametrize("scale", [1.0, 0.1, 0.01])
def test_moments_that_underflow_are_no_fault(scale):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.Linear(64, 8)
    ).half()
    inner = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-4)
    opt = StableOptimizer(inner, model=model, guard=Guard(every=20))
    for _ in range(60):
        x = torch.randn(16, 32).half()
        opt.zero_grad()
        (model(x).float() - x[:, :8].float()).pow(2).mean().mul(scale).backward()
        opt.step()
    assert not opt.ledger


@pytest.mark.parametrize("pair", VARIANTS, ids=variant_id)
def test_a_nan_in_any_kind_of_state_is_found_or_overwritten(pair):
    """Whatever an optimizer keeps: a NaN in it does not outlive a scan."""
    spec, variant = pair
    loop = Loop(spec, variant, guarded)
    for batch in range(6):
        loop.step(batch)
    tensors = [
        value
        for state in loop.inner.state.values()
        for key, value in (state.items() if isinstance(state, dict) else ())
        if type(value) is torch.Tensor and value.is_floating_point() and value.dim() and key
    ]
    if not tensors:
        pytest.skip("this variant keeps no such state")
    with torch.no_grad():
        tensors[0].view(-1)[0] = math.nan
    for batch in range(6, 12):
        loop.step(batch)
    left = [t for state in loop.inner.state.values() for _, t in floating_tensors(state)]
    assert all(torch.isfinite(t).all() for t in [*left, *loop.model.parameters()])
    # Some write their state anew in every step, with or without us.
    assert loop.opt.ledger or spec.name in ("ASGD", "LBFGS", "Rprop")


class TestMomentLaws:
    @settings(max_examples=60, deadline=None)
    @given(
        betas=st.tuples(st.floats(0.0, 0.99), st.floats(0.5, 0.9999)),
        scales=st.lists(st.floats(-8, 8), min_size=1, max_size=40),
        seed=st.integers(0, 2**16),
        dtype=st.sampled_from([torch.float32, torch.float64]),
        kind=st.sampled_from([torch.optim.Adam, torch.optim.NAdam, torch.optim.RAdam]),
    )
    def test_no_gradients_whatever_break_the_bound(self, betas, scales, seed, dtype, kind):
        generator = torch.Generator().manual_seed(seed)
        w = torch.nn.Parameter(torch.zeros(5, dtype=dtype))
        inner = kind([w], lr=0.0, betas=betas)
        laws = MomentLaws(inner)
        for scale in scales:
            noise = torch.randn(5, generator=generator, dtype=dtype)
            w.grad = noise * 10.0**scale
            inner.step()
            bound = laws.bound(0)
            if bound is None:
                assert betas[0] ** 2 >= betas[1]
                continue
            state = inner.state[w]
            excess = state["exp_avg"] ** 2 - bound[0] * state["exp_avg_sq"]
            assert float(excess.max()) <= bound[1]

    def test_the_bound_is_that_of_the_paper(self):
        inner = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
        squared, _ = MomentLaws(inner).bound(0)
        assert math.sqrt(squared / 4.0) == pytest.approx(7.27, abs=0.01)

    def test_betas_that_move_widen_it(self):
        inner = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
        laws, group = MomentLaws(inner), inner.param_groups[0]
        fixed, _ = laws.bound(0)
        group["betas"] = (0.95, 0.999)
        wider, _ = laws.bound(0)
        group["betas"] = (0.9, 0.999)
        assert laws.bound(0)[0] == wider > fixed

    def test_undefined_bounds_are_not_judged(self):
        inner = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], betas=(0.99, 0.9))
        assert MomentLaws(inner).bound(0) is None

    def test_what_others_call_exp_avg_is_not_judged(self):
        inner = torch.optim.Adadelta([torch.nn.Parameter(torch.zeros(1))])
        assert MomentLaws(inner).bound(0) is None


def test_bit_flips_of_first_moments_are_found_at_once():
    model, opt = start(every=1, confirm=21, slots=24)
    moment = opt.state[model.rows.weight]["exp_avg"]
    flip_bit(moment, 30, index=3)
    _, event = calls_until_found(model, opt)
    assert event.findings[-1].kind in ("moment_bound", "huge_state", "nonfinite_weight")


class Sentinel(torch.optim.SGD):
    """An optimizer that is not torch's, whose state has an infinity on purpose."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                best = self.state[p].setdefault("best", torch.full_like(p, math.inf))
                best.view(-1)[0] = p.abs().sum()
        return super().step(closure)


def test_the_state_of_others_may_be_what_it_was_when_it_was_made():
    w = torch.nn.Parameter(torch.ones(600, 600))  # looked at in several parts
    opt = StableOptimizer(Sentinel([w], lr=0.1), guard=Guard(every=4))
    for _ in range(30):
        w.grad = torch.ones_like(w)
        opt.step()
    assert not any(event.intervened for event in opt.ledger)


def test_weights_of_eight_bits_are_looked_at():
    frozen = torch.nn.Parameter(torch.randn(8, 8).to(torch.float8_e4m3fn), requires_grad=False)
    model = torch.nn.Linear(8, 8)
    opt = StableOptimizer(torch.optim.SGD([*model.parameters(), frozen], lr=0.1))
    for _ in range(25):
        opt.zero_grad()
        model(torch.ones(2, 8)).pow(2).mean().backward()
        opt.step()
    assert opt.ledger == ()
    frozen.data[3, 4] = float("nan")
    for _ in range(25):
        opt.zero_grad()
        model(torch.ones(2, 8)).pow(2).mean().backward()
        opt.step()
    assert opt.ledger[0].findings[0].kind == "nonfinite_weight"
    assert opt.ledger[0].findings[0].where == ("0.2",)
