"""A real run under any schedule of faults: what is true of every call, seen from outside."""

from __future__ import annotations

import math

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from torch import nn

from stableopt import Action, DivergenceError, Guard, SignalRule, StableOptimizer
from stableopt.testing import corrupt_weight, inject_gradient
from stableopt.types import Response, Scope

RULES = [
    SignalRule(f"{r.value} > 0.5", response=r.value) for r in Response if r is not Response.TAME
]
"""One for every answer; the signal has its name."""

WARMED_UP = 34
"""Steps after which losses are judged."""

events = st.sampled_from(
    ["plain", "spike", "nan", "bad gradient", "weight", *(r.value for r in Response)]
)


class Live(RuleBasedStateMachine):
    """Train one layer, break it, and check what the run reports."""

    @initialize(
        slots=st.integers(2, 4),
        every=st.integers(1, 6),
        confirm=st.integers(1, 6),
        max_rollbacks=st.integers(0, 3),
        max_skips=st.integers(0, 3),
        cooldown=st.integers(0, 5),
        budget=st.integers(0, 4),
        lr_recovery=st.one_of(st.none(), st.integers(0, 5)),
        loss_spike=st.sampled_from(["warn", "back_off", "skip"]),
    )
    def start(self, loss_spike, **options):
        torch.manual_seed(0)
        self.guard = Guard(
            **options, rules=RULES, responses={"loss_spike": loss_spike}, gradient_spike=None
        )
        self.model = nn.Linear(3, 2)
        inner = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.opt = StableOptimizer(inner, model=self.model, sensors=(), guard=self.guard)
        self.calls = self.skips = self.told = self.progress = 0
        self.known = {0: self.weights()}
        self.over = False
        for _ in range(WARMED_UP):
            self.call("plain")

    def weights(self):
        return [parameter.detach().clone() for parameter in self.model.parameters()]

    def snapshots(self, *, verified):
        told = self.opt.summary()["snapshots"]["steps"]
        return {slot["step"] for slot in told if slot["verified"] or not verified}

    @rule(pattern=st.lists(events, min_size=1, max_size=4), times=st.integers(1, 4))
    def schedule(self, pattern, times):
        for _ in range(times):
            for event in pattern:
                self.call(event)

    @rule(count=st.integers(1, 12))
    def train(self, count):
        for _ in range(count):
            self.call("plain")

    @precondition(lambda self: not self.over)
    @rule()
    def snapshot(self):
        self.opt.snapshot()

    @precondition(lambda self: not self.over)
    @rule(event=events)
    def roll_back(self, event):
        self.opt.rollback("the user knows why")
        self.call(event, by_hand=True)

    def call(self, event, *, by_hand=False):
        if self.over:
            return
        self.opt.zero_grad()
        draw = torch.Generator().manual_seed(self.calls)
        self.calls += 1
        if event == "weight":
            corrupt_weight(self.opt, seed=self.calls)
        loss = self.model(torch.randn(4, 3, generator=draw)).square().mean()
        loss.backward()
        if event == "bad gradient":
            inject_gradient(self.opt, seed=self.calls)
        told = {"spike": 1e6, "nan": math.nan}.get(event, float(loss.detach()))
        self.opt.observe(loss=told, **{rule.response: rule.response == event for rule in RULES})
        before, trusted, scale = self.weights(), self.snapshots(verified=True), self.lr_scale
        try:
            self.opt.step()
        except DivergenceError:
            self.over = True
        self.check(before, trusted, scale, by_hand)

    @property
    def lr_scale(self):
        return self.opt.summary()["lr_scale"]

    def check(self, before, trusted, scale, by_hand):
        verdict, summary = self.opt.verdict, self.opt.summary()
        spoken = self.opt.ledger[self.told :]
        self.told = len(self.opt.ledger)
        plain = verdict.action is Action.TAKE and not verdict.findings
        assert len(spoken) == (not plain), "a silent call"
        assert all(event.reason for event in spoken)
        assert verdict.findings or plain or by_hand
        assert self.over is (verdict.action is Action.STOP)
        if verdict.rollback is not None:
            assert_equal(self.weights(), self.known[verdict.rollback.to_step])
            self.skips = 0 if verdict.rollback.attempt else self.skips
        elif verdict.action is Action.SKIP:
            self.skips += 1
            assert_equal(self.weights(), before)
            assert self.snapshots(verified=True) == trusted
            assert self.lr_scale == scale
        else:
            self.skips = 0
            self.check_taken(verdict, trusted, scale)
        assert self.skips <= self.guard.max_skips
        assert summary["calls"] == self.calls
        assert 0 < self.lr_scale <= 1.0
        assert all(weight.isfinite().all() for weight in self.weights()), "a fault remains"

    def check_taken(self, verdict, trusted, scale):
        step = self.opt.summary()["steps"]
        self.progress = max(self.progress, step)
        self.known[step] = self.weights()
        spikes = any(finding.scope is Scope.SPIKE for finding in verdict.findings)
        if spikes or verdict.backs_off:
            assert self.snapshots(verified=True) <= trusted, "it is trusted in spite of a spike"
        if verdict.backs_off:
            assert self.lr_scale == scale * self.guard.lr_backoff
        elif spikes:
            assert self.lr_scale == scale

    def teardown(self):
        if hasattr(self, "opt"):
            summary = self.opt.summary()
            assert summary["rollbacks"] - self.by_hand() <= self.guard.budget
            assert summary["integrity"] == ("COMPROMISED" if self.over else "OK")

    def by_hand(self):
        gone = [event.rollback for event in self.opt.ledger if event.action is Action.ROLL_BACK]
        return sum(rollback.attempt == 0 for rollback in gone)


def assert_equal(tensors, others):
    assert all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))


Live.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=12,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # a run is too slow to be made shorter
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestLive = Live.TestCase
