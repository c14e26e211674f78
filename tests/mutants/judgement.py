"""Mutants of what is done about which cause, of rules about signals, and of stability."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

RULES = "tests/guard/test_rules.py"
CAUSES = "tests/guard/test_responses.py"
GATE = "tests/test_gate.py"
JUMPS = "tests/health/test_jumps.py"

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
        ("tests/health/test_inspection.py", "tests/guard/test_keeper.py", f"{CAUSES}::TestState"),
    ),
    "a spike that is only warned of is the new normal": Mutant(
        "stableopt.guardian",
        "        if spikes:\n            self._judge.spikes.note_spike(spikes)",
        "        if False:\n            self._judge.spikes.note_spike(spikes)",
        (f"{CAUSES}::TestSpikes::test_a_warning_takes_the_step_and_teaches_nothing",),
    ),
    "a rule that runs out of skips resets baselines": Mutant(
        "stableopt.guard.policy",
        "baseline_reset=spikes,",
        "baseline_reset=True,",
        (f"{RULES}::TestWhatFollows::test_skip_leaves_out_batches_but_not_for_ever",),
    ),
    "a rule is told at every observation": Mutant(
        "stableopt.health.rule_book",
        "if now.row >= rule.patience > before.row:",
        "if now.row >= rule.patience:",
        (f"{RULES}::TestWhatFollows::test_a_warning_is_told_once_and_changes_nothing",),
    ),
    "rules have no patience": Mutant(
        "stableopt.health.rule_book",
        "if now.row >= rule.patience > before.row:",
        "if now.row >= 1 > before.row:",
        (f"{RULES}::TestConditions::test_patience_counts_observations",),
    ),
    "a batch that is left out teaches rules": Mutant(
        "stableopt.health.rule_book",
        "if self._asked is not None and taken:",
        "if self._asked is not None:",
        (f"{RULES}::TestMemory::test_a_skipped_batch_teaches_nothing",),
    ),
    "NaN is healthy to a rule": Mutant(
        "stableopt.health.rule_book",
        "return not self._known.undefined and not any(self._holding())",
        "return not any(self._holding())",
        (f"{RULES}::TestUnknown",),
    ),
    "the best is that of single values": Mutant(
        "stableopt.health.signal_statistics",
        "self._largest = max(self._largest, average)",
        "self._largest = max(self._largest, value)",
        ("tests/health/test_signal_statistics.py",),
    ),
    "a first value that was lucky is the best for good": Mutant(
        "stableopt.health.signal_statistics",
        "FIRST = 7",
        "FIRST = 1",
        (f"{RULES}::TestConditions",),
    ),
    "a NaN releases what holds": Mutant(
        "stableopt.health.rule_book",
        "return _Known({**self.ranges, **numbers}, undefined)",
        "return _Known({**self.ranges, **told}, undefined)",
        (f"{RULES}::TestUnknown",),
    ),
    "spikes that are warned of stay spikes": Mutant(
        "stableopt.guard.policy",
        "return replace(told, reason=stays, baseline_reset=True)",
        "return told",
        (f"{CAUSES}::TestSpikes::test_a_shift_that_stays_is_the_new_normal",),
    ),
    "float16 underflows into a fault": Mutant(
        "stableopt.health.laws",
        "max(smallest**2, _SLACK * squared * lost)",
        "smallest**2",
        ("tests/health/test_inspection.py", "-k", "underflow"),
    ),
    "snapshots are trusted while a rule acts": Mutant(
        "stableopt.guardian",
        "if self._rules.endangered:",
        "if False:",
        (f"{RULES}::TestMemory",),
    ),
    "rules do not go back": Mutant(
        "stableopt.guardian",
        'self._rules.load_state_dict(baselines["rules"])',
        "pass",
        (f"{RULES}::TestMemory::test_it_goes_back_with_the_weights",),
    ),
    "a run is stable at once": Mutant(
        "stableopt.health.stability",
        "return self.calm >= self._cooldown",
        "return self.calm > 0",
        (f"{GATE}::TestIsStable",),
    ),
    "an open episode is stable": Mutant(
        "stableopt.guardian",
        "return self._policy.attempts == 0 and self._rules.calm",
        "return self._rules.calm",
        (f"{GATE}::TestIsStable::test_a_rollback_ends_it_until_the_episode_is_over",),
    ),
    "a gate escalates whatever happens": Mutant(
        "stableopt.gate",
        "stable = self._optimizer.is_stable",
        "stable = True",
        (f"{GATE}::TestGate",),
    ),
    "large layers are blamed for being large": Mutant(
        "stableopt.health.culprits",
        "math.sqrt(now - usual) * math.sqrt(now + usual)",
        "now",
        ("tests/health/test_culprits.py::test_who_is_to_blame",),
    ),
    "weights that begin are jumps": Mutant(
        "stableopt.health.jumps",
        "max(factor * known.norm, USUAL * unit)",
        "factor * known.norm",
        (f"{JUMPS}::TestHistory",),
    ),
    "any growth is a jump": Mutant(
        "stableopt.health.jumps",
        " and grown > factor * known.largest",
        "",
        (f"{JUMPS}::TestHistory",),
    ),
    "jumps are learned": Mutant(
        "stableopt.health.judge",
        "if found or (part.faults(numbers) and self.accepted):",
        "if found:",
        (f"{JUMPS}::TestTraining",),
    ),
    "other weights are held against those before them": Mutant(
        "stableopt.health.judge",
        "        self._inspector.forget()\n",
        "",
        (f"{JUMPS}::TestTraining::test_a_checkpoint_of_other_weights",),
    ),
}
