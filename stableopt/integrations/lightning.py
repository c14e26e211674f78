"""A ``StableOptimizer`` in the ``Trainer`` of Lightning, as a callback."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stableopt.errors import ConfigError, MissingExtraError
from stableopt.integrations.trainers import (
    MeanLoss,
    StableCallbackBase,
    stability_metrics,
    stable_optimizer_of,
)
from stableopt.optimizer import StableOptimizer

try:
    from lightning.pytorch import Callback
except ImportError as error:
    raise MissingExtraError("stableopt.integrations.lightning", "lightning") from error

if TYPE_CHECKING:
    from torch import Tensor


class StableCallback(StableCallbackBase, Callback):
    """Wrap the optimizer of a ``LightningModule`` once it is configured.

    With ``Trainer(…, callbacks=[StableCallback(telemetry="runs/x")])`` the optimizer that
    ``configure_optimizers`` returned is wrapped in ``on_fit_start``, before a checkpoint is loaded
    into it. A ``StableOptimizer`` is used as it is. Training stays bit-identical while nothing is
    wrong.

    - The loss that is judged is that of every micro-batch as ``training_step`` returned it, also
      in mixed precision and in manual optimization, where the step has no closure.
    - The loggers get ``stable/loss`` (the mean of the unfiltered loss since the last log),
      ``stable/skips``, ``stable/tamed``, ``stable/rollbacks``, ``stable/step``,
      ``stable/lr_scale`` and ``stable/risk``, every ``log_every_n_steps``.
    - A rollback restores weights, optimizer state, buffers, random states and the gradient
      scaler. ``global_step``, the data and the learning rate schedules continue: the trainer stops
      after a number of batches, so a schedule that is restored would not reach its end.
    - ``DivergenceError`` leaves ``fit()`` with the newest verified weights in the module, after
      ``on_exception`` of every callback: ``ModelCheckpoint(save_on_exception=True)`` saves them.

    Wrap several optimizers (manual optimization) in ``configure_optimizers``, each with the part of
    the module that it trains, and call ``observe()`` with the loss of each.

    Args:
        log: Whether the loggers of the trainer get ``stable/…``.
        rewind_schedule: Whether a rollback restores the learning rate schedule, too.
        **options: Those of :class:`~stableopt.StableOptimizer`, but for ``optimizer`` and
            ``model``.

    Raises:
        ConfigError: An option is unknown or out of range; when training begins, there are several
            optimizers that are not wrapped, or options beside one that is.

    Cost:
        That of the wrapper. Losses are summed on their device, and read when they are logged.

    Example:
        >>> from stableopt.integrations.lightning import StableCallback
        >>> print(StableCallback(sensors=()).optimizer)
        None
    """

    def __init__(self, *, log: bool = True, rewind_schedule: bool = False, **options: Any) -> None:
        super().__init__(log, rewind_schedule, options)
        self._opts: tuple[StableOptimizer, ...] = ()
        self._alone = True
        self._stepped = 0

    @property
    def optimizer(self) -> StableOptimizer | None:
        """The wrapper that trains, or trained last; ``None`` if there is none, or several."""
        return self._opts[0] if len(self._opts) == 1 else None

    # hooks of the trainer

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Wrap the optimizer, and have rollbacks restore the gradient scaler."""
        strategy = trainer.strategy
        if not any(optimizer.param_groups for optimizer in strategy.optimizers):
            raise ConfigError(
                "configure_optimizers() returned no optimizer with parameters for "
                f"{type(self).__name__} to wrap: return one, or leave the callback out"
            )
        self._alone = len(strategy.optimizers) == 1
        if self._alone:
            strategy.optimizers = [self._wrapped(strategy.optimizers[0], pl_module)]
        found = [stable_optimizer_of(optimizer) for optimizer in strategy.optimizers]
        if not any(found) or (self._options and not self._alone):
            raise ConfigError(
                f"optimizers={len(found)} must be wrapped in configure_optimizers, each with its "
                "options and with model= the part of the module that it trains"
            )
        self._opts = tuple(opt for opt in found if opt is not None)
        self._mean = MeanLoss()
        configs = trainer.lr_scheduler_configs
        for opt in self._opts:
            mine = [c.scheduler for c in configs if c.scheduler.optimizer in (opt, opt.optimizer)]
            for scheduler in mine:
                scheduler.optimizer = opt  # a scheduler checks that its optimizer stepped first
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            self._track(opt, mine, scaler)
        self._warn_clipped("gradient_clip_val", trainer.gradient_clip_val, "leave it out")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Count steps from those of the checkpoint."""
        self._stepped = trainer.global_step

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Observe the loss of a micro-batch, without the factors of its backward pass."""
        if not self._alone or self.optimizer is None:
            return  # which of several optimizers the loss belongs to is unknown
        loss = loss.detach().float()
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            loss = loss / scaler.get_scale()
        if pl_module.automatic_optimization:
            loss = loss * trainer.accumulate_grad_batches
        self._mean.add(loss)
        self.optimizer.observe(loss=loss)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log if the trainer does."""
        stepped, self._stepped = trainer.global_step != self._stepped, trainer.global_step
        due = stepped and trainer._logger_connector.should_update_logs
        if not (due and self._logs and self._opts):
            return
        metrics = {**self._mean.take(), **self._metrics()}
        for target in trainer.loggers:
            target.log_metrics(metrics, step=trainer.fit_loop.epoch_loop._batches_that_stepped)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Write the last summary of a run that failed."""
        self._close()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Write the last summary."""
        if stage == "fit":
            self._close()

    # ours

    def _wrapped(self, optimizer: Any, pl_module: Any) -> Any:
        known = stable_optimizer_of(optimizer)
        if known is not None:
            self._refuse_options(sorted(self._options))
            return optimizer
        self._made = StableOptimizer(optimizer, model=pl_module, **self._options)
        return self._made

    def _metrics(self) -> dict[str, float]:
        """Return the metrics of the optimizer, or of each by its number."""
        if len(self._opts) == 1:
            return stability_metrics(self._opts[0])
        return {
            key.replace("stable/", f"stable/{number}/"): value
            for number, opt in enumerate(self._opts)
            for key, value in stability_metrics(opt).items()
        }

    def _close(self) -> None:
        made, self._made = self._made, None
        if made is not None:
            made.close()
