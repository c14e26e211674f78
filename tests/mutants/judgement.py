"""Mutants of what is done about which cause, of rules about signals, and of stability."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

RULES = "tests/triggers/test_rules.py"
CAUSES = "tests/guard/test_responses.py"
GATE = "tests/test_gate.py"
JUMPS = "tests/health/test_jumps.py"
MACHINE = "tests/guard/test_state_machine.py"
ESCALATION = "tests/guard/test_escalation.py"
VANISHED = "tests/health/test_vanished.py"
KEEPER = "tests/snapshots/test_keeper.py"

JUDGEMENT_MUTANTS = {
    "what is asked for is not done": Mutant(
        "stableopt.guard.responses",
        "    if finding.kind in asked:\n",
        "    if False:\n",
        (f"{CAUSES}::TestSpikes",),
    ),
    "anything may be asked for": Mutant(
        "stableopt.guard.responses",
        "if response not in allowed:",
        "if False:",
        (f"{CAUSES}::test_what_cannot_be",),
    ),
    "the mildest of several answers counts": Mutant(
        "stableopt.guard.policy",
        "response = max(map(",
        "response = min(map(",
        (
            "tests/health/test_inspection.py",
            "tests/snapshots/test_keeper.py",
            f"{CAUSES}::TestState",
        ),
    ),
    "a spike that is only warned of is the new normal": Mutant(
        "stableopt.loop.decide",
        "        if spiked:\n            spikes.note_spike()",
        "        if False:\n            spikes.note_spike()",
        (f"{CAUSES}::TestSpikes::test_a_warning_takes_the_step_and_teaches_nothing",),
    ),
    "a rule that runs out of skips resets baselines": Mutant(
        "stableopt.guard.policy",
        "resets=spikes)",
        "resets=True)",
        (f"{RULES}::TestWhatFollows::test_skip_leaves_out_batches_but_not_for_ever",),
    ),
    "a rule is told at every observation": Mutant(
        "stableopt.triggers.rule_book",
        "if now.row >= rule.patience > before.row:",
        "if now.row >= rule.patience:",
        (f"{RULES}::TestWhatFollows::test_a_warning_is_told_once_and_changes_nothing",),
    ),
    "rules have no patience": Mutant(
        "stableopt.triggers.rule_book",
        "if now.row >= rule.patience > before.row:",
        "if now.row >= 1 > before.row:",
        (f"{RULES}::TestConditions::test_patience_counts_observations",),
    ),
    "a batch that is left out teaches rules": Mutant(
        "stableopt.triggers.rule_book",
        "if self._asked is not None and taken:",
        "if self._asked is not None:",
        (f"{RULES}::TestMemory::test_a_skipped_batch_teaches_nothing",),
    ),
    "NaN is healthy to a rule": Mutant(
        "stableopt.triggers.rule_book",
        "return not self._known.undefined and not any(self._holding())",
        "return not any(self._holding())",
        (f"{RULES}::TestUnknown",),
    ),
    "the best is that of single values": Mutant(
        "stableopt.triggers.signal_statistics",
        "self._largest = max(self._largest, average)",
        "self._largest = max(self._largest, value)",
        ("tests/triggers/test_signal_statistics.py",),
    ),
    "a first value that was lucky is the best for good": Mutant(
        "stableopt.triggers.signal_statistics",
        "FIRST = 7",
        "FIRST = 1",
        (f"{RULES}::TestConditions",),
    ),
    "a NaN releases what holds": Mutant(
        "stableopt.triggers.rule_book",
        "return _Known({**self.ranges, **numbers}, undefined)",
        "return _Known({**self.ranges, **told}, undefined)",
        (f"{RULES}::TestUnknown",),
    ),
    "what exceeds the budget of spikes is no new normal": Mutant(
        "stableopt.guard.policy",
        "findings, resets=True)",
        "findings)",
        (
            "tests/health/test_spikes.py::test_no_run_is_tamed_more_than_five_times_in_a_thousand_steps",
        ),
    ),
    "float16 underflows into a fault": Mutant(
        "stableopt.health.tensors.laws",
        "max(smallest**2, _SLACK * squared * lost)",
        "smallest**2",
        ("tests/health/test_inspection.py", "-k", "underflow"),
    ),
    "snapshots are trusted while a rule acts": Mutant(
        "stableopt.loop.decide",
        "if self.rules.endangered:",
        "if False:",
        (f"{RULES}::TestMemory",),
    ),
    "rules do not go back": Mutant(
        "stableopt.loop.parts",
        'self.register.add("rules", self.decider.rules, restored=True)',
        'self.register.add("rules", self.decider.rules, restored=False)',
        (f"{RULES}::TestMemory::test_it_goes_back_with_the_weights",),
    ),
    "a run is stable at once": Mutant(
        "stableopt.health.stability",
        "return self.calm >= self._cooldown",
        "return self.calm > 0",
        (f"{GATE}::TestIsStable",),
    ),
    "an open episode is stable": Mutant(
        "stableopt.loop.decide",
        "return self.policy.attempts == 0 and self.rules.calm",
        "return self.rules.calm",
        (f"{GATE}::TestIsStable::test_a_rollback_ends_it_until_the_episode_is_over",),
    ),
    "a gate escalates whatever happens": Mutant(
        "stableopt.optimizer.gate",
        "stable = self._optimizer.is_stable",
        "stable = True",
        (f"{GATE}::TestGate",),
    ),
    "large layers are blamed for being large": Mutant(
        "stableopt.health.steps.blame",
        "math.sqrt(now - usual) * math.sqrt(now + usual)",
        "now",
        ("tests/health/test_blame.py::test_who_is_to_blame",),
    ),
    "weights that begin are jumps": Mutant(
        "stableopt.health.tensors.jumps",
        "max(factor * known.norm, USUAL * unit)",
        "factor * known.norm",
        (f"{JUMPS}::TestHistory",),
    ),
    "any growth is a jump": Mutant(
        "stableopt.health.tensors.jumps",
        " and grown > factor * known.largest",
        "",
        (f"{JUMPS}::TestHistory",),
    ),
    "jumps are learned": Mutant(
        "stableopt.health.judge",
        "self._part.faults(numbers[:scanned]) and self.accepted",
        "False",
        (f"{JUMPS}::TestTraining",),
    ),
    "other weights are held against those before them": Mutant(
        "stableopt.health.judge",
        "        self._inspector.forget()\n",
        "",
        (f"{JUMPS}::TestTraining::test_a_checkpoint_of_other_weights",),
    ),
    "flips cancel in the sum of the bits": Mutant(
        "stableopt.runtime.bit_sum",
        "return values.view(-1).view(torch.int64).sum()",
        "return values.double().sum().to(torch.int64)",
        ("tests/runtime/test_bit_sums.py",),
    ),
    "live parameters are part of a copy": Mutant(
        "stableopt.snapshots.state_copy",
        "known = {id(p) for p in params}",
        "known: set[int] = set()",
        (f"{KEEPER}::TestSafety::test_a_state_that_refers_to_parameters",),
    ),
    "moments may vanish": Mutant(
        "stableopt.health.tensors.vanished",
        "return norm < left and left > SMALLEST",
        "return False",
        (f"{VANISHED}::TestHistory",),
    ),
    "moments never decay": Mutant(
        "stableopt.health.tensors.vanished",
        "decay ** (self.call - known.call) * ",
        "",
        (f"{VANISHED}::TestHistory",),
    ),
    "the past is held against moments that went back": Mutant(
        "stableopt.health.judge",
        "        self._inspector.moments.forget()\n",
        "",
        (f"{VANISHED}::TestTraining::test_a_rollback_forgets_what_came_after_it",),
    ),
    "other moments are held against those before them": Mutant(
        "stableopt.health.tensors.vanished",
        " or known.holder() is not holder",
        "",
        (f"{VANISHED}::TestTraining::test_a_state_that_is_put_anew_is_none",),
    ),
    "groups are not judged": Mutant(
        "stableopt.health.judge",
        "groups = {} if together else self.spikes.judge_groups(observation)",
        "groups: dict[int, Finding] = {}",
        ("tests/health/test_blame.py::TestGroups",),
    ),
    "what moves by design is reported": Mutant(
        "stableopt.health.tensors.frozen",
        "            if known.steady:",
        "            if True:",
        ("tests/health/test_frozen.py::test_a_teacher_that_follows_its_student_is_none",),
    ),
    "frozen weights may change": Mutant(
        "stableopt.health.tensors.frozen",
        "if not differs:",
        "if True:",
        ("tests/health/test_frozen.py",),
    ),
    "frozen weights are not looked at for a cause": Mutant(
        "stableopt.health.judge",
        '            inspection.add(Label("frozen", name), tensor)',
        "            pass",
        ("tests/health/test_frozen.py::test_one_that_is_not_finite_stops_the_run_and_says_why",),
    ),
    "notices are interventions": Mutant(
        "stableopt.types.event",
        "logged = (Scope.RISK, Scope.NOTICE, Scope.SPIKE)",
        "logged = (Scope.RISK, Scope.SPIKE)",
        ("tests/health/test_updates.py",),
    ),
    "zero gradients stall a weight": Mutant(
        "stableopt.health.steps.updates",
        "rate > 0 and sloped > 0 and unmoved",
        "unmoved",
        ("tests/health/test_updates.py::TestStalled",),
    ),
    "updates may be of any length": Mutant(
        "stableopt.health.steps.updates",
        "ratio <= max(LARGE, FACTOR * usual)",
        "True",
        ("tests/health/test_updates.py::TestLarge",),
    ),
    "skips are not counted": Mutant(
        "stableopt.guard.policy",
        "            self.skips_in_a_row += 1",
        "            pass",
        (MACHINE,),
    ),
    "skips are counted across steps": Mutant(
        "stableopt.guard.policy",
        "        self.skips_in_a_row = 0\n        new = max(",
        "        new = max(",
        (MACHINE,),
    ),
    "a rollback leaves no more skips": Mutant(
        "stableopt.guard.policy",
        "        self.skips_in_a_row = 0  # as many may be skipped again\n",
        "",
        (MACHINE,),
    ),
    "a rollback for a rule opens an episode of its own": Mutant(
        "stableopt.guard.policy",
        "        self.attempts = rollback.attempt\n",
        "        self.attempts = rollback.attempt if rollback.restores_rng else 0\n",
        (MACHINE,),
    ),
    "backing off has no floor": Mutant(
        "stableopt.guard.policy",
        "if scale < lowest * (1 - _ROUNDING):",
        "if False:",
        (MACHINE,),
    ),
    "the floor is one too high": Mutant(
        "stableopt.guard.policy",
        "lowest = self._guard.lr_backoff**self._guard.max_rollbacks",
        "lowest = self._guard.lr_backoff ** (self._guard.max_rollbacks - 1)",
        (MACHINE,),
    ),
    "spikes that are taken are not counted": Mutant(
        "stableopt.guard.policy",
        "spent = STEPS_PER_SPIKE * _has_spike(verdict.findings)",
        "spent = 0",
        (MACHINE,),
    ),
    "rollbacks by hand count": Mutant(
        "stableopt.guard.policy",
        "        if rollback.attempt == 0:\n            return\n",
        "",
        (MACHINE,),
    ),
    "more tokens than the budget": Mutant(
        "stableopt.guard.policy",
        "self.tokens = min(self._guard.budget, self.tokens + 1)",
        "self.tokens += 1",
        (MACHINE,),
    ),
    "the learning rate rises inside an episode": Mutant(
        "stableopt.guard.policy",
        "if not self.attempts and self.recovery_from and",
        "if self.recovery_from and",
        (MACHINE,),
    ),
    "the learning rate stays low after an episode": Mutant(
        "stableopt.guard.policy",
        "self.recovery_from = self.lr_scale if self.lr_scale < 1.0 else 0.0",
        "self.recovery_from = 0.0",
        (MACHINE,),
    ),
    "danger is healthy": Mutant(
        "stableopt.guard.policy",
        "healthy=not (unlike or endangered)",
        "healthy=not unlike",
        (MACHINE,),
    ),
    "a bad batch is taken in the end": Mutant(
        "stableopt.guard.policy",
        "if any(finding.scope is Scope.BATCH for finding in findings):",
        "if False:",
        (MACHINE,),
    ),
    "one skip more": Mutant(
        "stableopt.guard.policy",
        "if self.skips_in_a_row < limit:",
        "if self.skips_in_a_row <= limit:",
        (MACHINE,),
    ),
    "the same snapshot for ever": Mutant(
        "stableopt.guard.policy",
        "return slots[min(max(0, attempt - 2), len(slots) - 1)] if slots else None",
        "return slots[0] if slots else None",
        (MACHINE,),
    ),
    "a stop forgets what was set aside": Mutant(
        "stableopt.guard.policy",
        "newest, rollback = ring.best(), None",
        "newest, rollback = next(iter(ring.verified()), None), None",
        (MACHINE,),
    ),
    "one rule lowers for all": Mutant(
        "stableopt.guard.policy",
        "lowers = scopes <= {Scope.RISK, Scope.RULE, Scope.NOTICE}",
        "lowers = bool(scopes & {Scope.RISK, Scope.RULE})",
        (MACHINE,),
    ),
    "what may not be skipped any more is not answered": Mutant(
        "stableopt.guard.policy",
        'return self._take(f"{row}: {taken}", findings, resets=spikes)',
        "return Verdict(action=Action.TAKE, reason=row, findings=findings, baseline_reset=spikes)",
        (f"{ESCALATION}::test_what_may_not_be_skipped_any_more_is_still_answered",),
    ),
    "a step taken in spite of a spike is healthy": Mutant(
        "stableopt.guard.policy",
        "unlike = verdict.backs_off or _has_spike(verdict.findings)",
        "unlike = verdict.backs_off or verdict.baseline_reset",
        (f"{ESCALATION}::TestSpikes",),
    ),
    "rounding costs a step of the learning rate": Mutant(
        "stableopt.guard.policy",
        "lowest * (1 - _ROUNDING)",
        "lowest",
        (f"{ESCALATION}::test_rounding_costs_no_step_of_the_learning_rate",),
    ),
    "a rollback that cannot be is a step": Mutant(
        "stableopt.loop.restore",
        "if goes_back and verdict.action is Action.TAKE:",
        "if False:",
        (ESCALATION,),
    ),
}
