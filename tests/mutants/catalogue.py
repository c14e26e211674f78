"""The mutants: what is broken, where, and which test must fail."""

from __future__ import annotations

from tests.mutants.compiled import COMPILED_MUTANTS
from tests.mutants.healthy import HEALTHY_MUTANTS
from tests.mutants.judgement import JUDGEMENT_MUTANTS
from tests.mutants.mutant import Mutant
from tests.mutants.ranks import RANKS_MUTANTS
from tests.mutants.sensors import SENSOR_MUTANTS
from tests.mutants.telling import TELLING_MUTANTS
from tests.mutants.trainers import TRAINER_MUTANTS
from tests.mutants.transforms import TRANSFORM_MUTANTS

OPTIMIZER = "tests/test_optimizer.py::TestContract"
OBSERVE = "tests/test_optimizer.py::TestObserve"
BITWISE = "tests/contract/test_bitwise.py"
SKIP = "tests/contract/test_skip.py"
ROLLBACK = "tests/contract/test_rollback.py"
TRACKED = "tests/contract/test_tracked.py"
KEEPER = "tests/snapshots/test_keeper.py"
INSPECTION = "tests/health/test_inspection.py"
SPIKES = "tests/health/test_spikes.py"
MACHINE = "tests/guard/test_state_machine.py"
CHECKPOINT = "tests/contract/test_checkpoint.py"
JSON = "tests/telemetry/test_json_lines.py"
DISPATCH = "tests/telemetry/test_dispatch.py"
CLIP = "tests/transforms/test_clip_grad_norm.py"

MUTANTS = {
    # Promise 1: bit-identical while nothing fires; a true Optimizer.
    "groups are copied": Mutant(
        "stableopt.optimizer.wrapper",
        "return self if wrapper is None else getattr(wrapper.optimizer, self._name)",
        "value = None if wrapper is None else getattr(wrapper.optimizer, self._name)\n"
        "        return list(value) if isinstance(value, list) else value",
        (f"{OPTIMIZER}::test_it_is_an_optimizer_that_owns_nothing_of_the_inner_one",),
    ),
    "global hooks fire twice": Mutant(
        "stableopt.optimizer.wrapper",
        "step.hooked = True",
        "step.hooked = False",
        (f"{OPTIMIZER}::test_global_hooks_fire_once_even_if_torch_patches_the_class_again",),
    ),
    "schedulers patch the instance": Mutant(
        "stableopt.optimizer.wrapper",
        "step._wrapped_by_lr_sched = True",
        "step._not_wrapped = True",
        (f"{OPTIMIZER}::test_a_scheduler_does_not_patch_the_instance",),
    ),
    "the fused scaler protocol leaks": Mutant(
        "stableopt.optimizer.wrapper",
        "return self._loop.scaler.must_step()",
        "return getattr(self.optimizer, '_step_supports_amp_scaling', False)",
        (f"{CHECKPOINT}::test_grad_scaler_sees_the_same_run_and_keeps_its_overflow_skips",),
    ),
    "the closure runs twice": Mutant(
        "stableopt.loop.take",
        "or not self._hands_closure:\n            return None",
        "or not self._hands_closure:\n            return attempt.closure",
        (BITWISE, "-k", "AdamW-default and closure"),
    ),
    "lbfgs evaluates once more": Mutant(
        "stableopt.update.closures",
        "if seen is not None and seen == self._fingerprint() and self._is_where_it_was():",
        "if seen == []:",
        (BITWISE, "-k", "LBFGS"),
    ),
    "clipping at the bound rounds its own way": Mutant(
        "stableopt.transforms.clip_grad_norm",
        "0.99 * self.max_norm - 1e-6",
        "1.0000005 * self.max_norm",
        (f"{CLIP}::test_right_at_the_bound_the_rounding_is_that_of_torch",),
    ),
    # SKIP: the batch never happened.
    "inf gradients are healthy": Mutant(
        "stableopt.functional.norms",
        "torch.isfinite(tensor).all()",
        "(~torch.isnan(tensor)).all()",
        (f"{SKIP}::test_the_batch_never_happened", "-k", "SGD-default and inf_gradient"),
    ),
    "an overflowing norm is a fault": Mutant(
        "stableopt.sensors.gradients",
        "if not math.isfinite(float(norm)) and not all_finite(value)",
        "if not math.isfinite(float(norm))",
        (f"{SKIP}::test_huge_finite_gradients_whose_norm_overflows_are_taken",),
    ),
    "the loss is not judged": Mutant(
        "stableopt.health.judge",
        "(loss is None or math.isfinite(loss)) and not",
        "not",
        (f"{SKIP}::test_the_batch_never_happened", "-k", "SGD-default and nan_loss"),
    ),
    "buffers are not restored": Mutant(
        "stableopt.loop.restore",
        "        else:\n            self.buffers.left_out()",
        "        else:\n            pass",
        (f"{SKIP}::test_batch_norm_statistics_never_saw_the_batch",),
    ),
    "buffers go back to the beginning": Mutant(
        "stableopt.loop.restore",
        "self.buffers.taken()\n        else:",
        "pass\n        else:",
        (f"{SKIP}::test_batch_norm_statistics_never_saw_the_batch",),
    ),
    "only floating buffers are kept": Mutant(
        "stableopt.snapshots.buffers",
        "(id(live) in seen or not is_plain(live))",
        "(id(live) in seen or not is_plain(live) or not live.is_floating_point())",
        (f"{SKIP}::test_batch_norm_statistics_never_saw_the_batch",),
    ),
    "a line search is not undone": Mutant(
        "stableopt.loop.take",
        "self._before.restore(self._optimizer)",
        "pass",
        (f"{SKIP}::test_lbfgs_skips_when_a_later_evaluation_is_bad",),
    ),
    "a restored copy is handed out": Mutant(
        "stableopt.snapshots.tree_copy",
        "return saved.clone()",
        "return saved",
        ("tests/snapshots/test_state_copy.py",),
    ),
    "gradients are transformed before they are judged": Mutant(
        "stableopt.loop.step",
        "                verdict = self.judge(attempt)\n        if primes:",
        "                self.transforms.change_gradients(attempt.observation)\n"
        "                verdict = self.judge(attempt)\n        if primes:",
        (f"{CLIP}::test_a_skipped_step_leaves_the_gradients_as_they_were",),
    ),
    "priming counts as a step": Mutant(
        "stableopt.loop.step",
        "primes = closure is None and self._is_priming(attempt.observation)",
        "primes = False",
        (f"{CHECKPOINT}::test_distributed_checkpoint_primes_without_a_trace", "-k", "AdamW"),
    ),
    "signals go stale": Mutant(
        "stableopt.sensors.signals",
        "self._losses, self._others, self._between = [], {}, {}",
        "pass",
        (f"{OBSERVE}::test_other_signals_keep_the_last_value_and_are_consumed",),
    ),
    "an overflow of the scaler stays in the mean": Mutant(
        "stableopt.sensors.signals",
        "self._begun = self._ended = True",
        "pass",
        (f"{OBSERVE}::test_what_a_grad_scaler_skipped_is_not_held_against_the_next_batch",),
    ),
    # Promise 4: counted, with a reason, in the ledger; the caps end the run.
    "skips are not counted": Mutant(
        "stableopt.guard.policy",
        "self.skips_in_a_row += 1",
        "pass",
        (f"{SKIP}::test_too_many_skips_in_a_row_stop_the_run",),
    ),
    "a good step does not end a row": Mutant(
        "stableopt.guard.policy",
        "self.skips_in_a_row = 0\n        new",
        "pass\n        new",
        (f"{SKIP}::test_a_taken_step_ends_a_row_of_skips",),
    ),
    "one skip too many": Mutant(
        "stableopt.guard.policy",
        "if self.skips_in_a_row < limit:",
        "if self.skips_in_a_row <= limit:",
        (f"{SKIP}::test_too_many_skips_in_a_row_stop_the_run",),
    ),
    "the ledger forgets": Mutant(
        "stableopt.loop.record",
        "ledger.add(event)",
        "pass",
        (f"{SKIP}::test_too_many_skips_in_a_row_stop_the_run",),
    ),
    # The guard: the seeded bugs of the protocol, and more of our own.
    "snapshots are trusted at once": Mutant(
        "stableopt.guard.ring",
        "        if sound:\n            slot.state = SlotState.PENDING",
        "        if sound:\n            slot.state = SlotState.VERIFIED",
        (MACHINE,),
    ),
    "the newest verified snapshot is given up": Mutant(
        "stableopt.guard.ring",
        "old = [slot for slot in self.verified()[1:] if not slot.manual]",
        "old = [slot for slot in self.verified() if not slot.manual]",
        (MACHINE,),
    ),
    "a pending snapshot is given up": Mutant(
        "stableopt.guard.ring",
        "old = [slot for slot in self.verified()[1:] if not slot.manual]",
        "old = [s for s in self.sound() if s is not self.verified()[0] and not s.manual]",
        (MACHINE,),
    ),
    "a pinned snapshot is given up": Mutant(
        "stableopt.guard.ring",
        "old = [slot for slot in self.verified()[1:] if not slot.manual]",
        "old = self.verified()[1:]",
        (MACHINE,),
    ),
    "newer snapshots survive a rollback": Mutant(
        "stableopt.guard.ring",
        "if slot is not to and slot.held and slot.step >= to.step:",
        "if False:",
        (MACHINE,),
    ),
    "newer pending snapshots survive a rollback": Mutant(
        "stableopt.guard.ring",
        "if slot is not to and slot.held and slot.step >= to.step:",
        "if slot is not to and slot.state is SlotState.VERIFIED and slot.step >= to.step:",
        (MACHINE,),
    ),
    "a verdict vouches for one step too many": Mutant(
        "stableopt.guard.ring",
        "step >= slot.step + self.confirm:",
        "step + 1 >= slot.step + self.confirm:",
        (MACHINE,),
    ),
    "a void ticket is honoured": Mutant(
        "stableopt.guard.ring",
        "if slot.state is not SlotState.WRITING or slot.number != ticket.number:",
        "if False:",
        (MACHINE,),
    ),
    "intervals are not stretched": Mutant(
        "stableopt.guard.ring",
        "return max(every, -(-confirm // max(1, slots - 2)))",
        "return every",
        (MACHINE,),
    ),
    "the ruler has one mark": Mutant(
        "stableopt.guard.ring",
        "height = (number & -number).bit_length() - 1",
        "height = number",
        (MACHINE,),
    ),
    "attempts are rolled back": Mutant(
        "stableopt.guard.policy",
        "self.attempts = rollback.attempt",
        "self.attempts = 0",
        (MACHINE,),
    ),
    "an episode ends without a cooldown": Mutant(
        "stableopt.guard.policy",
        "step >= self.furthest + self._guard.cooldown:",
        "step >= 0:",
        (MACHINE,),
    ),
    "an episode ends where it was restored": Mutant(
        "stableopt.guard.policy",
        "self.furthest = max(self.furthest, rollback.from_step)",
        "self.furthest = rollback.to_step",
        (MACHINE,),
    ),
    "rollbacks cost nothing": Mutant(
        "stableopt.guard.policy",
        "self.tokens -= 1",
        "pass",
        (MACHINE,),
    ),
    "every attempt is optimistic": Mutant(
        "stableopt.guard.policy",
        "ring.sound() if attempt == 1 and lost else ring.verified()",
        "ring.sound() if lost else ring.verified()",
        ("tests/guard/test_policy.py",),
    ),
    "the learning rate is lowered once": Mutant(
        "stableopt.guard.policy",
        "lr_scale=self.lr_scale * lr_factor,",
        "lr_scale=lr_factor if lr_factor < 1 else self.lr_scale,",
        (MACHINE,),
    ),
    "replayed steps earn rollbacks": Mutant(
        "stableopt.guard.policy",
        "new = max(0, step + 1 - self.progress)",
        "new = 1000",
        (MACHINE,),
    ),
    # Promise 2, in the real loop: what a snapshot holds, and that all of it comes back.
    "random states stay": Mutant(
        "stableopt.snapshots.snapshot",
        "if replay and self._rng is not None:",
        "if False:",
        (f"{TRACKED}::test_everything_goes_back_together",),
    ),
    "buffers stay": Mutant(
        "stableopt.snapshots.snapshot",
        "            restore_buffers()\n",
        "            pass\n",
        (f"{TRACKED}::test_everything_goes_back_together",),
    ),
    "optimizer state stays": Mutant(
        "stableopt.snapshots.state_copy",
        "            replace_items(live.state, state)",
        "            pass",
        (ROLLBACK, "-k", "before_the_first_step"),
    ),
    "parameters stay": Mutant(
        "stableopt.snapshots.state_copy",
        "torch._foreach_copy_(values, self._params)",
        "pass",
        (ROLLBACK, "-k", "AdamW-default and never_saw"),
    ),
    "the options of a tracked schedule stay": Mutant(
        "stableopt.loop.restore",
        "return self.tracked.has_scheduler or option in self._options.moved",
        "return option in self._options.moved",
        (ROLLBACK, "-k", "goes_back"),
    ),
    "the options of any schedule go back": Mutant(
        "stableopt.loop.restore",
        "return self.tracked.has_scheduler or option in self._options.moved",
        "return True",
        (ROLLBACK, "-k", "not_tracked"),
    ),
    "options that the step moves stay": Mutant(
        "stableopt.loop.restore",
        "return self.tracked.has_scheduler or option in self._options.moved",
        "return self.tracked.has_scheduler",
        (ROLLBACK, "-k", "ScheduleFree"),
    ),
    "the scale of a scaler is halved after it was restored": Mutant(
        "stableopt.loop.restore",
        "forgive_overflow(scaler)",
        "pass",
        (f"{TRACKED}::test_everything_goes_back_together",),
    ),
    "a scaler never hears of lost weights": Mutant(
        "stableopt.loop.scaler",
        "return self._asked > (self._usual or 1) and self._ranks.any(",
        "return self._asked < 0 and self._ranks.any(",
        (f"{TRACKED}::test_everything_goes_back_together",),
    ),
    "a scaler that asks twice has all weights read": Mutant(
        "stableopt.loop.scaler",
        "self._asked > (self._usual or 1)",
        "self._asked > 1",
        (f"{KEEPER}::TestWhatUsersDo::test_a_scaler_that_asks_several_times_costs_no_scan",),
    ),
    "noise is replayed for ever": Mutant(
        "stableopt.guard.policy",
        "restores_rng=not lowers,",
        "restores_rng=True,",
        (f"{TRACKED}::test_the_second_rollback_passes_the_batches_by",),
    ),
    "the lowered rate stays in the groups": Mutant(
        "stableopt.update.learning_rate",
        '            group["lr"] = lr\n\n\ndef learning_rates',
        "            pass\n\n\ndef learning_rates",
        (ROLLBACK, "-k", "lower_rate"),
    ),
    # Promise 3: what was flagged enters no baseline; nothing is healthy unlooked at.
    "flagged values become normal": Mutant(
        "stableopt.loop.decide",
        "        self.policy.note(verdict, step, endangered=endangered)\n",
        "        self.detectors.learn(observation)\n",
        (f"{SPIKES}::test_a_flagged_value_does_not_enter_the_baseline",),
    ),
    "a shift is rolled back": Mutant(
        "stableopt.guard.policy",
        "if any(finding.scope is Scope.BATCH for finding in findings):",
        "if True:",
        (MACHINE,),
    ),
    "a tail of the loss is spikes for ever": Mutant(
        "stableopt.health.steps.spikes",
        "if before >= ALIKE_LOSS:",
        "if False:",
        (f"{SPIKES}::test_what_was_seen_is_a_tail",),
    ),
    "baselines do not go back": Mutant(
        "stableopt.loop.parts",
        'self.register.add("spikes", self.decider.detectors.spikes, restored=True)',
        'self.register.add("spikes", self.decider.detectors.spikes, restored=False)',
        (f"{SPIKES}::test_baselines_go_back_with_the_weights",),
    ),
    "near zero everything is a spike": Mutant(
        "stableopt.health.steps.spikes",
        "score = base.score(loss, LOSS_FLOOR * abs(base.first_median or 0.0))",
        "score = base.score(loss, 0.0)",
        (f"{SPIKES}::TestLoss::test_near_zero_nothing_is_a_spike",),
    ),
    "the scan stands still": Mutant(
        "stableopt.health.tensors.scan",
        "part = self._parts.pop()",
        "part = self._parts.pop()[:0]",
        (f"{INSPECTION}::test_what_nothing_else_shows_is_found_within_one_scan",),
    ),
    "buffers are not scanned": Mutant(
        "stableopt.health.tensors.scan",
        "        if begins:\n            self._add_buffers(inspection)\n",
        "        if begins:\n            pass\n",
        (f"{INSPECTION}::test_what_nothing_else_shows_is_found_within_one_scan",),
    ),
    "huge is healthy": Mutant(
        "stableopt.health.tensors.inspection",
        'return "huge" if float(tensor.abs().amax()) > limit else None',
        "return None",
        (f"{INSPECTION}::test_what_nothing_else_shows_is_found_within_one_scan",),
    ),
    "first moments are free": Mutant(
        "stableopt.health.tensors.laws",
        "return _SLACK * squared, max(",
        "return 1e30 * squared, max(",
        (f"{INSPECTION}::test_what_nothing_else_shows_is_found_within_one_scan",),
    ),
    "the bound is too strict": Mutant(
        "stableopt.health.tensors.laws",
        "return _SLACK * squared, max(",
        "return 0.01 * squared, max(",
        (f"{INSPECTION}::TestMomentLaws",),
    ),
    "what was always so is a fault": Mutant(
        "stableopt.health.tensors.inspector",
        "self.exempt.update(labels)",
        "pass",
        (f"{INSPECTION}::test_what_was_never_finite_is_left_alone",),
    ),
    # Promise 2, in the real loop: nothing with a fault in it is kept or restored.
    "snapshots are taken unlooked at": Mutant(
        "stableopt.snapshots.keeper",
        "parted or bool(self._judge.damage())",
        "parted",
        (f"{INSPECTION}::test_a_snapshot_never_holds_it",),
    ),
    "snapshots are restored unlooked at": Mutant(
        "stableopt.snapshots.keeper",
        "intact = snapshot.is_intact()",
        "intact = True",
        (f"{KEEPER}::TestSafety::test_a_snapshot_that_was_damaged_at_rest_is_given_up",),
    ),
    "a checkpoint keeps the ring": Mutant(
        "stableopt.loop.restore",
        "self.keeper.forget()",
        "pass",
        (f"{KEEPER}::TestSafety::test_loading_a_checkpoint_empties_the_ring",),
    ),
    "a stop leaves what is there": Mutant(
        "stableopt.guard.policy",
        "if newest is not None:",
        "if False:",
        (f"{KEEPER}::TestSafety::test_a_stop_leaves_the_newest_verified_weights",),
    ),
    "a rollback by hand counts": Mutant(
        "stableopt.guard.policy",
        "if rollback.attempt == 0:",
        "if False:",
        (f"{KEEPER}::TestByHand::test_it_counts_against_no_limit",),
    ),
    "memory is taken anew": Mutant(
        "stableopt.snapshots.tree_copy",
        "if self._memory.fits(old, value) and id(old) not in self._reused:",
        "if False:",
        (f"{KEEPER}::TestMemory::test_nothing_is_allocated_after_the_first_step",),
    ),
    # Promise 6: resume.
    "clocks are not loaded": Mutant(
        "stableopt.optimizer.wrapper",
        "        load()\n",
        "        pass\n",
        (f"{CHECKPOINT}::test_clocks_survive_a_checkpoint",),
    ),
    "copies share the loop": Mutant(
        "stableopt.optimizer.wrapper",
        'return {"optimizer": self.optimizer, "loop": self._loop}',
        'return {"optimizer": self.optimizer, "loop": _Same(self._loop)}\n\n'
        "class _Same:\n"
        "    def __init__(self, loop): self.loop = loop\n"
        "    def __deepcopy__(self, memo): return self.loop",
        (f"{CHECKPOINT}::test_a_deepcopied_wrapper_with_a_scheduler_leaves_the_original_alone",),
    ),
    # Telemetry never lies and never breaks a step.
    "two runs share a file": Mutant(
        "stableopt.telemetry.json_lines",
        "os.O_CREAT | os.O_EXCL | os.O_APPEND",
        "os.O_CREAT | os.O_APPEND",
        (f"{JSON}::test_an_existing_directory_gets_a_new_run",),
    ),
    "a torn line spoils the next": Mutant(
        "stableopt.telemetry.json_lines",
        '("\\n" if self._torn else "")',
        '""',
        (f"{JSON}::test_a_full_disk_is_reported_once_and_training_goes_on",),
    ),
    "long strings are written": Mutant(
        "stableopt.telemetry.encode",
        "if len(text) > LONGEST_STRING:",
        "if False:",
        (f"{JSON}::test_long_strings_are_redacted",),
    ),
    "a failing writer is reported every time": Mutant(
        "stableopt.telemetry.writer_thread",
        "warn_once(self._said,",
        "warn_once(set(),",
        (f"{DISPATCH}::test_a_writer_that_raises_is_reported_once_and_counted",),
    ),
    **JUDGEMENT_MUTANTS,
    **HEALTHY_MUTANTS,
    **COMPILED_MUTANTS,
    **TELLING_MUTANTS,
    **TRAINER_MUTANTS,
    **SENSOR_MUTANTS,
    **RANKS_MUTANTS,
    **TRANSFORM_MUTANTS,
}
