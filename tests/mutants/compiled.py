"""Mutants of the compiled update."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

TRACED = "tests/contract/test_traced.py"
LAGGED = "tests/contract/test_lagged.py"
UPDATE = "tests/contract/test_compiled_update.py"

COMPILED_MUTANTS = {
    "a graph is bound to the learning rate": Mutant(
        "stableopt.update.compiled",
        'group["lr"] = rate.fill_(lr)',
        "pass",
        (f"{UPDATE}::test_one_graph_and_no_recompilation",),
    ),
    "the learning rate stays a tensor": Mutant(
        "stableopt.update.compiled",
        'group["lr"] = lr\n',
        "pass\n",
        (f"{UPDATE}::test_one_graph_and_no_recompilation",),
    ),
    "optimizers share a limit": Mutant(
        "stableopt.update.compiled",
        'update.__code__.replace(co_name=f"update_{type(optimizer).__name__}")',
        "update.__code__",
        (f"{UPDATE}::test_twenty_optimizers_in_one_process",),
    ),
    "hooks are left out": Mutant(
        "stableopt.update.compiled",
        "Optimizer.profile_hook_step(compiled)",
        "compiled",
        (f"{UPDATE}::test_hooks_are_called_as_ever",),
    ),
    "what changes is traced for ever": Mutant(
        "stableopt.update.compiled",
        "if len(self._kinds) > MOST_KINDS:",
        "if False:",
        (f"{UPDATE}::test_options_that_change_at_every_step_are_not_traced_for_ever",),
    ),
    "schedulers are not told": Mutant(
        "stableopt.update.compiled",
        "self._optimizer._opt_called = True",
        "pass",
        (f"{UPDATE}::test_a_scheduler_on_the_inner_optimizer_is_content",),
    ),
    "a fallback in silence": Mutant(
        "stableopt.update.compiled",
        "        self.reason = reason\n",
        "",
        (f"{UPDATE}::test_what_cannot_be_traced_says_so_once_and_skips",),
    ),
    "what a graph left half done is done again": Mutant(
        "stableopt.update.compiled",
        "if _comes_from(update, error):",
        "if False:",
        (f"{UPDATE}::test_what_a_graph_raises_while_it_runs_is_raised",),
    ),
    "only torch's own errors are known": Mutant(
        "stableopt.update.compiled",
        "except Exception as error:",
        "except torch._dynamo.exc.TorchDynamoException as error:",
        (f"{UPDATE}::test_whatever_a_compiler_raises_the_update_is_taken_once", "-k", "index"),
    ),
    "what a backend skips runs in the middle of it": Mutant(
        "stableopt.update.compiled",
        "if not torch.compiler.is_dynamo_compiling():",
        "if False:",
        (f"{UPDATE}::test_whatever_a_compiler_raises_the_update_is_taken_once", "-k", "skipped"),
    ),
    "a step that could not be compiled is counted twice": Mutant(
        "stableopt.update.compiled",
        "if self._inside is not None and self._inside.called:",
        "if self.leaves_out and self._inside is not None and self._inside.called:",
        (f"{LAGGED}::test_a_bad_step_that_could_not_be_compiled_is_left_out", "-k", "gradients"),
    ),
    "a step that could not be compiled counts as taken": Mutant(
        "stableopt.loop.step",
        "fate = sound if leaves_out else None",
        "fate = sound if self.update.leaves_out else None",
        (f"{LAGGED}::test_a_bad_step_that_could_not_be_compiled_is_left_out", "-k", "gradients"),
    ),
    "without slots a bad step is taken once nothing is compiled": Mutant(
        "stableopt.loop.step",
        "return self.steps > 0 and (restores or self.update.leaves_out)",
        "return self.steps > 0",
        (f"{LAGGED}::test_a_bad_step_that_could_not_be_compiled_is_left_out", "-k", "AdamW-0"),
    ),
    "what a collector closes is compiled": Mutant(
        "stableopt.loop.step",
        "disable(self._close)()",
        "self._close()",
        (f"{TRACED}::test_a_collector_may_close_it_while_somebodys_graph_runs",),
    ),
    "another thread's compiler has steps run unjudged": Mutant(
        "stableopt.optimizer.wrapper",
        "compiling = torch.compiler.is_dynamo_compiling()",
        "compiling = torch.compiler.is_compiling()",
        (f"{TRACED}::test_a_step_while_another_thread_compiles_is_one_as_ever",),
    ),
    "a graph takes every step": Mutant(
        "stableopt.update.traced",
        "good = sound & ~self._veto",
        "good = torch.ones_like(sound)",
        (f"{TRACED}::test_no_break_no_recompilation_and_it_skips",),
    ),
    "a graph does not hear of the loss": Mutant(
        "stableopt.update.traced",
        "sound = torch.isfinite(self._loss)",
        "sound = torch.ones_like(self._loss, dtype=torch.bool)",
        (f"{TRACED}::test_a_loss_that_is_not_finite_counts_once_it_is_told",),
    ),
    "a graph counts steps that it left out": Mutant(
        "stableopt.update.traced",
        "for i, tensors in enumerate((lists[0], *lists[2:])):",
        "for i, tensors in enumerate((lists[0],)):",
        (f"{TRACED}::test_it_is_what_torch_compiles",),
    ),
    "a first momentum keeps what is bad": Mutant(
        "stableopt.update.traced",
        "for parameter in begun:",
        "for parameter in begun[:0]:",
        (f"{TRACED}::test_no_break_no_recompilation_and_it_skips",),
    ),
    "a graph does not back off": Mutant(
        "stableopt.loop.step",
        "self.traced.scale.fill_(self.lr_scale)",
        "pass",
        (f"{TRACED}::test_what_recurs_lowers_the_learning_rate_inside_the_graph_and_then_ends",),
    ),
    "what a graph did is not told": Mutant(
        "stableopt.optimizer.stable",
        "        self._loop.settle()\n        return tuple(self._loop.recorder.ledger.entries)",
        "        return tuple(self._loop.recorder.ledger.entries)",
        (f"{TRACED}::test_what_a_graph_did_is_in_the_ledger",),
    ),
    "gradients of weights that are gone are used": Mutant(
        "stableopt.loop.in_flight",
        "self._traced.veto()",
        "pass",
        (f"{TRACED}::test_weights_that_are_lost_go_back_at_the_next_call",),
    ),
    "steps that nobody saw verify": Mutant(
        "stableopt.loop.in_flight",
        "counts.calls > 1",
        "False",
        (f"{TRACED}::test_what_nobody_saw_is_looked_at_as_a_whole",),
    ),
    "a rollback breaks the backward pass": Mutant(
        "stableopt.snapshots.state_copy",
        "local(places[place]).data",
        "places[place].detach()",
        (f"{TRACED}::test_weights_that_are_lost_go_back_at_the_next_call",),
    ),
    "what a batch has spoilt is taken over": Mutant(
        "stableopt.update.traced",
        "copy.copy_(torch.where(good.to(live.device), live, copy))",
        "copy.copy_(live)",
        (f"{TRACED}::test_what_a_batch_did_to_running_statistics_is_undone_at_once",),
    ),
    "a compiled step comes before one that was pending": Mutant(
        "stableopt.loop.in_flight",
        "        if self._sending is not None:\n",
        "        if self._sending is not None and not self._traced.called:\n",
        (f"{LAGGED}::test_steps_that_are_compiled_from_outside_keep_their_order",),
    ),
    "a copy of a fused optimizer leaves nothing out": Mutant(
        "stableopt.update.fused",
        "return type(optimizer) in _OBEY and all(",
        'return hasattr(optimizer, "_step_supports_amp_scaling") and all(',
        (f"{LAGGED}::test_copies_know_of_every_step",),
    ),
    "what a graph has ruined is where training begins": Mutant(
        "stableopt.loop.step",
        "if restorer.begun or not lost:",
        "if True:",
        (f"{TRACED}::test_weights_that_were_lost_while_nobody_looked_are_no_beginning",),
    ),
    "the device is not told of a bad step": Mutant(
        "stableopt.update.eager",
        "with found_inf(self._optimizer, unless):",
        "with found_inf(self._optimizer, unless & False):",
        (f"{LAGGED}::test_a_bad_batch_never_happened", "-k", "AdamW"),
    ),
    "a graph is not told of a bad step": Mutant(
        "stableopt.update.compiled",
        "self._inside.veto(unless)",
        "pass",
        (f"{LAGGED}::test_a_bad_loss_leaves_a_compiled_step_out",),
    ),
    "what was taken counts as left out": Mutant(
        "stableopt.loop.decide",
        "if attempt.fate is Fate.TAKEN and (verdict.action is Action.SKIP or verdict.tames):",
        "if False:",
        (f"{LAGGED}::test_a_spike_that_is_to_be_skipped_is_told_too_late",),
    ),
    "a lagged step uses gradients of weights that are gone": Mutant(
        "stableopt.loop.step",
        "if self.in_flight.rolled_back:  # by settle()",
        "if False:  # by settle()",
        (f"{LAGGED}::test_a_lost_weight_goes_back_one_call_later", "-k", "AdamW"),
    ),
    "the step that creates the state is not judged first": Mutant(
        "stableopt.loop.step",
        "return self.steps > 0 and (restores or self.update.leaves_out)",
        "return restores or self.update.leaves_out",
        (f"{LAGGED}::test_a_bad_batch_never_happened", "-k", "momentum"),
    ),
    "a lagged batch leaves its traces in buffers": Mutant(
        "stableopt.loop.step",
        "restorer.keep_buffers_if(sound)",
        "restorer.keep_buffers_if(torch.ones_like(sound))",
        (f"{LAGGED}::test_a_bad_batch_never_happened", "-k", "AdamW"),
    ),
    "what is sent is waited for": Mutant(
        "stableopt.runtime.sent",
        "self._transfers.append((some, others, transfer))",
        "self._transfers.append((some, others, transfer)), transfer.wait()",
        (f"{LAGGED}::test_nothing_is_waited_for_but_by_a_snapshot",),
    ),
    "whoever asks gets old news": Mutant(
        "stableopt.loop.step",
        "if not of_graph and not (lagged and self.in_flight):",
        "if not of_graph:",
        (f"{LAGGED}::test_whoever_asks_waits",),
    ),
    "a step is told with the rates of the next": Mutant(
        "stableopt.loop.record",
        "lr=learning_rates(self._optimizer) if attempt.lr is None else attempt.lr,",
        "lr=learning_rates(self._optimizer),",
        (f"{LAGGED}::test_the_telemetry_says_what_every_step_was_taken_with",),
    ),
}
