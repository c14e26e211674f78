"""The Trainer of transformers drives the wrapper exactly as it drives the optimizer in it."""

from __future__ import annotations

import gc
import json
import math
import pickle

import pytest
import torch

from stableopt import (
    ClipGradNorm,
    ConfigError,
    DivergenceError,
    Guard,
    JsonLines,
    StableOptimizer,
    UpdateCap,
)
from stableopt.integrations.trainers import stable_optimizer_of
from stableopt.telemetry import LifecycleEvents, read_events
from stableopt.testing import corrupt_weight
from tests.contract.bits import assert_same
from tests.contract.scenario import copied, seed_everything
from tests.integrations.worlds import Net, Regression, Tokens, finite, tiny_llama

# What transformers warns of concerns itself; what we warn of has tests of its own.
pytestmark = pytest.mark.filterwarnings("ignore")
works_with = pytest.mark.compatibility

UNSEEN = 1e9
"""A z-score that nothing reaches: the samples are few, and some are unlike the others."""


def transformers():
    import transformers

    return transformers


@pytest.fixture(autouse=True, scope="module")
def frozen():
    """Accelerate collects garbage at every training; what was imported is none."""
    transformers().Trainer  # noqa: B018 (imported when it is asked for)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def callback(**options):
    from stableopt.integrations.transformers import StableTrainerCallback

    return StableTrainerCallback(**options)


class Stabilize:
    """Options for ``stabilize``; has the wrapper of its trainer, as a callback has it."""

    def __init__(self, **options):
        self._options = options

    def apply(self, trainer):
        from stableopt.integrations.transformers import stabilize

        self._trainer = stabilize(trainer, **self._options)
        assert self._trainer is trainer

    @property
    def optimizer(self):
        return stable_optimizer_of(self._trainer.optimizer)


both_ways = pytest.mark.parametrize("way", [Stabilize, callback], ids=["stabilize", "callback"])
"""The documented line, and the callback."""


def arguments(directory, **changes):
    known = {
        "output_dir": str(directory),
        "max_steps": 8,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 1,
        "label_names": ["y"],
    }
    return transformers().TrainingArguments(**{**known, **changes})


def make(
    directory,
    *,
    wrapped=None,
    model=None,
    model_init=None,
    data=None,
    kind=None,
    callbacks=(),
    **changes,
):
    """Build a trainer; ``wrapped`` is ``Stabilize``, our callback, or ``None`` for neither."""
    seed_everything(0)
    later = wrapped if isinstance(wrapped, Stabilize) else None
    more = {}
    if "eval_strategy" in changes or model_init:
        more["eval_dataset"] = data or Regression()
    trainer = (kind or transformers().Trainer)(
        model=Net() if model is None and model_init is None else model,
        model_init=model_init,
        args=arguments(directory, **changes),
        train_dataset=data or Regression(),
        callbacks=[*callbacks, *([] if wrapped is None or later else [wrapped])],
        **more,
    )
    if later:
        later.apply(trainer)
    return trainer


def left(trainer):
    """Return what a training leaves: weights, optimizer state, schedule, and what it logged."""
    optimizer = trainer.optimizer
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    logged = [
        {k: v for k, v in entry.items() if not k.startswith("stable/") and "runtime" not in k}
        for entry in trainer.state.log_history
        if "train_runtime" not in entry
    ]
    logged = [{k: v for k, v in e.items() if "per_second" not in k} for e in logged]
    return (
        copied(trainer.model.state_dict()),
        copied(optimizer.state_dict()),
        copied(trainer.lr_scheduler.state_dict()),
        logged,
        trainer.state.global_step,
    )


def at_step(step, do):
    """Return a callback that calls ``do(optimizer, model)`` before one step."""

    class Fault(transformers().TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
            if state.global_step == step:
                do(optimizer, model)

    return Fault()


def ends():
    """Return a list, and a callback that adds to it the step at which a training ends."""
    ended = []

    class Watch(transformers().TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            ended.append(state.global_step)

    return ended, Watch()


def nan_weight(optimizer, model):
    corrupt_weight(optimizer, math.nan, model=model, name="first.weight", index=3)


def train_both(tmp_path, way, **options):
    """Train bare and wrapped; return the bare trainer, the wrapped one, and what wrapped it."""
    bare = make(tmp_path / "bare", **options)
    bare.train()
    ours = way()
    wrapped = make(tmp_path / "wrapped", wrapped=ours, **options)
    wrapped.train()
    assert ours.optimizer.summary()["steps"] > 0
    return bare, wrapped, ours


FEATURES = {
    "lr schedule": {},
    "accumulation": {"gradient_accumulation_steps": 2},
    "uneven accumulation": {"gradient_accumulation_steps": 3, "max_steps": 7},
    "clipping": {"max_grad_norm": 0.1},
    "bf16": {"bf16": True},
    "evaluation": {"eval_strategy": "steps", "eval_steps": 2},
    "other optimizers": {"optim": "adafactor"},
    "ReduceLROnPlateau": {"optim": "sgd", "lr_scheduler_type": "reduce_lr_on_plateau"}
    | {"eval_strategy": "steps", "eval_steps": 2},
}


class TestHealthy:
    """Bit for bit what the trainer does with the bare optimizer."""

    @pytest.mark.parametrize(
        "feature", [pytest.param(f, marks=works_with("HF Trainer", f)) for f in FEATURES]
    )
    @both_ways
    def test_it_trains_bit_for_bit_like_the_bare_optimizer(self, tmp_path, feature, way):
        bare, wrapped, ours = train_both(tmp_path, way, **FEATURES[feature])
        assert_same(left(wrapped), left(bare))
        assert ours.optimizer.ledger == ()
        assert isinstance(wrapped.optimizer.optimizer, StableOptimizer)

    @works_with("HF Trainer", "gradient checkpointing")
    def test_gradient_checkpointing(self, tmp_path):
        results = []
        for wrapped in (None, callback()):
            trainer = make(
                tmp_path,
                wrapped=wrapped,
                model=tiny_llama(),
                data=Tokens(),
                max_steps=4,
                gradient_accumulation_steps=2,
                gradient_checkpointing=True,
                learning_rate=1e-3,
            )
            trainer.train()
            results.append(left(trainer))
        assert_same(results[1], results[0])

    @works_with("HF Trainer", "load_best_model_at_end")
    @both_ways
    def test_the_best_model_is_loaded_and_training_goes_on_from_it(self, tmp_path, way):
        options = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
        options |= {"save_strategy": "steps", "save_steps": 2, "learning_rate": 0.3}
        bare, wrapped, ours = train_both(tmp_path, way, **options)
        best = [trainer.state.best_global_step for trainer in (bare, wrapped)]
        assert best[0] == best[1] < 8  # what was trained last is not what is loaded
        assert_same(left(wrapped), left(bare))
        for trainer in (bare, wrapped):
            trainer.train()
        assert_same(left(wrapped), left(bare))
        assert ours.optimizer.ledger == ()  # other weights are no jump: there are new snapshots
        assert ours.optimizer.summary()["steps"] == 16

    @both_ways
    def test_weights_that_were_exchanged_between_trainings_are_no_fault(self, tmp_path, way):
        ours = way(guard=Guard(loss_spike=None, gradient_spike=None))
        trainer = make(tmp_path, wrapped=ours, max_steps=64, learning_rate=1e-4)
        trainer.train()
        with torch.no_grad():
            trainer.model.first.weight.mul_(100)
        trainer.train()
        assert not any(event.intervened for event in ours.optimizer.ledger)
        assert trainer.model.first.weight.abs().max() > 10

    @works_with("HF Trainer", "resume")
    @pytest.mark.parametrize("accumulate", [1, 2])
    @both_ways
    def test_it_resumes_bit_for_bit(self, tmp_path, accumulate, way):
        options = {"save_strategy": "steps", "save_steps": 4}
        options |= {"gradient_accumulation_steps": accumulate}
        whole = make(tmp_path, wrapped=way(), **options)
        whole.train()
        ours = way()
        resumed = make(tmp_path, wrapped=ours, **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
        assert_same(left(resumed)[:3], left(whole)[:3])
        summary = ours.optimizer.summary()
        assert (summary["steps"], summary["calls"]) == (8, 8)  # ours was loaded as well

    @both_ways
    def test_what_the_wrapper_remembers_is_in_the_checkpoint(self, tmp_path, way):
        """A wrapper that came after the load would have new baselines."""
        options = {"save_strategy": "steps", "save_steps": 4}
        make(tmp_path, wrapped=way(), **options).train()
        seen = {}

        def remember(optimizer, model):
            seen["baselines"] = optimizer.state_dict()["stableopt"]["spikes"]

        saved = torch.load(tmp_path / "checkpoint-4" / "optimizer.pt", weights_only=True)
        resumed = make(tmp_path, wrapped=way(), callbacks=[at_step(4, remember)], **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
        assert_same(seen["baselines"], saved["stableopt"]["spikes"])

    @both_ways
    def test_bare_and_wrapped_checkpoints_load_into_each_other(self, tmp_path, way):
        options = {"save_strategy": "steps", "save_steps": 4}
        results = []
        for directory, first, then in (
            (tmp_path / "a", None, way()),
            (tmp_path / "b", way(), None),
        ):
            make(directory, wrapped=first, **options).train()
            trainer = make(directory, wrapped=then, **options)
            trainer.train(resume_from_checkpoint=str(directory / "checkpoint-4"))
            results.append(left(trainer))
        assert_same(results[0][:3], results[1][:3])


class TestRoutes:
    """However the trainer comes by its optimizer, it is wrapped once."""

    def bare(self, tmp_path):
        trainer = make(tmp_path)
        trainer.train()
        return left(trainer)

    def same_options(self):
        return {"lr": 1e-2, "weight_decay": 0.0, "fused": True}

    @works_with("HF Trainer", "optimizers=")
    @pytest.mark.parametrize("with_callback", [False, True])
    def test_optimizers(self, tmp_path, with_callback):
        seed_everything(0)
        model = Net()
        opt = StableOptimizer(torch.optim.AdamW(model.parameters(), **self.same_options()))
        ours = callback()
        trainer = transformers().Trainer(
            model=model,
            args=arguments(tmp_path),
            train_dataset=Regression(),
            optimizers=(opt, None),
            callbacks=[ours] if with_callback else [],
        )
        trainer.train()
        assert_same(left(trainer)[0], self.bare(tmp_path)[0])
        assert trainer.optimizer.optimizer is opt
        assert opt.summary()["steps"] == 8
        assert (opt.summary()["last_loss"] is not None) is with_callback
        if with_callback:
            assert ours.optimizer is opt

    @works_with("HF Trainer", "optimizers=")
    def test_optimizers_and_schedule_resume_bit_for_bit(self, tmp_path):
        def run(wraps, resume=None, **changes):
            seed_everything(0)
            model = Net()
            opt = inner = torch.optim.AdamW(model.parameters(), lr=1e-2)
            if wraps:
                opt = StableOptimizer(inner, model=model)
            schedule = transformers().get_cosine_schedule_with_warmup(opt, 2, 12)
            trainer = transformers().Trainer(
                model=model,
                args=arguments(tmp_path, save_strategy="steps", save_steps=4, **changes),
                train_dataset=Regression(),
                optimizers=(opt, schedule),
            )
            trainer.train(resume_from_checkpoint=resume)
            return left(trainer)

        bare = run(False, gradient_accumulation_steps=2, max_grad_norm=0.5)
        whole = run(True, gradient_accumulation_steps=2, max_grad_norm=0.5)
        assert_same(whole, bare)
        checkpoint = str(tmp_path / "checkpoint-4")
        resumed = run(True, checkpoint, gradient_accumulation_steps=2, max_grad_norm=0.5)
        assert_same(resumed[:3], whole[:3])

    @works_with("HF Trainer", "optimizers=")
    def test_a_bare_optimizer_that_is_given_is_wrapped(self, tmp_path):
        seed_everything(0)
        model, ours = Net(), callback()
        inner = torch.optim.AdamW(model.parameters(), **self.same_options())
        trainer = transformers().Trainer(
            model=model,
            args=arguments(tmp_path),
            train_dataset=Regression(),
            optimizers=(inner, None),
            callbacks=[ours],
        )
        trainer.train()
        assert ours.optimizer.optimizer is inner
        assert_same(left(trainer)[0], self.bare(tmp_path)[0])

    @works_with("HF Trainer", "create_optimizer")
    @both_ways
    def test_create_optimizer(self, tmp_path, way):
        made = []

        class Custom(transformers().Trainer):
            def create_optimizer(self, model=None):
                self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
                made.append(self.optimizer)
                return self.optimizer

        ours = way()
        make(tmp_path, wrapped=ours, kind=Custom).train()
        assert ours.optimizer.optimizer is made[0]
        assert ours.optimizer.summary()["steps"] == 8

    @works_with("HF Trainer", "optimizer_cls_and_kwargs")
    def test_optimizer_cls_and_kwargs(self, tmp_path):
        seed_everything(0)
        ours = callback()
        trainer = transformers().Trainer(
            model=Net(),
            args=arguments(tmp_path),
            train_dataset=Regression(),
            optimizer_cls_and_kwargs=(torch.optim.RMSprop, {"lr": 1e-3}),
            callbacks=[ours],
        )
        trainer.train()
        assert type(ours.optimizer.optimizer) is torch.optim.RMSprop
        assert ours.optimizer.summary()["steps"] == 8

    @works_with("HF Trainer", "hyperparameter_search")
    @both_ways
    def test_hyperparameter_search(self, tmp_path, way):
        import optuna

        from stableopt.integrations.optuna import suggest_stability

        storage = optuna.storages.InMemoryStorage()
        seen = []

        def options(trial):
            chosen = suggest_stability(trial, search="update_cap")
            seen.append(chosen["transforms"])
            return chosen

        ours = way(per_trial=options, telemetry=tmp_path / "runs")
        trainer = make(tmp_path, wrapped=ours, model_init=Net, max_steps=3)
        best = trainer.hyperparameter_search(
            hp_space=lambda trial: {"learning_rate": trial.suggest_float("lr", 1e-3, 1e-2)},
            backend="optuna",
            n_trials=4,
            storage=storage,
            study_name="search",
            sampler=optuna.samplers.RandomSampler(seed=0),
        )
        trials = optuna.load_study(study_name="search", storage=storage).trials
        assert best.run_id in {str(trial.number) for trial in trials}
        assert [trial.user_attrs["stable/steps"] for trial in trials] == [3] * 4
        assert {trial.user_attrs["stable/integrity"] for trial in trials} == {"OK"}
        capped = [trial.params["stable/update_cap"] for trial in trials]
        assert [bool(transforms) for transforms in seen] == capped
        assert len(list((tmp_path / "runs").glob("telemetry*.jsonl"))) == 4

    @both_ways
    def test_what_a_trial_chooses_comes_on_top(self, tmp_path, way):
        """Only what it moves is replaced; a guard that it does not give stays."""
        from optuna.trial import FixedTrial

        ours = way(
            per_trial=lambda trial: {"transforms": iter(chosen), "guard": None},
            transforms=(transform for transform in [ClipGradNorm(1.0), UpdateCap(0.1)]),
            guard=Guard(every=7),
        )
        trainer = make(tmp_path, wrapped=ours, max_steps=2, max_grad_norm=0.0)
        for number in range(2):
            chosen = [UpdateCap(0.05 + number)]
            trainer.train(trial=FixedTrial({}))
            summary = ours.optimizer.summary()
            found = [transform["transform"] for transform in summary["transforms"]]
            assert found == [repr(ClipGradNorm(1.0)), repr(chosen[0])]
            assert summary["guard"]["every"] == 7

    def test_two_guards_for_a_trial(self, tmp_path):
        from functools import partial

        from optuna.trial import FixedTrial

        from stableopt.integrations.optuna import suggest_stability

        trial = FixedTrial({"stable/spike": 9.0, "stable/lr_backoff": 0.5})
        suggested = partial(suggest_stability, search="guard")
        both = callback(per_trial=suggested, guard=Guard(every=7))
        with pytest.raises(ConfigError, match=r"guard=Guard\(.*every=7.* beside per_trial="):
            make(tmp_path, wrapped=both).train(trial=trial)
        ours = callback(per_trial=partial(suggested, guard=Guard(every=7)))
        make(tmp_path, wrapped=ours, max_steps=2).train(trial=trial)
        guard = ours.optimizer.summary()["guard"]
        assert (guard["every"], guard["loss_spike"], guard["gradient_spike"]) == (7, 9.0, 9.0)

    @works_with("HF Trainer", "hyperparameter_search")
    def test_a_trial_that_diverges_is_pruned_and_the_search_goes_on(self, tmp_path):
        import optuna

        storage = optuna.storages.InMemoryStorage()
        ours = callback(guard=Guard(slots=0, max_skips=0))
        ended, watch = ends()
        trainer = transformers().Trainer(
            model_init=Net,
            args=arguments(tmp_path, max_steps=8),
            train_dataset=Regression(bad=5),
            eval_dataset=Regression(),
            callbacks=[ours, watch],
        )
        with pytest.raises(ValueError, match="No trials are completed"):
            trainer.hyperparameter_search(
                hp_space=lambda trial: {"learning_rate": trial.suggest_float("lr", 1e-3, 1e-2)},
                backend="optuna",
                n_trials=2,
                storage=storage,
                study_name="search",
            )
        trials = optuna.load_study(study_name="search", storage=storage).trials
        assert [trial.state.name for trial in trials] == ["PRUNED", "PRUNED"]
        assert {trial.user_attrs["stable/integrity"] for trial in trials} == {"COMPROMISED"}
        assert len(ended) == 2

    @both_ways
    def test_prune_is_asked_after_each_step_of_a_trial(self, tmp_path, way):
        import optuna

        from stableopt.integrations.optuna import prune_on_instability

        trial = optuna.create_study().ask()
        ours = way(prune=lambda t, opt: prune_on_instability(t, opt, max_skips=0))
        ended, watch = ends()
        trainer = make(tmp_path, wrapped=ours, data=Regression(bad=5), callbacks=[watch])
        with pytest.raises(optuna.TrialPruned, match="1 skip, more than max_skips=0"):
            trainer.train(trial=trial)
        assert ended == [trainer.state.global_step]
        assert trial.user_attrs["stable/skips"] == 1
        assert "the loss is nan" in trial.user_attrs["stable/reason"]

    @works_with("HF Trainer", "subclasses")
    @both_ways
    def test_a_subclass_with_a_loss_of_its_own(self, tmp_path, events, way):
        class Halved(transformers().Trainer):
            def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
                loss = super().compute_loss(model, inputs, return_outputs, **kwargs)
                return loss / 2

            def log(self, logs, start_time=None):
                super().log({**logs, "extra": 1.0}, start_time)

        ours = way(telemetry=events)
        trainer = make(tmp_path, wrapped=ours, kind=Halved)
        trainer.train()
        logged = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert [event.loss for event in events.seen] == [entry["loss"] for entry in logged]
        assert all(entry["extra"] == 1.0 and "stable/loss" in entry for entry in logged)

    def test_a_class_in_place_of_an_instance(self, tmp_path):
        from stableopt.integrations.transformers import StableTrainerCallback

        trainer = make(tmp_path, callbacks=[StableTrainerCallback])
        trainer.train()
        assert isinstance(trainer.optimizer.optimizer, StableOptimizer)

    def test_attach(self, tmp_path):
        trainer, ours = make(tmp_path), callback()
        ours.attach(trainer)
        ours.attach(trainer)
        trainer.train()
        assert ours.optimizer.summary()["steps"] == 8
        assert sum(known is ours for known in trainer.callback_handler.callbacks) == 1

    @pytest.mark.parametrize("how", ["remove_callback", "pop_callback"])
    @pytest.mark.parametrize("by_class", [False, True])
    def test_a_callback_that_was_removed_does_nothing(self, tmp_path, how, by_class):
        ours = callback(telemetry=tmp_path / "runs")
        trainer = make(tmp_path, wrapped=ours)
        getattr(trainer, how)(type(ours) if by_class else ours)
        trainer.train()
        assert stable_optimizer_of(trainer.optimizer) is None
        assert ours.optimizer is None
        assert not (tmp_path / "runs").exists()
        assert not [key for e in trainer.state.log_history for key in e if "stable/" in key]
        assert_same(left(trainer), self.bare(tmp_path))

    def test_a_callback_that_was_removed_after_a_training(self, tmp_path):
        """The optimizer that it had wrapped is the trainer's own again."""
        first = callback()
        trainers = [make(tmp_path, wrapped=wrapped) for wrapped in (first, None)]
        for trainer in trainers:
            trainer.train()
            trainer.create_optimizer()
        trainers[0].remove_callback(first)
        for trainer in trainers:
            trainer.train()
        assert first.optimizer.summary()["steps"] == 8
        assert stable_optimizer_of(trainers[0].optimizer) is None
        assert_same(left(trainers[0]), left(trainers[1]))
        assert not [k for e in trainers[0].state.log_history for k in e if "stable/" in k]

    def test_another_callback_in_place_of_one_that_was_removed(self, tmp_path):
        first, second = callback(), callback(transforms=[UpdateCap(0.1)])
        trainer = make(tmp_path, wrapped=first, max_steps=4)
        trainer.train()
        trainer.remove_callback(first)
        second.attach(trainer)
        trainer.train()
        assert stable_optimizer_of(trainer.optimizer) is second.optimizer
        assert second.optimizer.summary()["steps"] == 4
        trainer.remove_callback(second)
        first.attach(trainer)
        trainer.train()
        assert stable_optimizer_of(trainer.optimizer) is first.optimizer
        logged = [entry for entry in trainer.state.log_history if "stable/loss" in entry]
        assert [entry["stable/loss"] for entry in logged] == [
            pytest.approx(entry["loss"], abs=1e-4) for entry in logged
        ]

    def test_a_trainer_inside_of_a_trainer(self, tmp_path):
        """The call stack holds two; each callback belongs to the one that was given it."""
        outer = callback()

        class Outer(transformers().Trainer):
            def __init__(self, **given):
                super().__init__(**given)
                self.ours = callback()
                self.teacher = make(tmp_path, wrapped=self.ours)

        trainer = make(tmp_path, wrapped=outer, kind=Outer)
        trainer.teacher.train()
        assert outer.optimizer is None
        assert trainer.ours.optimizer.summary()["steps"] == 8

    @both_ways
    def test_a_pickled_trainer_trains(self, tmp_path, way):
        """As Ray has it in a search."""
        from accelerate.state import GradientState

        GradientState._reset_state()  # of trainings before: it is pickled, and holds their data
        trainer = pickle.loads(pickle.dumps(make(tmp_path, wrapped=way())))
        trainer.train()
        assert_same(left(trainer), self.bare(tmp_path))
        assert isinstance(trainer.optimizer.optimizer, StableOptimizer)

    def test_one_callback_for_two_trainers(self, tmp_path):
        ours = callback()
        first, second = (make(tmp_path, wrapped=ours) for _ in range(2))
        for trainer in (first, second, first):
            trainer.train()
            assert stable_optimizer_of(trainer.optimizer) is ours.optimizer
        assert ours.optimizer.summary()["steps"] == 16

    @both_ways
    def test_auto_find_batch_size_goes_on_with_the_same_wrapper(self, tmp_path, way):
        calls = []

        class TooLarge(transformers().Trainer):
            def training_step(self, model, inputs, *args, **kwargs):
                calls.append(len(inputs["x"]))
                if len(inputs["x"]) > 2:
                    raise RuntimeError("CUDA out of memory.")
                return super().training_step(model, inputs, *args, **kwargs)

        ours = way(telemetry=JsonLines(tmp_path / "run"))
        trainer = make(
            tmp_path,
            wrapped=ours,
            kind=TooLarge,
            auto_find_batch_size=True,
            per_device_train_batch_size=4,
        )
        trainer.train()
        assert calls[0] == 4
        assert ours.optimizer.summary()["steps"] == trainer.state.global_step == 8


class TestRefused:
    @both_ways
    def test_an_unknown_option(self, tmp_path, way):
        with pytest.raises(ConfigError, match="option='guards' is not known"):
            make(tmp_path, wrapped=way(guards=None))

    def test_what_is_no_trainer(self):
        with pytest.raises(ConfigError, match="trainer=Net object must be a transformers"):
            Stabilize().apply(Net())

    @both_ways
    def test_a_trainer_that_is_stabilized_already(self, tmp_path, way):
        from stableopt.integrations.transformers import StableTrainerCallback

        first, second = way(), Stabilize(transforms=[UpdateCap(0.1)])
        trainer = make(tmp_path, wrapped=first)
        with pytest.raises(ConfigError, match="has a StableTrainerCallback already"):
            second.apply(trainer)
        trainer.remove_callback(StableTrainerCallback)
        second.apply(trainer)
        trainer.train()
        assert len(second.optimizer.summary()["transforms"]) == 1
        assert second.optimizer.summary()["steps"] == 8

    def test_what_the_trainer_brings(self):
        with pytest.raises(ConfigError, match="model=Net object is provided by the trainer"):
            callback(model=Net())

    def test_a_value_out_of_range_before_there_is_a_trainer(self):
        with pytest.raises(ConfigError, match="guard=True must be"):
            callback(guard=True)
        with pytest.raises(ConfigError, match="transforms has 3"):
            callback(transforms=[3])

    def test_a_callback_that_was_added_later(self, tmp_path):
        trainer = make(tmp_path)
        trainer.add_callback(callback())
        with pytest.raises(ConfigError, match=r"call stabilize\(trainer\) before train"):
            trainer.train()

    def test_options_beside_an_optimizer_that_is_wrapped(self, tmp_path):
        model = Net()
        opt = StableOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
        trainer = transformers().Trainer(
            model=model,
            args=arguments(tmp_path),
            train_dataset=Regression(),
            optimizers=(opt, None),
            callbacks=[callback(transforms=[UpdateCap(0.1)])],
        )
        with pytest.raises(ConfigError, match=r"options=\['transforms'\] must not be given"):
            trainer.train()

    @both_ways
    def test_a_writer_for_two_trainings(self, tmp_path, way):
        trainer = make(tmp_path, wrapped=way(telemetry=JsonLines(tmp_path / "run")))
        trainer.train()
        with pytest.raises(ConfigError, match="closed at the end of the training before"):
            trainer.train()

    def test_a_writer_for_two_trials(self, tmp_path):
        ours = callback(telemetry=[JsonLines(tmp_path / "run")], per_trial=lambda trial: {})
        trainer = transformers().Trainer(
            model_init=Net,
            args=arguments(tmp_path, max_steps=1),
            train_dataset=Regression(),
            eval_dataset=Regression(),
            callbacks=[ours],
        )
        with pytest.raises(ConfigError, match="closed at the end of the training before"):
            trainer.hyperparameter_search(
                hp_space=lambda trial: {"seed": 1}, backend="optuna", n_trials=2
            )


class TestFaults:
    @works_with("HF Trainer", "skip")
    @pytest.mark.parametrize("bf16", [False, True])
    def test_a_bad_sample_costs_one_step_of_each_epoch(self, tmp_path, bf16):
        ours = callback(guard=Guard(loss_spike=UNSEEN, gradient_spike=UNSEEN))
        options = {"gradient_accumulation_steps": 2, "bf16": bf16}
        trainer = make(tmp_path, wrapped=ours, data=Regression(bad=5), **options)
        trainer.train()
        assert ours.optimizer.summary()["skips"] == 2  # two epochs of four steps
        assert finite(trainer.model)

    @works_with("HF Trainer", "rollback")
    @both_ways
    def test_a_nan_weight_is_undone(self, tmp_path, way):
        ours = way(guard=Guard(every=2, confirm=1), telemetry=tmp_path / "run")
        faults = [at_step(6, nan_weight)]
        trainer = make(tmp_path, wrapped=ours, callbacks=faults, max_steps=16)
        trainer.train()
        assert finite(trainer.model)
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert (summary["status"], summary["integrity"]) == ("closed", "OK")
        assert summary["rollbacks"] == 1
        assert summary["steps"] == 16 - 1 - summary["steps_lost"]
        (event,) = [e for e in ours.optimizer.ledger if e.rollback is not None]
        assert event.findings
        assert event.rollback.from_step == 6

    def test_the_schedule_belongs_to_the_clock_of_the_trainer(self, tmp_path, caplog):
        rates = {}
        for name, options in {
            "clean": None,
            "stays": {},
            "rewinds": {"rewind_schedule": True},
        }.items():
            ours = None
            if options is not None:
                ours = callback(guard=Guard(every=4, confirm=1), **options)
            faults = [] if options is None else [at_step(6, nan_weight)]
            trainer = make(tmp_path, wrapped=ours, callbacks=faults, max_steps=16)
            trainer.train()
            rates[name] = [e["learning_rate"] for e in trainer.state.log_history if "loss" in e]
        assert rates["stays"] == rates["clean"]
        assert rates["clean"][-1] < 1e-3  # the schedule has come to its end
        lost = ours.optimizer.summary()["steps_lost"]
        assert lost > 0
        # The other one is behind by the steps that were undone, and by the one that was not taken.
        assert rates["rewinds"][7:] == rates["clean"][7 - lost - 1 : 16 - lost - 1]
        assert not [r for r in caplog.records if "is not tracked" in r.message]

    @works_with("HF Trainer", "true loss")
    @pytest.mark.parametrize("accumulate", [1, 2])
    @both_ways
    def test_nan_weights_are_recorded_where_the_trainer_logs_zero(self, tmp_path, accumulate, way):
        """Without a guard nothing is restored, and ``logging_nan_inf_filter`` logs no NaN."""
        ours = way(guard=False, telemetry=JsonLines(tmp_path / "run", every=1))
        faults = [at_step(3, nan_weight)]
        options = {"callbacks": faults, "gradient_accumulation_steps": accumulate}
        trainer = make(tmp_path, wrapped=ours, **options)
        trainer.train()
        assert not finite(trainer.model)
        logged = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert [entry["loss"] for entry in logged[3:]] == [0.0] * 5
        assert all(math.isnan(entry["stable/loss"]) for entry in logged[3:])
        assert [entry["stable/loss"] for entry in logged[:3]] == [e["loss"] for e in logged[:3]]
        recorded = [event["loss"] for event in read_events(tmp_path / "run" / "telemetry.jsonl")]
        assert recorded[:3] == pytest.approx([entry["loss"] for entry in logged[:3]])
        assert recorded[3:] == ["NaN"] * 5
        assert ours.optimizer.summary()["integrity"] == "COMPROMISED"

    def test_one_bad_micro_batch_is_the_loss_of_its_step(self, tmp_path, events):
        ours = callback(telemetry=events, guard=Guard(loss_spike=UNSEEN, gradient_spike=UNSEEN))
        options = {"gradient_accumulation_steps": 4, "max_steps": 2, "logging_steps": 2}
        trainer = make(tmp_path, wrapped=ours, data=Regression(bad=5), **options)
        trainer.train()
        losses = [event.loss for event in events.seen]
        assert sum(math.isnan(loss) for loss in losses) == 1
        assert sum(event.action.value == "skip" for event in events.seen) == 1

    @both_ways
    def test_the_loss_of_a_step_is_what_the_trainer_says_it_is(self, tmp_path, events, way):
        """Not the last micro-batch, and not their sum of means."""
        ours = way(telemetry=events)
        options = {"gradient_accumulation_steps": 3, "max_steps": 6}  # 3, 3, 2 of 8 batches
        trainer = make(tmp_path, wrapped=ours, **options)
        trainer.train()
        logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert [event.loss for event in events.seen] == pytest.approx(logged, rel=1e-6)

    def test_token_weighted_losses_are_summed(self, tmp_path, events):
        """A model that takes ``num_items_in_batch`` has divided by all tokens of the step."""
        ours = callback(telemetry=events)
        options = {"gradient_accumulation_steps": 2, "max_steps": 3, "learning_rate": 1e-3}
        trainer = make(tmp_path, wrapped=ours, model=tiny_llama(), data=Tokens(), **options)
        trainer.train()
        logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert [event.loss for event in events.seen] == pytest.approx(logged, rel=1e-5)
        assert 3 < logged[0] < 6  # about ln 64: neither halved nor doubled

    @works_with("HF Trainer", "divergence")
    @both_ways
    def test_divergence_leaves_train_after_on_train_end_of_every_callback(self, tmp_path, way):
        ended, watch = ends()
        ours = way(guard=Guard(max_rollbacks=0, every=2, confirm=1), telemetry=tmp_path / "r")
        faults = [at_step(6, nan_weight), watch]
        trainer = make(tmp_path, wrapped=ours, callbacks=faults, max_steps=16)
        with pytest.raises(DivergenceError, match="newest verified snapshot") as caught:
            trainer.train()
        assert ended == [6]
        assert finite(trainer.model)  # what can be trusted is what is there to be saved
        assert caught.value.event.rollback.to_step < 6
        summary = json.loads((tmp_path / "r" / "summary.json").read_text())
        assert (summary["status"], summary["integrity"]) == ("stopped", "COMPROMISED")

    @pytest.mark.parametrize(
        ("error", "status", "outcome"),
        [
            (RuntimeError("boom"), "failed", "failed"),
            (KeyboardInterrupt(), "interrupted", "killed"),
            (SystemExit(3), "failed", "failed"),
            (SystemExit(0), "closed", "completed"),
        ],
        ids=repr,
    )
    def test_the_summary_knows_what_train_ended_by(self, tmp_path, error, status, outcome):
        def fail(optimizer, model):
            raise error

        said = []
        writers = [JsonLines(tmp_path / "run"), LifecycleEvents(said.append)]
        ours = callback(telemetry=writers)
        trainer = make(tmp_path, wrapped=ours, callbacks=[at_step(3, fail)])
        with pytest.raises(type(error)):
            trainer.train()
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert (summary["status"], summary["steps"]) == (status, 3)
        stop = said[-1]["metadata"]
        assert (stop["status"], stop["success"]) == (outcome, outcome == "completed")


class TestScaler:
    @works_with("HF Trainer", "fp16")
    def test_an_overflow_is_forgotten_and_the_scaler_restored(self, tmp_path, events):
        """fp16 wants a GPU; the scaler, and what accelerate does with it, does not."""

        class Scaled(transformers().Trainer):
            def create_accelerator_and_postprocess(self):
                super().create_accelerator_and_postprocess()
                self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**66)

        ours = callback(telemetry=events)
        trainer = make(tmp_path, wrapped=ours, kind=Scaled, max_grad_norm=0.0, max_steps=16)
        scales = []

        class Watch(transformers().TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                scales.append(trainer.accelerator.scaler.get_scale())

        trainer.add_callback(Watch())
        trainer.train()
        before = [2.0**66, *scales]
        taken = [now == then for then, now in zip(before, scales, strict=False)]
        assert 0 < taken.count(False) < 16
        assert ours.optimizer.summary()["calls"] == taken.count(True)
        assert ours.optimizer.summary()["tracked"] == ["scaler"]
        assert ours.optimizer.ledger == ()  # its overflows are its own
        logged = [e["loss"] for e in trainer.state.log_history if "loss" in e]
        # What was observed of a step that the scaler left out is in none of the later losses.
        expected = [loss for loss, took in zip(logged, taken, strict=True) if took]
        assert [event.loss for event in events.seen] == pytest.approx(expected, rel=1e-6)


class TestLogs:
    @both_ways
    def test_the_logs_of_the_trainer_get_ours(self, tmp_path, way):
        ours = way()
        trainer = make(tmp_path, wrapped=ours, logging_steps=2)
        trainer.train()
        logged = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert [entry["stable/step"] for entry in logged] == [2, 4, 6, 8]
        assert [entry["stable/loss"] for entry in logged] == pytest.approx(
            [entry["loss"] for entry in logged]
        )
        for entry in logged:
            assert (entry["stable/skips"], entry["stable/rollbacks"]) == (0, 0)
            assert entry["stable/lr_scale"] == 1.0

    @both_ways
    def test_trackers_of_the_trainer_get_them(self, tmp_path, way):
        """Reporting callbacks come before ours: what ours adds in on_log would be too late."""
        seen = []

        class Tracker(transformers().TrainerCallback):
            def on_log(self, args, state, control, logs=None, **kwargs):
                seen.append(dict(logs))

        make(tmp_path, wrapped=way(), callbacks=[Tracker()]).train()
        assert sum("stable/loss" in logs for logs in seen) == 8
        assert "stable/loss" not in seen[-1]  # the summary of the trainer, of no step

    def test_evaluations_are_left_alone(self, tmp_path):
        options = {"eval_strategy": "steps", "eval_steps": 4}
        trainer = make(tmp_path, wrapped=callback(), **options)
        trainer.train()
        evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
        assert len(evaluations) == 2
        assert not any(key.startswith("stable/") for entry in evaluations for key in entry)

    @both_ways
    def test_log_false(self, tmp_path, way):
        trainer = make(tmp_path, wrapped=way(log=False))
        trainer.train()
        keys = {key for entry in trainer.state.log_history for key in entry}
        assert not any(key.startswith("stable/") for key in keys)

    @pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
    def test_clipping_that_hides_spikes_is_warned_of_once(self, tmp_path, caplog, max_grad_norm):
        trainer = make(tmp_path, wrapped=callback(), max_grad_norm=max_grad_norm)
        trainer.train()
        trainer.train()
        warnings = [r.message for r in caplog.records if "hides their spikes" in r.message]
        assert len(warnings) == (1 if max_grad_norm else 0)

    def test_the_transform_that_is_advised_gives_the_same_numbers(self, tmp_path):
        clipped = make(tmp_path, max_grad_norm=0.1)
        clipped.train()
        ours = callback(transforms=[ClipGradNorm(0.1)])
        shared = make(tmp_path, wrapped=ours, max_grad_norm=0.0)
        shared.train()
        assert_same(left(shared)[:3], left(clipped)[:3])
        assert ours.optimizer.ledger != ()


def test_without_the_extra(monkeypatch):
    import importlib
    import sys

    import stableopt.integrations.transformers as module
    from stableopt import MissingExtraError

    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "stableopt.integrations.transformers")
    with pytest.raises(MissingExtraError, match=r"pip install 'stableopt\[transformers\]'"):
        importlib.import_module("stableopt.integrations.transformers")
    assert module.StableTrainerCallback is not None
