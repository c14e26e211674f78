"""A simulated run around two rings and two policies, which keeps accounts of its own.

A state is the set of faults in it, a step adds nothing, a fault shows up in verdicts some steps
after it struck, verdicts come late, copies take time. Two replicas are fed alike and must stay
alike. Every answer is held against what the table asks for, and against the accounts.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

from stableopt.guard import Guard
from stableopt.guard import policy as policy_module
from stableopt.guard.policy import Policy
from stableopt.guard.ring import Ring, SlotState
from stableopt.types import Action, Finding, Response, Scope, Verdict

PLAIN = Verdict(action=Action.TAKE)
DAMAGE = Finding(kind="nonfinite_weight", message="weights are NaN", scope=Scope.STATE)
BAD_BATCH = Finding(kind="nonfinite_gradient", message="a gradient is NaN")
SYMPTOM = Finding(kind="nonfinite_loss", message="the loss is NaN", scope=Scope.NOTICE)
SPIKE = Finding(kind="loss_spike", message="the loss is high", scope=Scope.SPIKE)
STEEP = Finding(kind="gradient_spike", message="the gradient is large", scope=Scope.SPIKE)
RISKS = [
    Finding(kind=f"risk_{level}", message=f"the risk is {level}", scope=Scope.RISK)
    for level in ("warning", "danger", "instability")
]
RULES = [
    Finding(kind="rule", message=f"to {r.value}", scope=Scope.RULE, response=r.value)
    for r in Response
    if r is not Response.TAME
]
LONGEST_COPY = 4
TRUSTED = (SlotState.VERIFIED, SlotState.ASIDE)


@dataclass(frozen=True)
class Fault:
    """Something wrong in the state.

    Attributes:
        born: The step at which it struck.
        latency: Steps until verdicts show it.
        loud: Whether looking at the state itself shows it at once.
    """

    born: int
    latency: int
    loud: bool


class Replica:
    """One ring and one policy."""

    def __init__(self, guard: Guard) -> None:
        self.ring = Ring(guard.slots, guard.every, guard.confirm_steps)
        self.policy = Policy(guard)

    def plain(self):
        return self.slots(), self.policy.state_dict()

    def slots(self):
        return [tuple(getattr(slot, name) for name in slot.__slots__) for slot in self.ring.slots]


class Accounts:
    """What a run may do, counted apart from the policy.

    Attributes:
        skips: In a row.
        spikes: Steps that spikes about which something may be done are worth.
        tokens: Rollbacks at hand.
        episode: The factors on the learning rate that its rollbacks have left.
        lowered: Rollbacks since the learning rate was what it should be.
        recovered: Healthy steps since the learning rate is on its way back; ``None`` if not.
        calls: Without new progress.
        owed: Calls that rollbacks without new progress may take.
    """

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.spikes = policy_module.SPIKES * policy_module.STEPS_PER_SPIKE
        self.skips = self.furthest = self.progress = self.lowered = 0
        self.tokens = guard.budget
        self.episode: list[float] = []
        self.recovered: int | None = None
        self.new_window()

    def new_window(self) -> None:
        self.calls = self.owed = self.rollbacks = self.by_hand = 0
        self.at_hand = self.tokens

    @property
    def longest_window(self) -> int:
        """Calls after which a run has made progress, or has ended.

        Each step that is taken is preceded by at most ``max_skips`` that are skipped, and so is
        each rollback. Rollbacks are followed by the steps that they threw away. So for
        rollbacks from ``f`` to ``t``: ``(max_skips + 1) · (1 + Σ (1 + f - t))``.
        """
        return (self.guard.max_skips + 1) * (1 + self.owed)

    def note_call(self) -> None:
        self.calls += 1
        assert self.calls <= self.longest_window, "neither progress nor an end"

    def note_step(self, step: int) -> None:
        """Hear how many updates there are now."""
        for new in range(self.progress + 1, step + 1):
            self.progress = new
            if new % policy_module.STEPS_PER_ROLLBACK == 0:
                self.tokens = min(self.guard.budget, self.tokens + 1)
            most = policy_module.SPIKES * policy_module.STEPS_PER_SPIKE
            self.spikes = min(most, self.spikes + 1)
            self.new_window()

    @property
    def spent(self) -> bool:
        """Whether nothing may be done about spikes any more."""
        return self.spikes < policy_module.STEPS_PER_SPIKE

    def note_spike(self) -> None:
        self.spikes = max(0, self.spikes - policy_module.STEPS_PER_SPIKE)

    def note_rollback(self, rollback) -> None:
        self.owed += 1 + rollback.from_step - rollback.to_step
        if rollback.attempt == 0:
            self.by_hand += 1
            return
        self.skips = 0
        self.tokens -= 1
        self.rollbacks += 1
        assert self.tokens >= 0, "more rollbacks than the budget and new steps allow"
        assert self.rollbacks <= self.at_hand, "thrash"
        assert self.by_hand or self.rollbacks <= self.guard.max_rollbacks, "thrash"
        self.episode.append(rollback.lr_scale)
        assert rollback.attempt == len(self.episode) <= self.guard.max_rollbacks
        self.furthest = max(self.furthest, rollback.from_step)
        self.recovered = None


class World:
    """One run.

    Args:
        guard: The limits.
        lag: How many steps late verdicts about the state come.
    """

    def __init__(self, guard: Guard, lag: int) -> None:
        self.guard = guard
        self.lag = lag
        self.replicas = [Replica(guard), Replica(guard)]
        self.accounts = Accounts(guard)
        self.contents: dict[int, frozenset[Fault]] = {}
        self.faults: frozenset[Fault] = frozenset()
        self.step = 0
        self.unjudged: list[tuple[int, frozenset[Fault]]] = []
        self.writing = None
        self.stopped = False
        self.danger = False
        self.disturbed = 0
        self.begin_anew()

    @property
    def ring(self):
        return self.replicas[0].ring

    @property
    def policy(self):
        return self.replicas[0].policy

    def both(self, call):
        first, second = (call(replica) for replica in self.replicas)
        assert first == second
        return first

    def begin_anew(self) -> None:
        """Take what is there for good: the first snapshot of a run."""
        self.both(lambda r: r.ring.clear())
        self.writing = None
        self.unjudged = []
        ticket = self.both(lambda r: r.ring.begin(self.step))
        self.contents[ticket.index] = self.faults
        assert self.both(lambda r: r.ring.finish(ticket, sound=True))
        self.both(lambda r: r.ring.accept(ticket))

    def restart(self) -> None:
        """Another process loads the state, and the counts, of a run without faults."""
        for replica in self.replicas:
            counts = replica.policy.state_dict()
            replica.policy = Policy(self.guard)
            replica.policy.prepare(counts)()
        self.danger = False
        self.accounts.new_window()
        self.accounts.owed = self.accounts.progress - self.step
        self.begin_anew()

    # one call

    def call(self, held=(), manual: str | None = None) -> None:
        """Make one call, with ``held`` against it beside what the state shows."""
        if self.stopped:
            return
        self.unjudged.append((self.step, self.faults))
        findings, judged = tuple(held), None
        if len(self.unjudged) > self.lag:
            judged, faults = self.unjudged.pop(0)
            if any(judged >= fault.born + fault.latency for fault in faults):
                findings += (DAMAGE,)
        self.act(findings, judged, manual)

    def act(self, findings, judged, manual) -> None:
        step, scale, slots = self.step, self.policy.lr_scale, self.replicas[0].slots()
        verdict = self.both(
            lambda r: r.policy.decide(findings, step=step, ring=r.ring, manual=manual)
        )
        self.check_answer(verdict, findings, manual)
        endangered = self.danger or any(map(self.endangers, findings))
        self.both(lambda r: r.policy.note(verdict, step, endangered=endangered))
        assert self.replicas[0].slots() == slots, "the ring is not the policy's to change"
        self.accounts.note_call()
        if verdict is not PLAIN and (verdict != PLAIN or endangered):
            self.disturbed = step
        if verdict.action is Action.TAKE:
            self.take(verdict, judged, scale, endangered)
        elif verdict.action is Action.SKIP:
            self.accounts.skips += 1
            if any(finding.scope is Scope.SPIKE for finding in verdict.findings):
                self.accounts.note_spike()
            assert self.accounts.skips <= self.guard.max_skips, "more skips in a row than allowed"
            assert self.policy.lr_scale == scale
        else:
            self.go_back(verdict, scale)
        self.check_counts()

    def endangers(self, finding) -> bool:
        """Tell whether there is a danger that is acted upon, as the guardian does."""
        if finding.scope is Scope.RISK:
            return self.guard.answers_risk and finding.kind != "risk_warning"
        acts = self.guard.response_to(finding) is not Response.WARN
        return finding.scope is Scope.RULE and acts

    # what is answered

    def check_answer(self, verdict, findings, manual) -> None:
        assert verdict.findings == findings
        if manual is not None and verdict.rollback is not None and not verdict.rollback.attempt:
            assert manual in verdict.reason
            return
        assert (verdict == PLAIN) is (not findings)
        assert all(finding.message in verdict.reason for finding in findings), "a silent call"
        left = [f for f in findings if not (self.accounts.spent and f.scope is Scope.SPIKE)]
        asked = {self.guard.response_to(finding) for finding in left}
        asked |= {self.guard.response_to(f) for f in findings} & {Response.STOP}
        capped = self.accounts.skips >= self.guard.max_skips
        lost = any(finding.scope is Scope.BATCH for finding in findings)
        if Response.STOP in asked:
            assert verdict.action is Action.STOP
        elif Response.ROLL_BACK in asked or (Response.SKIP in asked and capped and lost):
            self.check_return(verdict, findings)
        elif Response.SKIP in asked and not capped:
            assert verdict.action is Action.SKIP
        else:
            self.check_taken(verdict, findings)

    def check_return(self, verdict, findings) -> None:
        """It rolls back, unless there is a reason not to."""
        states = any(finding.scope is Scope.STATE for finding in findings)
        attempt = len(self.accounts.episode) + 1
        slots = self.ring.sound() if attempt == 1 and states else self.ring.verified()
        way = any(slot.step < self.step + states for slot in slots)
        may = attempt <= self.guard.max_rollbacks and self.accounts.tokens > 0 and way
        assert verdict.action is (Action.ROLL_BACK if may else Action.STOP)

    def check_taken(self, verdict, findings) -> None:
        assert verdict.action is Action.TAKE
        spikes = [finding for finding in findings if finding.scope is Scope.SPIKE]
        asked = {self.guard.response_to(finding) for finding in findings}
        skipped = Response.SKIP in asked and self.accounts.skips >= self.guard.max_skips
        stays = bool(spikes) and (skipped or self.accounts.spent)
        assert verdict.baseline_reset is stays
        left = [finding for finding in findings if not (stays and finding in spikes)]
        asked = {self.guard.response_to(finding) for finding in left}
        assert verdict.tames is (Response.TAME in asked)
        lowers = Response.BACK_OFF in asked
        factor = self.guard.lr_backoff
        room = self.policy.lr_scale * factor >= factor**self.guard.max_rollbacks * (1 - 1e-6)
        assert verdict.backs_off is (lowers and room)

    # what is done

    def take(self, verdict, judged, before, endangered) -> None:
        accounts = self.accounts
        spikes = any(finding.scope is Scope.SPIKE for finding in verdict.findings)
        accounts.skips = 0
        if spikes and not verdict.baseline_reset:
            accounts.note_spike()
        healthy = not (spikes or verdict.backs_off or endangered)
        self.check_lr(before, verdict, healthy)
        if healthy and judged is not None:
            self.both(lambda r: r.ring.healthy(judged))
        self.step += 1
        accounts.note_step(self.step)
        if verdict.baseline_reset:
            return
        risky = any(finding.scope is Scope.RISK for finding in verdict.findings)
        self.snapshot(now=risky and self.guard.answers_risk)

    def check_lr(self, before, verdict, healthy) -> None:
        """It falls with a verdict, and rises again in healthy steps outside of episodes."""
        accounts, steps = self.accounts, self.guard.lr_recovery
        after = self.policy.lr_scale
        if verdict.backs_off:
            assert after == before * self.guard.lr_backoff
            accounts.recovered = 0
        if not healthy:
            assert verdict.backs_off or after == before, "only healthy steps bring it back"
            return
        if accounts.episode and self.step >= accounts.furthest + self.guard.cooldown:
            accounts.episode = []
            accounts.recovered = 0
        if accounts.episode or steps is None or accounts.recovered is None:
            assert after == before, "it never rises inside an episode"
            return
        accounts.recovered += 1
        if accounts.recovered >= steps:
            assert after == 1.0
            accounts.recovered, accounts.lowered = None, 0
        else:
            assert before < after < 1.0 or before == after == 1.0

    def snapshot(self, *, now: bool = False) -> None:
        if self.writing is not None and self.step - self.writing[1] >= LONGEST_COPY:
            self.copy_ends()
        due = self.both(lambda r: r.ring.due(self.step))
        if self.writing is None and (due or now):
            before = {s.index: s for s in deepcopy(self.ring.slots)}
            ticket = self.both(lambda r: r.ring.begin(self.step))
            if ticket is not None:
                self.check_victim(before[ticket.index])
                self.contents[ticket.index] = self.faults
                self.writing = ticket, self.step

    def check_victim(self, victim) -> None:
        assert not victim.manual
        assert victim.state in (SlotState.FREE, SlotState.ASIDE, SlotState.VERIFIED)
        if victim.state is SlotState.VERIFIED:
            others = [s.step for s in self.ring.verified()]
            assert max(others, default=-1) > victim.step, "the newest verified one is given up"

    def copy_ends(self) -> None:
        if self.writing is not None:
            ticket, _ = self.writing
            self.writing = None
            sound = not any(fault.loud for fault in self.contents[ticket.index])
            self.both(lambda r: r.ring.finish(ticket, sound=sound))

    def go_back(self, verdict, scale) -> None:
        rollback = verdict.rollback
        assert rollback is not None, "after genesis there is always a verified snapshot"
        if verdict.action is Action.STOP:
            slot = self.ring.best()
            trusted = [s for s in self.ring.slots if s.state in TRUSTED]
            assert slot.step == rollback.to_step == max(s.step for s in trusted)
        else:
            (slot,) = [s for s in self.ring.sound() if s.step == rollback.to_step]
        assert rollback.from_step == self.step
        stops = verdict.action is Action.STOP
        assert stops or self.step >= rollback.to_step
        if slot.state in TRUSTED:
            assert not self.contents[slot.index], "training continues from a fault"
        if verdict.action is Action.STOP:
            assert self.policy.lr_scale == scale == rollback.lr_scale
            self.stopped = True
            return
        self.check_caution(verdict, slot, scale)
        self.accounts.note_rollback(rollback)
        self.faults = self.contents[slot.index]
        for replica in self.replicas:
            replica.ring.rewind(replica.ring.slots[slot.index])
        self.step = rollback.to_step
        self.unjudged = []
        left = [s for s in self.ring.slots if s.state not in (SlotState.FREE, SlotState.ASIDE)]
        assert all(s.step <= self.step for s in left)
        if self.writing is not None and self.writing[1] > self.step:
            stale = self.writing[0]
            self.writing = None
            assert not self.both(lambda r: r.ring.finish(stale, sound=True)), "a void ticket"

    def check_caution(self, verdict, slot, scale) -> None:
        """The more attempts, the older the snapshot, and the smaller the learning rate."""
        rollback = verdict.rollback
        assert self.policy.lr_scale == rollback.lr_scale
        if rollback.attempt == 0:
            assert slot.manual or slot.state is SlotState.VERIFIED
            assert rollback.lr_scale == scale
            return
        scopes = {finding.scope for finding in verdict.findings}
        lowers = rollback.attempt > 1 or scopes <= {Scope.RISK, Scope.RULE, Scope.NOTICE}
        assert rollback.restores_rng is not lowers
        assert rollback.lr_scale == scale * (self.guard.lr_backoff if lowers else 1.0)
        self.accounts.lowered += lowers
        if slot.state is SlotState.PENDING:
            assert rollback.attempt == 1, "only the first attempt is optimistic"
            assert Scope.STATE in scopes
        if slot.state is SlotState.VERIFIED:
            known = [
                s for s in self.ring.verified() if s.step < self.step + (Scope.STATE in scopes)
            ]
            place = min(max(0, rollback.attempt - 2), len(known) - 1)
            assert known[place] is slot, "every attempt from the third on goes further back"

    # what must hold

    def check_counts(self) -> None:
        accounts, policy = self.accounts, self.policy
        spikes = accounts.spikes // policy_module.STEPS_PER_SPIKE
        counted = accounts.skips, spikes, accounts.tokens, len(accounts.episode)
        known = policy.skips_in_a_row, policy.spikes_left, policy.tokens, policy.attempts
        assert known == counted
        lowest = self.guard.lr_backoff ** (self.guard.max_rollbacks + accounts.lowered)
        assert lowest * (1 - 1e-6) <= policy.lr_scale <= 1.0
