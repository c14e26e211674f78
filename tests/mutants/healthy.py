"""Mutants that harm a run in which nothing is wrong, or one that changes on the way."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

SPIKES = "tests/health/test_spikes.py"
QUIET = "tests/guard/test_quiet_runs.py"
SYMPTOMS = "tests/guard/test_symptoms.py"
MEMBERS = "tests/snapshots/test_membership.py"
BUFFERS = "tests/snapshots/test_buffers.py"
STORAGE = "tests/runtime/test_storage.py"
CLOSURES = "tests/contract/test_closures.py"
FAMILY = "tests/runtime/test_family.py"
FREED = "tests/contract/test_freed.py"
BATCH = "tests/guard/test_end_of_batch.py"
MESSAGES = "tests/guard/test_messages.py"

HEALTHY_MUTANTS = {
    # What training is made of is not withheld.
    "a sparse reward is a spike every time": Mutant(
        "stableopt.health.steps.spikes",
        "if before >= enough:",
        "if False:",
        (f"{SPIKES}::TestGradient",),
    ),
    "a gradient is data once it was seen twice": Mutant(
        "stableopt.health.steps.baseline",
        "ALIKE = 3",
        "ALIKE = 2",
        (f"{SPIKES}::TestGradient",),
    ),
    "what was flagged is remembered for ever": Mutant(
        "stableopt.health.steps.baseline",
        "while self._flagged and self._flagged[0][0] < self._count - MEMORY:",
        "while False:",
        (f"{SPIKES}::TestGradient",),
    ),
    "spikes are tamed without end": Mutant(
        "stableopt.guard.policy",
        "spent = _has_spike(findings) and not self.spikes_left",
        "spent = False",
        (f"{SPIKES}::test_no_run_is_tamed_more_than_five_times_in_a_thousand_steps",),
    ),
    "a batch that is not finite is taken once spikes are spent": Mutant(
        "stableopt.guard.policy",
        "if any(not (spent and finding.scope is Scope.SPIKE) for finding in skips):",
        "if skips and not spent:",
        ("tests/guard/test_state_machine.py",),
    ),
    "a tamed gradient is as large as ever": Mutant(
        "stableopt.loop.tame",
        "gradient.mul_(factor)",
        "pass",
        (f"{SPIKES}::test_a_gradient_spike_is_tamed_and_the_next_one_is_not",),
    ),
    "taming one group tames all": Mutant(
        "stableopt.loop.tame",
        "        if finding.group is not None:\n            gradients",
        "        if False:\n            gradients",
        ("tests/health/test_blame.py::TestGroups",),
    ),
    "a tamed batch moves running statistics": Mutant(
        "stableopt.loop.restore",
        "if verdict.action is Action.TAKE and not verdict.tames:",
        "if verdict.action is Action.TAKE:",
        (f"{SPIKES}::test_a_tamed_batch_leaves_no_statistics",),
    ),
    "the first five gradients may be anything": Mutant(
        "stableopt.health.steps.spikes",
        "base.has(1) and value > base.largest + EARLY_REACH",
        "base.has(6) and value > base.largest + EARLY_REACH",
        (f"{SPIKES}::TestGradient",),
    ),
    "a student of itself is tamed": Mutant(
        "stableopt.health.steps.spikes",
        "value > base.largest + EARLY_REACH and not self._explained",
        "value > base.largest + EARLY_REACH",
        (f"{SPIKES}::TestGradient",),
    ),
    "the first gradient is remembered for long": Mutant(
        "stableopt.loop.tame",
        "state[key].mul_(factor**power)",
        "pass",
        (f"{SPIKES}::TestTheFirstGradient",),
    ),
    "squares are scaled like what they are squares of": Mutant(
        "stableopt.loop.tame",
        "state[key].mul_(factor**power)",
        "state[key].mul_(factor)",
        (f"{SPIKES}::TestTheFirstGradient",),
    ),
    # A symptom is none of damage.
    "a loss that is not finite is a bad batch": Mutant(
        "stableopt.health.steps.nonfinite",
        "scope = Scope.BATCH if spoils else Scope.NOTICE",
        "scope = Scope.BATCH",
        (f"{SYMPTOMS}::test_skipping_can_be_asked_for", "-k", "exact"),
    ),
    "it is told every time": Mutant(
        "stableopt.health.judge",
        "if warns and before is not None and self._calls < before + QUIET:",
        "if False:",
        (f"{SYMPTOMS}::test_training_goes_on_bit_for_bit", "-k", "exact"),
    ),
    "the device leaves it out": Mutant(
        "stableopt.loop.step",
        "losses if self.skips_losses else ()",
        "losses",
        (f"{SYMPTOMS}::test_training_goes_on_bit_for_bit", "-k", "lagged"),
    ),
    "a graph leaves it out": Mutant(
        "stableopt.optimizer.stable",
        "if loss is not None and self._loop.skips_losses:",
        "if loss is not None:",
        (f"{SYMPTOMS}::test_inside_of_a_graph",),
    ),
    "nobody looks at the buffers": Mutant(
        "stableopt.health.judge",
        "if self._buffers is not None and self._buffers.spoilt():",
        "if False:",
        (f"{SYMPTOMS}::test_a_batch_that_reaches_buffers_is_left_out",),
    ),
    "a NaN is healthy if the gradients are": Mutant(
        "stableopt.loop.decide",
        "self.endangered or (loss is not None and not math.isfinite(loss))",
        "self.endangered",
        (f"{SYMPTOMS}::test_nothing_is_called_healthy_by_it",),
    ),
    # Parameters that come and go.
    "nobody sees that parameters have come": Mutant(
        "stableopt.loop.restore",
        "if not self._judge.has_same_parameters():",
        "if False:",
        (f"{MEMBERS}::TestGoingBack",),
    ),
    "everything is new where something is": Mutant(
        "stableopt.health.judge",
        "arrived = self._scan.parameters(new)",
        "arrived = self._scan.everything()",
        (f"{MEMBERS}::TestGoingBack",),
    ),
    "a snapshot knows parameters by their places": Mutant(
        "stableopt.snapshots.state_copy",
        "before = known.get(id(parameter))",
        "before = next((k for k in known.values() if k[0] == place), None)",
        (f"{MEMBERS}::TestWhatComesLater",),
    ),
    "the past of a norm is known by its place": Mutant(
        "stableopt.health.tensors.inspector",
        "        self.history.move(moved)\n",
        "",
        (f"{MEMBERS}::TestWhatComesLater",),
    ),
    "a fault that comes with its moments is kept": Mutant(
        "stableopt.snapshots.state_copy",
        "for place, p in new.items() if place not in without_state}",
        "for place, p in new.items()}",
        (f"{MEMBERS}::TestWhatComesLater",),
    ),
    "what does not fit is written": Mutant(
        "stableopt.snapshots.state_copy",
        "if self._shape != shape_of(optimizer):",
        "if False:",
        (f"{MEMBERS}::test_what_does_not_fit_is_refused_before_anything_is_written",),
    ),
    "a state is emptied before it can be filled": Mutant(
        "stableopt.snapshots.tree_copy",
        "self.then(partial(replace_items, target, items))",
        "replace_items(target, items)",
        (f"{MEMBERS}::test_a_restore_that_fails_half_way_has_changed_nothing",),
    ),
    "a rare batch is scaled down to nothing": Mutant(
        "stableopt.health.steps.baseline",
        "max(self.largest, -math.inf if self.first_median is None else self.first_median)",
        "self.largest",
        (f"{SPIKES}::test_what_is_usual_is_never_less_than_at_the_beginning",),
    ),
    "loss and gradient of one kind of batch are counted apart": Mutant(
        "stableopt.health.steps.spikes",
        "return () if self._is_data else tuple(findings)",
        "return tuple(findings)",
        (
            f"{SPIKES}::test_a_gradient_that_is_data_explains_its_loss",
            f"{SPIKES}::test_a_loss_that_is_data_explains_its_gradient",
        ),
    ),
    "weights that were loaded are a jump": Mutant(
        "stableopt.snapshots.buffers",
        "        self.loads += 1",
        "        pass",
        (f"{MEMBERS}::test_weights_that_are_loaded_are_no_jump",),
    ),
    "moments that begin anew have vanished": Mutant(
        "stableopt.health.tensors.vanished",
        "return step is not None and float(step) <= self.call - self._known[part].call",
        "return False",
        (f"{MEMBERS}::test_moments_that_begin_anew_with_their_count_are_a_restart",),
    ),
    "a schedule forgets the groups that came later": Mutant(
        "stableopt.snapshots.tracked",
        "now.extend(known[len(now) :])",
        "pass",
        (f"{MEMBERS}::test_a_tracked_scheduler_keeps_what_it_has_for_a_late_group",),
    ),
    "moments keep the dtype of the snapshot": Mutant(
        "stableopt.snapshots.state_copy",
        "_cast(value, *cast[k]) if k in cast else value",
        "value",
        (f"{MEMBERS}::test_a_rollback_to_before_a_change_of_dtype",),
    ),
    "a closure is given by its place": Mutant(
        "stableopt.update.closures",
        "parameter.kind is inspect.Parameter.KEYWORD_ONLY",
        "False",
        (f"{CLOSURES}", "-k", "keyword"),
    ),
    "an optimizer that shares its state is not looked into": Mutant(
        "stableopt.runtime.family",
        "others = member is not optimizer and is_of_torch(member)",
        "others = member is not optimizer",
        (f"{FAMILY}::test_what_is_not_finite_in_an_optimizer_that_shares_its_state_is_named",),
    ),
    "nothing more is said of eps": Mutant(
        "stableopt.loop.decide",
        "[verdict.reason, *vanishing_eps(self._optimizer)]",
        "[verdict.reason]",
        (f"{MESSAGES}::test_it_is_said_of_what_becomes_half_later_and_where_the_run_stops",),
    ),
    # Buffers.
    "caches go back": Mutant(
        "stableopt.snapshots.buffers",
        "return known and slot.persistent",
        "return True",
        (f"{BUFFERS}::TestCaches",),
    ),
    "what few batches move goes back": Mutant(
        "stableopt.snapshots.buffers",
        "return sum(moved) >= min(MOST, max(1, len(moved)))",
        "return any(moved)",
        (f"{BUFFERS}::TestCaches",),
    ),
    "sparse and quantized buffers are compared": Mutant(
        "stableopt.runtime.storage",
        "and not (tensor.is_nested or tensor.is_quantized)",
        "",
        (f"{BUFFERS}::test_what_cannot_be_compared_is_left_alone",),
    ),
    "a cache with a NaN stays": Mutant(
        "stableopt.snapshots.buffer_slot",
        "    if bool(torch.isnan(buffer).any()):\n        return True\n",
        "",
        (f"{BUFFERS}::TestCaches", f"{BUFFERS}::TestWhatTheUserChanges"),
    ),
    "a mask of infinities is damage": Mutant(
        "stableopt.snapshots.buffer_slot",
        "sizes = buffer.abs() if moves else unmasked(buffer).abs()",
        "sizes = buffer.abs()",
        (f"{BUFFERS}::TestCaches", f"{BUFFERS}::TestWhatTheUserChanges"),
    ),
    "expanded buffers are written to as they are": Mutant(
        "stableopt.runtime.storage",
        "if stride == 0 and size > 1:",
        "if False:",
        (f"{BUFFERS}::test_many_elements_in_one_place", STORAGE),
    ),
    "nobody hears a forward pass": Mutant(
        "stableopt.snapshots.forward_hooks",
        "            listener.before_forward()",
        "            pass",
        (f"{BUFFERS}::TestWhatTheUserChanges",),
    ),
    "calibrating is a batch": Mutant(
        "stableopt.snapshots.forward_hooks",
        "if listener and torch.is_grad_enabled()",
        "if listener",
        (f"{BUFFERS}::TestWhatTheUserChanges",),
    ),
    "a checkpoint that is computed again begins a batch": Mutant(
        "stableopt.snapshots.forward_hooks",
        " and torch._C._current_graph_task_id() == -1",
        "",
        (f"{BUFFERS}::TestHooks",),
    ),
    "nobody hears what is loaded": Mutant(
        "stableopt.snapshots.forward_hooks",
        "            listener.loaded(module)",
        "            pass",
        (f"{BUFFERS}::TestWhatTheUserChanges",),
    ),
    "a switch goes back with the weights": Mutant(
        "stableopt.snapshots.buffers",
        "return known or (of_batch and self._forward and slot.persistent and flag)",
        "return True",
        (f"{BUFFERS}::TestWhatTheUserChanges",),
    ),
    "a copy of a model needs this to be read": Mutant(
        "stableopt.snapshots.forward_hooks",
        'return getattr, (nullcontext(), "__exit__")',
        "return type(self), ()",
        (f"{BUFFERS}::TestHooks",),
    ),
    # Tensors without values.
    "meta tensors have values": Mutant(
        "stableopt.runtime.storage",
        "        if tensor.is_meta:\n            return False\n",
        "",
        (STORAGE, "-k", "have_none or comes_and_goes"),
    ),
    "fake tensors have values": Mutant(
        "stableopt.runtime.storage",
        "or is_fake(tensor))",
        ")",
        (STORAGE,),
    ),
    # Closures.
    "who can do without a closure gets none": Mutant(
        "stableopt.update.closures",
        "return requires_closure(optimizer) or not steps_like_torch(optimizer)",
        "return requires_closure(optimizer)",
        (f"{CLOSURES}::test_it_is_what_the_optimizer_does", "-k", "SAM"),
    ),
    "what moves on .data has not moved": Mutant(
        "stableopt.update.closures",
        "return all(map(torch.equal, self._values, self._sample()))",
        "return True",
        (f"{CLOSURES}::test_it_is_what_the_optimizer_does", "-k", "data"),
    ),
    "an evaluation at another point is not undone": Mutant(
        "stableopt.loop.take",
        "self.evaluates_again |= closure.evaluated",
        "pass",
        (f"{CLOSURES}::test_a_bad_evaluation_at_another_point_is_undone",),
    ),
    # State beside ``.state``.
    "what an optimizer holds is none of it": Mutant(
        "stableopt.runtime.family",
        "waiting.extend(each for each in _leaves(value) if isinstance(each, Optimizer))",
        "pass",
        (f"{FAMILY}::test_a_rollback_brings_everything_back", "-k", "nested or several"),
    ),
    "attributes stay": Mutant(
        "stableopt.snapshots.state_copy",
        "beside = {} if only else attributes(member, trained)",
        "beside = {}",
        (f"{FAMILY}::test_a_rollback_brings_everything_back", "-k", "attributes or flat"),
    ),
    "attributes are not scanned": Mutant(
        "stableopt.health.tensors.scan",
        '            inspection.add(Label("state", name), tensor)',
        "            pass",
        (f"{FAMILY}::test_what_is_not_finite_is_named", "-k", "attributes or flat"),
    ),
    "what a user sets goes back": Mutant(
        "stableopt.snapshots.state_copy",
        "if name in numbers or not isinstance(value, (int, float)):",
        "if True:",
        (f"{FAMILY}::test_numbers_that_the_optimizer_counts_go_back_and_others_stay",),
    ),
    "nothing is said of what cannot be seen": Mutant(
        "stableopt.runtime.family",
        "if not isinstance(leaf, (Tensor, Optimizer)) and _has_tensors(leaf, trained):",
        "if False:",
        (f"{FAMILY}::test_what_cannot_be_looked_into_is_said_once",),
    ),
    # What is deleted is freed.
    "a loop holds itself": Mutant(
        "stableopt.loop.record",
        "        self.ledger = Ledger()\n",
        "        self.ledger = Ledger()\n        self._itself = self\n",
        (f"{FREED}::test_it_is_freed_at_once", "-k", "default"),
    ),
    "the end of a run keeps it alive": Mutant(
        "stableopt.optimizer.wrapper",
        "weakref.finalize(self, _close, weakref.ref(self._loop))",
        "weakref.finalize(self, self._loop.close)",
        (f"{FREED}::test_what_the_user_ties_into_a_knot_is_left_to_the_collector",),
    ),
    "what the collector finds is not closed": Mutant(
        "stableopt.optimizer.wrapper",
        "        if loop is not None:\n            loop.close()",
        "        if False:\n            loop.close()",
        (f"{FREED}::test_a_run_in_a_knot_is_closed_by_the_collector",),
    ),
    "a scheduler that is tracked keeps all alive": Mutant(
        "stableopt.snapshots.tracked",
        "        return weakref.ref(item)\n",
        "        return lambda: item\n",
        (
            f"{FREED}::test_it_is_freed_at_once",
            f"{FREED}::test_what_is_tracked_and_holds_the_optimizer_is_not_held_by_it",
            "-k",
            "default or held",
        ),
    ),
    # Where a batch ends.
    "an overflow is no end of a batch": Mutant(
        "stableopt.optimizer.wrapper",
        "        self._loop.signals.end_batch()\n        return self._loop.scaler",
        "        return self._loop.scaler",
        (f"{BATCH}::test_an_overflow_that_a_scaler_leaves_out",),
    ),
    "gradients that are reset are no end of a batch": Mutant(
        "stableopt.sensors.signals",
        "            self._look_for_reset(param_groups)\n",
        "            pass\n",
        (f"{BATCH}::test_a_batch_that_the_loop_leaves_out",),
    ),
    "every gradient begins a batch": Mutant(
        "stableopt.sensors.signals",
        "if gradient is None or parameter.grad is not gradient:",
        "if True:",
        (f"{BATCH}::test_micro_batches_belong_together",),
    ),
    # What is said.
    "nobody points outside of the model": Mutant(
        "stableopt.guard.policy",
        "if not self.attempts or any(f.scope is not Scope.BATCH for f in findings):",
        "if True:",
        (MESSAGES,),
    ),
    "an eps of zero is not said": Mutant(
        "stableopt.health.advice",
        "if lost and (eps, dtype) not in seen:",
        "if False:",
        (MESSAGES,),
    ),
    "trackers name the wrapper": Mutant(
        "stableopt.optimizer.wrapper",
        "self.__class__ = _class_like(type(self), type(self.optimizer))",
        "pass",
        ("tests/integrations/test_lightning.py", "-k", "monitor"),
    ),
    "an optimizer is logged twice": Mutant(
        "stableopt.optimizer.wrapper",
        'return other is self or other is self.__dict__.get("optimizer", self)',
        "return other is self",
        ("tests/integrations/test_lightning.py", "-k", "monitor"),
    ),
    "a resumed run measures under other names": Mutant(
        "stableopt.health.spectra.sensing",
        "return renamed(state, self._targets.places)",
        "return state",
        ("tests/sensors/test_checkpoint.py",),
    ),
}
