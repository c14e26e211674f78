"""Mutants of the compiled update."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

TRACED = "tests/contract/test_traced.py"
UPDATE = "tests/contract/test_compiled_update.py"

COMPILED_MUTANTS = {
    "a graph is bound to the learning rate": Mutant(
        "stableopt.compiled",
        'group["lr"] = rate.fill_(lr)',
        "pass",
        (f"{UPDATE}::test_one_graph_and_no_recompilation",),
    ),
    "the learning rate stays a tensor": Mutant(
        "stableopt.compiled",
        'group["lr"] = lr\n',
        "pass\n",
        (f"{UPDATE}::test_one_graph_and_no_recompilation",),
    ),
    "optimizers share a limit": Mutant(
        "stableopt.compiled",
        'update.__code__.replace(co_name=f"update_{type(optimizer).__name__}")',
        "update.__code__",
        (f"{UPDATE}::test_twenty_optimizers_in_one_process",),
    ),
    "hooks are left out": Mutant(
        "stableopt.compiled",
        "Optimizer.profile_hook_step(compiled)",
        "compiled",
        (f"{UPDATE}::test_hooks_are_called_as_ever",),
    ),
    "what changes is traced for ever": Mutant(
        "stableopt.compiled",
        "if len(self._kinds) > MOST_KINDS:",
        "if False:",
        (f"{UPDATE}::test_options_that_change_at_every_step_are_not_traced_for_ever",),
    ),
    "schedulers are not told": Mutant(
        "stableopt.compiled",
        "self._optimizer._opt_called = True",
        "pass",
        (f"{UPDATE}::test_a_scheduler_on_the_inner_optimizer_is_content",),
    ),
    "a fallback in silence": Mutant(
        "stableopt.compiled",
        "        self.reason = reason\n",
        "",
        (f"{UPDATE}::test_what_cannot_be_traced_says_so_once_and_skips",),
    ),
    "a graph takes every step": Mutant(
        "stableopt.traced",
        "good = sound & ~self._veto",
        "good = torch.ones_like(sound)",
        (f"{TRACED}::test_no_break_no_recompilation_and_it_skips",),
    ),
    "a graph does not hear of the loss": Mutant(
        "stableopt.traced",
        "sound = finite & torch.isfinite(self._loss)",
        "sound = finite",
        (f"{TRACED}::test_a_loss_that_is_not_finite_counts_once_it_is_told",),
    ),
    "a graph counts steps that it left out": Mutant(
        "stableopt.traced",
        "for i, tensors in enumerate((lists[0], *lists[2:])):",
        "for i, tensors in enumerate((lists[0],)):",
        (f"{TRACED}::test_it_is_what_torch_compiles",),
    ),
    "a first momentum keeps what is bad": Mutant(
        "stableopt.traced",
        "for parameter in begun:",
        "for parameter in begun[:0]:",
        (f"{TRACED}::test_no_break_no_recompilation_and_it_skips",),
    ),
    "a graph does not back off": Mutant(
        "stableopt.settlement",
        "loop.traced.scale.fill_(loop.lr_scale)",
        "pass",
        (f"{TRACED}::test_what_recurs_lowers_the_learning_rate_inside_the_graph_and_then_ends",),
    ),
    "what a graph did is not told": Mutant(
        "stableopt.optimizer",
        "        self._loop.settle()\n        return tuple(self._loop.ledger.entries)",
        "        return tuple(self._loop.ledger.entries)",
        (f"{TRACED}::test_what_a_graph_did_is_in_the_ledger",),
    ),
    "gradients of weights that are gone are used": Mutant(
        "stableopt.settlement",
        "self._loop.traced.veto()",
        "pass",
        (f"{TRACED}::test_weights_that_are_lost_go_back_at_the_next_call",),
    ),
    "steps that nobody saw verify": Mutant(
        "stableopt.settlement",
        "whole=counts.calls > 1",
        "whole=False",
        (f"{TRACED}::test_what_nobody_saw_is_looked_at_as_a_whole",),
    ),
    "a rollback breaks the backward pass": Mutant(
        "stableopt.runtime.state_copy",
        "[places[place].data for place in self._places]",
        "[places[place].detach() for place in self._places]",
        (f"{TRACED}::test_weights_that_are_lost_go_back_at_the_next_call",),
    ),
}
