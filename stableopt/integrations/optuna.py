"""Search for stability options with Optuna, prune unstable trials, record their outcome."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from stableopt.errors import (
    ConfigError,
    DivergenceError,
    MissingExtraError,
    require_int,
    unknown_name,
)
from stableopt.guard import Guard
from stableopt.integrations.trainers import stable_optimizer_of
from stableopt.optimizer import StableOptimizer
from stableopt.runtime.words import count
from stableopt.transforms import (
    AdaptiveWeightDecay,
    SpectralCap,
    SpectralNormalization,
    UpdateCap,
)
from stableopt.types import Action

try:
    import optuna
except ImportError as error:
    raise MissingExtraError("stableopt.integrations.optuna", "optuna") from error

from stableopt.integrations.optuna_study import open_study

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from stableopt.transforms import Transform
    from stableopt.transforms.selection import Select

__all__ = [
    "open_study",
    "prune_on_instability",
    "record_stability",
    "stable_trial",
    "suggest_stability",
]

RECORDED = ("integrity", "steps", "skips", "tamed", "rollbacks", "steps_lost", "back_offs")
"""Entries of the summary that are recorded with a trial."""


def suggest_stability(
    trial: optuna.trial.BaseTrial,
    *,
    search: Iterable[str] = ("spectral", "decay", "update_cap", "guard"),
    params: Select = None,
    guard: Guard | None = None,
) -> dict[str, Any]:
    """Let a trial choose stability options.

    - ``"spectral"``: ``stable/spectral`` is ``"off"``, ``"normalize"``
      (:class:`~stableopt.SpectralNormalization`) or ``"cap"`` (:class:`~stableopt.SpectralCap`);
      unless off, ``stable/spectral_bound`` is from 0.5 to 20.
    - ``"decay"``: ``stable/decay`` is whether weights with a spectral norm above
      ``stable/decay_above`` (0.5 to 20) decay (:class:`~stableopt.AdaptiveWeightDecay`) with
      ``stable/decay_base`` from 1e-6 to 1e-3.
    - ``"update_cap"``: ``stable/update_cap`` is whether the length of a step is bounded
      (:class:`~stableopt.UpdateCap`) by ``stable/update_cap_ratio`` (0.002 to 0.1) of the weight.
    - ``"guard"``: ``stable/spike`` is the z-score (4 to 12) from which a loss or a gradient norm
      is a spike, ``stable/lr_backoff`` from 0.3 to 0.9.

    Args:
        trial: Of Optuna. ``optuna.trial.FixedTrial(study.best_params)`` gives the options of the
            best one again.
        search: Which of these to search; the others keep their defaults.
        params: Patterns of parameter names for the transforms on weights; every matrix if not
            given. Usually embeddings and output layers should be left out.
        guard: The options of the guard that are not searched; the defaults if not given.

    Returns:
        ``transforms``, and ``guard`` if it is searched or given, for
        :class:`~stableopt.StableOptimizer`.

    Raises:
        ConfigError: A name in ``search`` is unknown, or ``guard`` is not a Guard.

    Example:
        >>> import optuna
        >>> fixed = {"stable/spectral": "normalize", "stable/spectral_bound": 2.0}
        >>> suggest_stability(optuna.trial.FixedTrial(fixed), search=["spectral"])
        {'transforms': (SpectralNormalization(bound=2.0, every=1, params=None),)}
    """
    wanted = [search] if isinstance(search, str) else list(search)
    for name in wanted:
        if name not in _SUGGEST and name != "guard":
            raise unknown_name("search", name, [*_SUGGEST, "guard"])
    if guard is not None and not isinstance(guard, Guard):
        raise ConfigError(
            f"guard={guard!r} must be a stableopt.Guard with the options that are not searched, or "
            "None; to train without a guard, leave 'guard' out of search= and give guard=False to "
            "the optimizer"
        )
    made = [_SUGGEST[name](trial, params) for name in _SUGGEST if name in wanted]
    transforms = tuple(transform for transform in made if transform is not None)
    if "guard" in wanted:
        guard = _suggest_guard(trial, guard or Guard())
    return {"transforms": transforms} | ({} if guard is None else {"guard": guard})


def _suggest_spectral(trial: optuna.trial.BaseTrial, params: Select) -> Transform | None:
    kind = trial.suggest_categorical("stable/spectral", ["off", "normalize", "cap"])
    if kind == "off":
        return None
    bound = trial.suggest_float("stable/spectral_bound", 0.5, 20.0, log=True)
    if kind == "normalize":
        return SpectralNormalization(bound, params=params)
    return SpectralCap(bound, params=params)


def _suggest_decay(trial: optuna.trial.BaseTrial, params: Select) -> Transform | None:
    if not trial.suggest_categorical("stable/decay", [False, True]):
        return None
    limit = trial.suggest_float("stable/decay_above", 0.5, 20.0, log=True)
    base = trial.suggest_float("stable/decay_base", 1e-6, 1e-3, log=True)
    return AdaptiveWeightDecay(when=f"spectral_norm > {limit!r}", base=base, params=params)


def _suggest_update_cap(trial: optuna.trial.BaseTrial, params: Select) -> Transform | None:
    if not trial.suggest_categorical("stable/update_cap", [False, True]):
        return None
    return UpdateCap(trial.suggest_float("stable/update_cap_ratio", 0.002, 0.1, log=True))


def _suggest_guard(trial: optuna.trial.BaseTrial, known: Guard) -> Guard:
    spike = trial.suggest_float("stable/spike", 4.0, 12.0)
    backoff = trial.suggest_float("stable/lr_backoff", 0.3, 0.9)
    return replace(known, loss_spike=spike, gradient_spike=spike, lr_backoff=backoff)


_SUGGEST: Mapping[str, Callable[[optuna.trial.BaseTrial, Select], Transform | None]] = {
    "spectral": _suggest_spectral,
    "decay": _suggest_decay,
    "update_cap": _suggest_update_cap,
}


def prune_on_instability(
    trial: optuna.trial.BaseTrial,
    opt: Optimizer,
    *,
    max_rollbacks: int = 1,
    max_skips: int = 20,
) -> None:
    """Prune a trial with too many rollbacks or skips.

    Call it after ``opt.step()``, in the thread of the trial: an exception in a telemetry writer,
    which has a separate thread, could not end it.

    Args:
        trial: Of Optuna; named in the message.
        opt: The :class:`~stableopt.StableOptimizer` that it trains with, or what
            ``accelerator.prepare`` made of it.
        max_rollbacks: Rollbacks that are allowed, without those by ``opt.rollback()``.
        max_skips: Skipped steps that are allowed.

    Raises:
        optuna.TrialPruned: There were more; the message has the reason of the last.
        ConfigError: A limit is not an int of at least 0, or ``opt`` is not wrapped.

    Cost:
        Microseconds.

    Example:
        >>> import optuna, torch
        >>> model = torch.nn.Linear(2, 1)
        >>> opt = StableOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
        >>> model(torch.full((1, 2), float("nan"))).sum().backward()
        >>> opt.step()
        >>> prune_on_instability(optuna.trial.FixedTrial({}), opt, max_skips=0)
        Traceback (most recent call last):
            ...
        optuna.exceptions.TrialPruned: trial 0 is unstable: 1 skip, more than max_skips=0; the \
last: the gradient of 0.0 is not finite; skip 1 of at most 6 in a row
    """
    ledger = _wrapped(opt).ledger
    limits = ((Action.ROLL_BACK, "rollback", max_rollbacks), (Action.SKIP, "skip", max_skips))
    for action, what, limit in limits:
        require_int(f"max_{what}s", limit, 0, f"how many {what}s are allowed")
        events = [event for event in ledger if event.action is action and not _by_hand(event)]
        if len(events) > limit:
            raise optuna.TrialPruned(
                f"trial {trial.number} is unstable: {count(len(events), what)}, more than "
                f"max_{what}s={limit}; the last: {events[-1].reason}"
            )


def _by_hand(event: Any) -> bool:
    return event.rollback is not None and event.rollback.attempt == 0


def _wrapped(opt: object) -> StableOptimizer:
    stable = stable_optimizer_of(opt)
    if stable is None:
        raise ConfigError(
            f"opt={type(opt).__name__} object must be a StableOptimizer, which has the ledger: "
            "train with opt = StableOptimizer(optimizer, model=model)"
        )
    return stable


def record_stability(trial: Any, opt: Optimizer) -> None:
    """Record counts and integrity of a run as user attributes of its trial.

    ``stable/integrity``, ``stable/steps``, ``stable/skips``, ``stable/tamed``,
    ``stable/rollbacks``, ``stable/steps_lost``, ``stable/back_offs``, and the ``stable/reason`` of
    the last intervention if there was one.

    Args:
        trial: Of Optuna, or any object with ``set_user_attr``.
        opt: The :class:`~stableopt.StableOptimizer` that it trained with, or what
            ``accelerator.prepare`` made of it.

    Raises:
        ConfigError: ``opt`` is not wrapped.

    Cost:
        Seven or eight writes to the storage.
    """
    stable = _wrapped(opt)
    summary = stable.summary()
    for name in RECORDED:
        trial.set_user_attr(f"stable/{name}", summary[name])
    reasons = [event.reason for event in stable.ledger if event.intervened]
    if reasons:
        trial.set_user_attr("stable/reason", reasons[-1])


@contextmanager
def stable_trial(trial: Any, source: Any) -> Iterator[None]:
    """Record the run in the block with its trial, and prune the trial if the run diverges.

    Args:
        trial: Of Optuna.
        source: The :class:`~stableopt.StableOptimizer`, or a callback of a trainer that has it as
            ``optimizer`` at the end.

    Raises:
        optuna.TrialPruned: A :class:`~stableopt.DivergenceError` left the block.
        ConfigError: ``source`` is neither.

    Example:
        >>> import optuna, torch
        >>> def objective(trial):
        ...     model = torch.nn.Linear(2, 1)
        ...     opt = StableOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
        ...     with stable_trial(trial, opt):
        ...         model(torch.ones(1, 2)).sum().backward()
        ...         opt.step()
        ...     return 0.0
        >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
        >>> study = optuna.create_study()
        >>> study.optimize(objective, n_trials=1)
        >>> study.best_trial.user_attrs["stable/integrity"]
        'OK'
    """
    is_optimizer = isinstance(source, Optimizer)
    if is_optimizer or not hasattr(source, "optimizer"):
        _wrapped(source)
    try:
        yield
    except DivergenceError as error:
        raise optuna.TrialPruned(str(error)) from error
    finally:
        opt = source if is_optimizer else source.optimizer
        if opt is not None:
            record_stability(trial, opt)
