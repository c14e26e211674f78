"""Mutants of the compiled update."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

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
        'group["lr"] = lr',
        "pass",
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
}
