"""A ``StableOptimizer`` in the ``Trainer`` of transformers."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

from stableopt.errors import ConfigError, DivergenceError, MissingExtraError
from stableopt.integrations.trainers import (
    MeanLoss,
    StableCallbackBase,
    check_options,
    options_on_top,
    stability_metrics,
    stable_optimizer_of,
)
from stableopt.optimizer import StableOptimizer

try:
    from accelerate.optimizer import AcceleratedOptimizer  # type: ignore[import-untyped]
    from transformers import TrainerCallback
except ImportError as error:
    raise MissingExtraError("stableopt.integrations.transformers", "transformers") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager
    from typing import TypeVar

    from torch import Tensor
    from torch.optim import Optimizer

    T = TypeVar("T")

__all__ = ["StableTrainerCallback", "stabilize", "stable_optimizer_of"]


def stabilize(trainer: T, **options: Any) -> T:
    """Make a ``Trainer`` wrap its optimizer in a ``StableOptimizer``.

    What the trainer's ``create_optimizer`` makes is wrapped before accelerate prepares it and
    before a resume loads a checkpoint into it. An optimizer that is wrapped already
    (``optimizers=(opt, None)``) is used as it is. Training stays bit-identical while nothing is
    wrong. From the first training on, ``stable_optimizer_of(trainer.optimizer)`` is the wrapper.

    - The loss that is judged is what ``training_step`` returned, summed over the micro-batches of
      a step as the trainer does, and never filtered: ``logging_nan_inf_filter`` does not apply.
    - The logs of the trainer, and so W&B, TensorBoard and the console, get ``stable/loss`` (the
      mean of the unfiltered loss since the last log), ``stable/skips``, ``stable/tamed``,
      ``stable/rollbacks``, ``stable/step``, ``stable/lr_scale`` and ``stable/risk``.
    - A rollback restores weights, optimizer state, buffers, random states and the gradient
      scaler. ``global_step``, the data and the learning rate schedule continue: the trainer stops
      after a number of batches, so a schedule that is restored would not reach its end.
    - ``DivergenceError`` leaves ``train()`` with the newest verified weights in the model
      (``trainer.save_model()`` saves them), after ``on_train_end`` of every callback. In a
      hyperparameter search with Optuna the trial is pruned instead.

    A :class:`StableTrainerCallback` is added to the trainer, and ``create_optimizer``,
    ``training_step``, ``log`` and ``train`` of this one instance are replaced by methods that call
    them. ``trainer.remove_callback(StableTrainerCallback)`` before ``train()`` undoes it.

    Args:
        trainer: A ``transformers.Trainer``, before ``train()``.
        **options: Those of :class:`StableTrainerCallback`, and so those of
            :class:`~stableopt.StableOptimizer` but for ``optimizer`` and ``model``.

    Returns:
        The same trainer.

    Raises:
        ConfigError: ``trainer`` is not a ``Trainer``, or is stabilized already; an option is
            unknown or out of range; when training begins, options were given beside an optimizer
            that is wrapped already, or ``guard`` is given here and by ``per_trial``.

    Cost:
        That of the wrapper. Losses are summed on their device, and read when the trainer logs.

    Example:
        ``trainer = stabilize(Trainer(model, arguments, …), telemetry="runs/x")``, then
        ``trainer.train()``.
    """
    callbacks = getattr(getattr(trainer, "callback_handler", None), "callbacks", None)
    if callbacks is None:
        raise ConfigError(
            f"trainer={type(trainer).__name__} object must be a transformers.Trainer: build it "
            "first, then call stabilize(trainer)"
        )
    if any(isinstance(callback, StableTrainerCallback) for callback in callbacks):
        raise ConfigError(
            f"trainer={type(trainer).__name__} object has a StableTrainerCallback already: give "
            "all options at once, or call trainer.remove_callback(StableTrainerCallback) first"
        )
    StableTrainerCallback(**options).attach(trainer)
    return trainer


class StableTrainerCallback(StableCallbackBase, TrainerCallback):
    """What :func:`stabilize` does, as ``Trainer(…, callbacks=[StableTrainerCallback(…)])``.

    A ``Trainer`` gives its callbacks no reference to itself, so this one finds it on the call
    stack of the constructor. Training refuses to begin if it was added to the trainer later.

    Args:
        per_trial: In a hyperparameter search called with each trial, before its optimizer is
            made; returns options that are added to the others, e.g.
            :func:`stableopt.integrations.optuna.suggest_stability`. Its transforms replace those
            that move the same metric, and come after the others.
        prune: Called after each step with the trial of a search and the optimizer; may raise
            ``optuna.TrialPruned``, as :func:`stableopt.integrations.optuna.prune_on_instability`
            does.
        log: Whether the logs of the trainer get ``stable/…``.
        rewind_schedule: Whether a rollback restores the learning rate schedule, too.
        **options: Those of :class:`~stableopt.StableOptimizer`, but for ``optimizer`` and
            ``model``.

    Attributes:
        optimizer: The wrapper that trains, or trained last; ``None`` before the first training.

    Raises:
        ConfigError: As :func:`stabilize`; when training begins, the trainer was not found.

    Cost:
        As :func:`stabilize`.

    Example:
        >>> from stableopt.integrations.transformers import StableTrainerCallback
        >>> StableTrainerCallback(guards=None)
        Traceback (most recent call last):
            ...
        stableopt.errors.ConfigError: StableTrainerCallback option='guards' is not known: \
use one of compile, group, guard, sensors, telemetry, transforms; did you mean 'guard'?
    """

    def __init__(
        self,
        *,
        per_trial: Callable[[Any], Mapping[str, Any]] | None = None,
        prune: Callable[[Any, StableOptimizer], None] | None = None,
        log: bool = True,
        rewind_schedule: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(log, rewind_schedule, options)
        self._per_trial = per_trial
        self._prune = prune
        self._trainer: Any = None
        self._trial: Any = None
        self.optimizer: StableOptimizer | None = None
        self._ended = True
        self._loss: Tensor | None = None

    def attach(self, trainer: Any) -> None:
        """Wrap the optimizer of a trainer; :func:`stabilize` does this with a new callback.

        Args:
            trainer: A ``transformers.Trainer``, before ``train()``. The callback is added to its
                callbacks if it is not one of them.
        """
        if not self._is_among(trainer):
            trainer.add_callback(self)
        attached = vars(trainer).setdefault("_stable_callbacks", [])
        if any(callback is self for callback in attached):
            return
        attached.append(self)
        for name in ("create_optimizer", "training_step", "log", "train"):
            method = getattr(trainer, name)
            ours = partial(getattr(self, f"_{name}"), trainer, method)
            setattr(trainer, name, wraps(method)(ours))

    def _is_among(self, trainer: Any) -> bool:
        """Return whether this is a callback of a trainer, and was not removed."""
        handler = getattr(trainer, "callback_handler", None)
        return any(callback is self for callback in getattr(handler, "callbacks", ()))

    # events of the trainer

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach to the trainer whose constructor this is."""
        trainer = _trainer_under_construction(self)
        if trainer is not None:
            self.attach(trainer)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """Check that it is our wrapper that trains, and have rollbacks restore the scaler."""
        opt = stable_optimizer_of(optimizer)
        if opt is None or opt is not self.optimizer:
            raise ConfigError(
                f"optimizer={type(optimizer).__name__} object is not wrapped by "
                f"{type(self).__name__}, which was added to the trainer too late: call "
                "stabilize(trainer) before train(), or give the callback in "
                "Trainer(callbacks=[...])"
            )
        self._loss, self._mean = None, MeanLoss()
        self._track(opt, kwargs.get("lr_scheduler"), self._trainer.accelerator.scaler)
        self._warn_clipped("max_grad_norm", args.max_grad_norm, "set it to 0")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Observe the loss of the next step."""
        loss, self._loss = self._loss, None
        if self.optimizer is not None and loss is not None:
            self._mean.add(loss)
            self.optimizer.observe(loss=loss)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prune a trial, if ``prune`` decides so."""
        if self.optimizer is None or self._prune is None or self._trial is None:
            return
        try:
            self._prune(self._trial, self.optimizer)
        except Exception:
            # As the trainer does where it prunes: every callback closes what it has open.
            self._trainer.callback_handler.on_train_end(args, state, control)
            raise

    # methods of the trainer

    def _create_optimizer(
        self, trainer: Any, create: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        create(*args, **kwargs)
        if not self._is_among(trainer):
            self._let_go(trainer)
            return trainer.optimizer
        trainer.optimizer = self._wrapped(trainer.optimizer, trainer.model)
        return trainer.optimizer

    def _wrapped(self, optimizer: Any, model: Any) -> Any:
        known = stable_optimizer_of(optimizer)
        if known is not None and known is not self._made:
            return self._adopt(known, optimizer)
        if known is not None and not self._ended:
            return optimizer  # another attempt of the same training, with smaller batches
        bare = _unwrapped(optimizer)
        self.optimizer = self._made = StableOptimizer(bare, model=model, **self._options_now())
        self._ended = False
        if known is not None:
            # Trained before: the counts continue, the snapshots are of older weights.
            self.optimizer.load_state_dict(known.state_dict())
        return self.optimizer

    def _let_go(self, trainer: Any) -> None:
        """Give a trainer that we were removed from the optimizer that it made."""
        known = stable_optimizer_of(trainer.optimizer)
        if known is not None and known is self._made:
            known.close()
            trainer.optimizer = _unwrapped(trainer.optimizer)

    def _adopt(self, known: StableOptimizer, optimizer: Optimizer) -> Optimizer:
        """Use an optimizer that the user has wrapped."""
        per_trial = [] if self._per_trial is None else ["per_trial"]
        self._refuse_options(sorted(self._options) or per_trial)
        if known is self.optimizer:
            known.load_state_dict(known.state_dict())  # snapshots begin with the weights of now
        self.optimizer = known
        return optimizer

    def _options_now(self) -> dict[str, Any]:
        if self._per_trial is not None and self._trial is not None:
            chosen = check_options(type(self).__name__, self._per_trial(self._trial))
            return options_on_top(chosen, self._options)
        return self._options

    def _training_step(
        self, trainer: Any, training_step: Callable[..., Tensor], *args: Any, **kwargs: Any
    ) -> Tensor:
        loss = training_step(*args, **kwargs)
        if not self._is_among(trainer):
            return loss
        # The trainer has divided each by their number, or by all their tokens: the sum is the loss.
        part = loss.detach().float()
        self._loss = part if self._loss is None else self._loss + part
        return loss

    def _log(
        self, trainer: Any, log: Callable[..., None], logs: dict[str, float], *args: Any, **kw: Any
    ) -> None:
        wanted = self._logs and "loss" in logs and self._is_among(trainer)
        if wanted and self.optimizer is not None:
            logs = {**logs, **self._mean.take(), **stability_metrics(self.optimizer)}
        log(logs, *args, **kw)

    def _train(self, trainer: Any, train: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._is_among(trainer):
            self._let_go(trainer)
            return train(*args, **kwargs)
        self._trainer = trainer  # the one of several that trains
        self._trial = kwargs.get("trial", args[1] if len(args) > 1 else None)
        recorded: AbstractContextManager[None] = nullcontext()
        if hasattr(self._trial, "set_user_attr"):
            from stableopt.integrations.optuna import stable_trial

            recorded = stable_trial(self._trial, self)
        try:
            with recorded:
                try:
                    return train(*args, **kwargs)
                except DivergenceError:  # every callback closes what it has open
                    handler = trainer.callback_handler
                    handler.on_train_end(trainer.args, trainer.state, trainer.control)
                    raise
        finally:
            self._ended, self._trial = True, None
            if self._made is not None:
                self._made.close()


def _trainer_under_construction(callback: StableTrainerCallback) -> Any:
    """Return the trainer with this callback whose constructor is on the call stack, if any."""
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if callback._is_among(owner):
            return owner
        frame = frame.f_back
    return None


def _unwrapped(optimizer: Any) -> Any:
    """Return the optimizer inside the wrappers of accelerate and of stableopt."""
    while isinstance(optimizer, (AcceleratedOptimizer, StableOptimizer)):
        optimizer = optimizer.optimizer
    return optimizer
