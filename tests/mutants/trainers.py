"""Mutants of what sits in trainers and in studies."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

HF = "tests/integrations/test_transformers.py"
LIGHTNING = "tests/integrations/test_lightning.py"
OPTUNA = "tests/integrations/test_optuna.py"
STUDY = "tests/integrations/test_optuna_study.py"

TRAINER_MUTANTS = {
    "the optimizer is wrapped after the checkpoint was loaded": Mutant(
        "stableopt.integrations.transformers",
        "        trainer.optimizer = self._wrapped(trainer.optimizer, trainer.model)\n",
        "        begin = self.on_train_begin\n\n"
        "        def late(args, state, control, optimizer=None, **others):\n"
        "            optimizer.optimizer = self._wrapped(optimizer.optimizer, trainer.model)\n"
        "            begin(args, state, control, optimizer=optimizer, **others)\n\n"
        "        self.on_train_begin = late\n",
        (f"{HF}::TestHealthy::test_it_resumes_bit_for_bit",),
    ),
    "what is wrapped already is wrapped again": Mutant(
        "stableopt.integrations.transformers",
        "if known is not None and known is not self._made:",
        "if False:",
        (f"{HF}::TestRoutes::test_optimizers",),
    ),
    "the filtered loss is observed": Mutant(
        "stableopt.integrations.transformers",
        "part = loss.detach().float()",
        "part = loss.detach().float().nan_to_num()",
        (f"{HF}::TestFaults::test_nan_weights_are_recorded_where_the_trainer_logs_zero",),
    ),
    "the last micro-batch is the step": Mutant(
        "stableopt.integrations.transformers",
        "self._loss = part if self._loss is None else self._loss + part",
        "self._loss = part",
        (f"{HF}::TestFaults::test_the_loss_of_a_step_is_what_the_trainer_says_it_is",),
    ),
    "a second training goes on with the first snapshots": Mutant(
        "stableopt.integrations.transformers",
        "if known is not None and not self._ended:",
        "if known is not None:",
        (f"{HF}::TestHealthy::test_weights_that_were_exchanged_between_trainings_are_no_fault",),
    ),
    "any trainer on the stack will do": Mutant(
        "stableopt.integrations.transformers",
        "if callback._is_among(owner):",
        'if "trainer" in str(type(owner)).lower() and hasattr(owner, "teacher"):',
        (f"{HF}::TestRoutes::test_a_trainer_inside_of_a_trainer",),
    ),
    "what diverges ends no callback": Mutant(
        "stableopt.integrations.transformers",
        "handler.on_train_end(trainer.args, trainer.state, trainer.control)",
        "pass",
        (f"{HF}::TestFaults::test_divergence_leaves_train_after_on_train_end_of_every_callback",),
    ),
    "a rollback restores the schedule": Mutant(
        "stableopt.integrations.trainers",
        "scheduler if self._rewind_schedule else None",
        "scheduler",
        (f"{HF}::TestFaults::test_the_schedule_belongs_to_the_clock_of_the_trainer",),
    ),
    "the optimizer is wrapped when Lightning has loaded it": Mutant(
        "stableopt.integrations.lightning",
        "def on_fit_start(",
        "def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):\n"
        "        if not self._opts:\n"
        "            self._late(trainer, pl_module)\n\n"
        "    def _late(",
        (f"{LIGHTNING}::TestHealthy::test_it_resumes_bit_for_bit",),
    ),
    "the loss is divided by the micro-batches": Mutant(
        "stableopt.integrations.lightning",
        "loss = loss * trainer.accumulate_grad_batches",
        "pass",
        (f"{LIGHTNING}::TestLoss::test_automatic",),
    ),
    "the loss is scaled": Mutant(
        "stableopt.integrations.lightning",
        "loss = loss / scaler.get_scale()",
        "pass",
        (f"{LIGHTNING}::TestLoss::test_automatic",),
    ),
    "micro-batches that took no step are logged": Mutant(
        "stableopt.integrations.lightning",
        "due = stepped and trainer",
        "due = trainer",
        (f"{LIGHTNING}::TestLogs::test_the_loggers_get_ours",),
    ),
    "divergence ends the study": Mutant(
        "stableopt.integrations.optuna",
        "raise optuna.TrialPruned(str(error)) from error",
        "raise",
        (f"{OPTUNA}::TestPruning::test_divergence_prunes_the_trial",),
    ),
    "a rollback by hand is an instability": Mutant(
        "stableopt.integrations.optuna",
        "if event.action is action and not _by_hand(event)]",
        "if event.action is action]",
        (f"{OPTUNA}::TestPruning::test_what_is_asked_for_by_hand_is_no_instability",),
    ),
    "the transforms of a trial are all there are": Mutant(
        "stableopt.integrations.trainers",
        'if "transforms" in chosen:',
        "if False:",
        (f"{HF}::TestRoutes::test_what_a_trial_chooses_comes_on_top",),
    ),
    "a callback that was removed keeps the optimizer": Mutant(
        "stableopt.integrations.transformers",
        "trainer.optimizer = _unwrapped(trainer.optimizer)",
        "pass",
        (f"{HF}::TestRoutes::test_a_callback_that_was_removed_after_a_training",),
    ),
    "half a record is written on": Mutant(
        "stableopt.integrations.optuna_study",
        'raise ValueError("the last line is incomplete")',
        "pass",
        (f"{STUDY}::TestJournal::test_a_record_without_its_line_end_is_an_error",),
    ),
    "what was declined is asked for": Mutant(
        "stableopt.loop.restore",
        "if lacks and n not in self.tracked.declined]",
        "if lacks]",
        ("tests/contract/test_tracked.py::test_what_is_declined_is_not_asked_for",),
    ),
}
