"""Search for the learning rate and for what keeps it stable, and give up what is not.

Trials that only survive because they are rescued are pruned. Stop the program and run it again in
the same directory: the study goes on. Run it: ``python examples/optuna_study.py``.
"""

from __future__ import annotations

import optuna
import torch
from optuna.trial import FixedTrial, Trial, TrialState
from torch import nn

from stableopt import StableOptimizer
from stableopt.integrations.optuna import (
    open_study,
    prune_on_instability,
    stable_trial,
    suggest_stability,
)

SEARCH = ("spectral", "update_cap")


def objective(trial: Trial) -> float:
    """Train a small network without any normalisation, and return its loss."""
    torch.manual_seed(0)
    x = torch.rand(2048, 8) * 2 - 1
    y = torch.sin(3 * x).sum(dim=1, keepdim=True)
    layers = [nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)]
    model = nn.Sequential(*layers)
    sgd = torch.optim.SGD(model.parameters(), lr=trial.suggest_float("lr", 1e-3, 3, log=True))
    options = suggest_stability(trial, search=SEARCH)
    opt = StableOptimizer(sgd, model=model, **options)
    with stable_trial(trial, opt):  # records what happened, and prunes what diverges
        for _ in range(200):
            rows = torch.randint(len(x), (64,))
            opt.zero_grad()
            loss = nn.functional.mse_loss(model(x[rows]), y[rows])
            loss.backward()
            opt.observe(loss=loss)
            opt.step()
            prune_on_instability(trial, opt, max_rollbacks=0, max_skips=10)
    with torch.no_grad():
        return nn.functional.mse_loss(model(x), y).item()


optuna.logging.set_verbosity(optuna.logging.WARNING)
study = open_study("waves", sampler=optuna.samplers.TPESampler(seed=0))  # waves.journal
study.optimize(objective, n_trials=20)

for trial in study.trials:
    kept = trial.user_attrs
    rescued = f"{kept['stable/skips']} skips, {kept['stable/rollbacks']} rollbacks"
    value = "-" if trial.value is None else f"{trial.value:.3f}"
    print(f"trial {trial.number:2d}  {trial.state.name:8s}  loss {value:6s}  {rescued}")
pruned = len(study.get_trials(states=[TrialState.PRUNED]))
print(f"pruned {pruned}, best loss {study.best_value:.3f} with {study.best_params}")
print("its options:", suggest_stability(FixedTrial(study.best_params), search=SEARCH))
