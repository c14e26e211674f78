"""Studies that choose how stable a run is, and give up those that are not."""

from __future__ import annotations

import math
import sys

import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution
from optuna.trial import FixedTrial, TrialState

from stableopt import (
    AdaptiveWeightDecay,
    ConfigError,
    Guard,
    SpectralCap,
    SpectralNormalization,
    StableOptimizer,
    UpdateCap,
)
from stableopt.integrations.optuna import (
    prune_on_instability,
    record_stability,
    stable_trial,
    suggest_stability,
)
from stableopt.testing import corrupt_weight

works_with = pytest.mark.compatibility

EVERYTHING = {
    "stable/spectral": "cap",
    "stable/spectral_bound": 2.0,
    "stable/decay": True,
    "stable/decay_above": 3.0,
    "stable/decay_base": 1e-4,
    "stable/update_cap": True,
    "stable/update_cap_ratio": 0.05,
    "stable/spike": 8.0,
    "stable/lr_backoff": 0.5,
}


@pytest.fixture(autouse=True)
def quiet():
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


def made(**options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return model, StableOptimizer(adamw, model=model, **options)


def step(model, opt, value=1.0):
    opt.zero_grad()
    loss = (model(torch.full((4, 4), value)) - 1).pow(2).mean()
    loss.backward()
    opt.observe(loss=loss)
    opt.step()
    return loss.item()


class TestSuggest:
    @works_with("Optuna", "suggest_stability")
    def test_every_choice_makes_an_optimizer_that_trains(self):
        """The whole space of the categories, each with an optimizer of its own."""

        def objective(trial):
            model, opt = made(**suggest_stability(trial))
            return [step(model, opt) for _ in range(3)][-1]

        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        study.optimize(objective, n_trials=30)
        chosen = {
            (t.params["stable/spectral"], t.params["stable/decay"], t.params["stable/update_cap"])
            for t in study.trials
        }
        assert len(chosen) == 12
        assert all(math.isfinite(trial.value) for trial in study.trials)

    def test_everything(self):
        options = suggest_stability(FixedTrial(EVERYTHING), params="*.weight")
        cap, decay, update = options["transforms"]
        assert (type(cap), cap.limit, str(cap.params)) == (SpectralCap, 2.0, "['*.weight']")
        assert (type(decay), decay.base) == (AdaptiveWeightDecay, 1e-4)
        assert "spectral_norm > 3" in str(decay.when)
        assert (type(update), update.ratio) == (UpdateCap, 0.05)
        guard = options["guard"]
        assert (guard.loss_spike, guard.gradient_spike, guard.lr_backoff) == (8.0, 8.0, 0.5)

    def test_nothing(self):
        off = {"stable/spectral": "off", "stable/decay": False, "stable/update_cap": False}
        assert suggest_stability(FixedTrial(off), search=["spectral", "decay", "update_cap"]) == {
            "transforms": ()
        }
        assert suggest_stability(FixedTrial({}), search=[]) == {"transforms": ()}

    def test_spectral_normalization_is_on_or_off(self):
        study = optuna.create_study()
        trial = study.ask()
        suggest_stability(trial, search="spectral")
        known = trial.distributions["stable/spectral"]
        assert known == CategoricalDistribution(["off", "normalize", "cap"])
        fixed = FixedTrial({"stable/spectral": "normalize", "stable/spectral_bound": 0.7})
        (transform,) = suggest_stability(fixed, search="spectral")["transforms"]
        assert (type(transform), transform.bound) == (SpectralNormalization, 0.7)

    def test_a_guard_keeps_what_is_not_searched(self):
        known = Guard(every=7, max_skips=2, loss_spike=None)
        fixed = {"stable/spike": 6.0, "stable/lr_backoff": 0.5}  # what they are by default, too
        chosen = suggest_stability(FixedTrial(fixed), search="guard", guard=known)["guard"]
        assert chosen == Guard(every=7, max_skips=2, loss_spike=6.0, gradient_spike=6.0)
        assert suggest_stability(FixedTrial({}), search=[], guard=known)["guard"] is known
        with pytest.raises(ConfigError, match=r"guard=False must be a stableopt\.Guard"):
            suggest_stability(FixedTrial(fixed), guard=False)

    def test_what_cannot_be_searched(self):
        with pytest.raises(ConfigError, match=r"search='spectrum' is not known: .*'spectral'"):
            suggest_stability(FixedTrial({}), search=["spectrum"])

    def test_the_best_trial_gives_its_options_again(self):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
        options = []

        def objective(trial):
            options.append(suggest_stability(trial))
            return -trial.number

        study.optimize(objective, n_trials=3)
        assert suggest_stability(FixedTrial(study.best_params)) == options[2]


class TestPruning:
    @works_with("Optuna", "pruning")
    def test_a_run_that_is_rescued_too_often_is_given_up_in_its_thread(self):
        """One trial of three has batches that cannot be used, one a weight that is lost."""
        steps = {}

        def objective(trial):
            guard = Guard(every=2, confirm=1, loss_spike=None, gradient_spike=None)
            model, opt = made(guard=guard, sensors=())
            with stable_trial(trial, opt):
                for number in range(12):
                    steps[trial.number] = number
                    if trial.number == 2 and number == 6:
                        corrupt_weight(opt, math.nan, model=model)
                    bad = trial.number == 1 and number % 3 == 2
                    loss = step(model, opt, math.nan if bad else 1.0)
                    prune_on_instability(trial, opt, max_skips=2, max_rollbacks=0)
            return loss

        study = optuna.create_study()
        study.optimize(objective, n_trials=3)
        states = [trial.state for trial in study.trials]
        assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED]
        assert steps == {0: 11, 1: 8, 2: 6}
        kept = [trial.user_attrs for trial in study.trials]
        assert [attrs["stable/skips"] for attrs in kept] == [0, 3, 0]
        assert [attrs["stable/rollbacks"] for attrs in kept] == [0, 0, 1]
        assert {attrs["stable/integrity"] for attrs in kept} == {"OK"}
        assert "stable/reason" not in kept[0]
        assert "the loss is nan" in kept[1]["stable/reason"]
        assert "0.weight" in kept[2]["stable/reason"] or "2.weight" in kept[2]["stable/reason"]

    def test_what_is_asked_for_by_hand_is_no_instability(self):
        model, opt = made(guard=Guard(every=2, confirm=1))
        for _ in range(4):
            step(model, opt)
        opt.rollback(reason="to try something")
        step(model, opt)
        assert opt.summary()["rollbacks"] == 1
        prune_on_instability(FixedTrial({}), opt, max_rollbacks=0)

    @pytest.mark.parametrize("limit", [-1, 1.5, True])
    def test_limits(self, limit):
        _, opt = made()
        with pytest.raises(ConfigError, match="max_skips"):
            prune_on_instability(FixedTrial({}), opt, max_skips=limit)

    @works_with("Optuna", "divergence")
    def test_divergence_prunes_the_trial(self):
        def objective(trial):
            model, opt = made(guard=Guard(slots=0, max_skips=1))
            with stable_trial(trial, opt):
                for _ in range(5):
                    step(model, opt, math.nan)
            return 0.0

        study = optuna.create_study()
        study.optimize(objective, n_trials=1)
        (trial,) = study.trials
        assert trial.state is TrialState.PRUNED
        assert trial.user_attrs["stable/integrity"] == "COMPROMISED"

    def test_another_error_stays_what_it_is_and_is_recorded(self):
        model, opt = made()
        trial = optuna.create_study().ask()
        step(model, opt)
        with pytest.raises(ZeroDivisionError), stable_trial(trial, opt):
            1 / 0  # noqa: B018
        assert trial.user_attrs["stable/steps"] == 1

    def test_a_callback_that_has_no_optimizer_yet(self):
        class Callback:
            optimizer = None

        trial = optuna.create_study().ask()
        with stable_trial(trial, Callback()):
            pass
        assert trial.user_attrs == {}

    def test_an_optimizer_that_is_not_wrapped(self):
        _, opt = made()
        trial = optuna.create_study().ask()
        for call in (prune_on_instability, record_stability):
            with pytest.raises(ConfigError, match="opt=AdamW object must be a StableOptimizer"):
                call(trial, opt.optimizer)
        entered = []
        for source in (opt.optimizer, object(), None):
            wanted = pytest.raises(ConfigError, match="must be a StableOptimizer")
            with wanted, stable_trial(trial, source):
                entered.append(source)
        assert entered == []
        assert trial.user_attrs == {}

    def test_a_callback_whose_optimizer_is_not_wrapped(self):
        class Callback:
            optimizer = made()[1].optimizer

        wanted = pytest.raises(ConfigError, match="opt=AdamW object must be a StableOptimizer")
        with wanted, stable_trial(optuna.create_study().ask(), Callback()):
            pass

    def test_what_accelerate_prepared(self):
        from accelerate import Accelerator

        model, opt = made()
        prepared = Accelerator(cpu=True).prepare(opt)
        trial = optuna.create_study().ask()
        with stable_trial(trial, prepared):
            step(model, opt)
            prune_on_instability(trial, prepared)
        assert trial.user_attrs["stable/steps"] == 1

    def test_a_run_without_a_guard(self):
        model, opt = made(guard=False)
        step(model, opt)
        trial = optuna.create_study().ask()
        record_stability(trial, opt)
        assert trial.user_attrs["stable/integrity"] == "UNCHECKED"


def test_without_the_extra(monkeypatch):
    import importlib

    import stableopt.integrations.optuna
    from stableopt import MissingExtraError

    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "stableopt.integrations.optuna")
    with pytest.raises(MissingExtraError, match=r"pip install 'stableopt\[optuna\]'"):
        importlib.import_module("stableopt.integrations.optuna")
    assert stableopt.integrations.optuna.open_study is not None
