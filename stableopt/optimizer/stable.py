"""StableOptimizer: what it adds to the optimizer that it wraps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.optim import Optimizer

from stableopt.config import checks, reader
from stableopt.errors import ConfigError
from stableopt.loop.step import StepLoop
from stableopt.optimizer.wrapper import Wrapper
from stableopt.ranks.group import Ranks
from stableopt.ranks.support import check_support

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    from torch import nn
    from torch.distributed import ProcessGroup

    from stableopt.guard import Guard
    from stableopt.sensors import Sensor, Sensors
    from stableopt.telemetry import Writer
    from stableopt.transforms import Transform
    from stableopt.types import Event, Reading, RiskLevel, Verdict


class StableOptimizer(Wrapper):
    """Wrap a torch optimizer; training stays bit-identical to it while nothing is wrong.

    Every call of :meth:`step` observes the loss and the gradients, judges them, and then does one
    of these:

    - takes the step of the inner optimizer, in the usual case;
    - takes it with gradients that are scaled down, if the loss or a gradient norm spikes;
    - skips it, if a gradient is NaN or Inf: parameters, optimizer state and, with ``model=``,
      buffers are as they were before the batch;
    - restores a snapshot, if weights, optimizer state or buffers are damaged: not finite, or out
      of all proportion;
    - restores the newest verified snapshot and raises :class:`~stableopt.DivergenceError`, if
      nothing of this helps.

    The wrapper is a :class:`torch.optim.Optimizer` for schedulers, gradient scalers and trainers.
    It shares ``param_groups``, ``state``, ``defaults`` and hooks with the inner one: either may be
    used to build a scheduler or to register a hook.

    Args:
        optimizer: Any :class:`torch.optim.Optimizer`, kept as ``self.optimizer``.
        model: The module it trains. Gives parameters their names in messages. With it, a skipped
            step also restores the buffers (BatchNorm statistics) that the forward pass has
            changed. Forward pre-hooks on modules with buffers note when that pass begins;
            :meth:`close` removes them.
        sensors: What is measured on the weights between steps: ``None`` for the default set,
            a list of sensors (empty for none), or :class:`~stableopt.sensors.Sensors` with a
            schedule of its own. Sensors change nothing.
        transforms: What changes gradients before a step that is taken, and weights after it, in
            this order. A parameter group may have its own: ``{"params": …, "transforms": […]}``;
            they act after these, and the key is taken out of the group.
        guard: ``None`` for the default :class:`~stableopt.Guard`, or ``False`` for none.
        telemetry: ``None``, a directory for ``telemetry.jsonl`` and ``summary.json``, or a
            writer or list of writers.
        compile: ``True`` to compile the inner update, in one graph that is not compiled again when
            the learning rate changes; or a dict of options for :func:`torch.compile` (``backend``,
            ``mode``, ``options``). What cannot be compiled (fused kernels, Adafactor) logs one
            warning, and runs as it is.
        group: The ranks that decide together, where there is a guard: ``None`` for all ranks of the
            job, a process group for its members (pipeline stages, one network per half of a job),
            ``False`` for this rank alone (independent trainings, e.g. of a sweep).

    Attributes:
        optimizer: The inner optimizer.

    Raises:
        ConfigError: ``optimizer`` is no torch optimizer, already wrapped or differentiable;
            ``model`` does not belong to it; an option is out of range; the telemetry
            directory cannot be written; several ranks cannot agree with such options.

    Cost:
        Memory: three snapshots of parameters, optimizer state and buffers (``Guard(slots=3)``);
        with ``model=`` one more copy of the buffers. ``opt.summary()["snapshots"]`` has the bytes;
        ``stableopt memory`` estimates them beforehand.

        Time: one read of the gradients and one host synchronisation per step; one read of weights
        and state per 20 steps; one snapshot per 100 steps; and the sensors, at most
        ``Sensors.budget`` of the training time.

    Example:
        >>> import torch
        >>> from stableopt import StableOptimizer
        >>> model = torch.nn.Linear(3, 1)
        >>> opt = StableOptimizer(torch.optim.AdamW(model.parameters(), lr=3e-4))
        >>> model(torch.ones(2, 3)).mean().backward()
        >>> opt.step()
        >>> opt.verdict.action.value
        'take'
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        model: nn.Module | None = None,
        sensors: Sensors | Iterable[Sensor] | None = None,
        transforms: Iterable[Transform] = (),
        guard: Guard | bool | None = None,
        telemetry: str | os.PathLike[str] | Writer | Sequence[Writer] | None = None,
        compile: bool | Mapping[str, Any] = False,  # noqa: A002 (what torch calls it)
        group: ProcessGroup | Literal[False] | None = None,
    ) -> None:
        # Optimizer.__init__ would add the groups again and empty the inner state.
        _refuse_wrapped(optimizer)
        self.optimizer = checks.check_optimizer(optimizer)
        self._take_its_name()
        options = reader.make_guard(guard)
        ranks = Ranks(group)
        if options is not None and ranks.expected() > 1:
            check_support(optimizer, lags=options.sync == "lagged")
        self._loop = StepLoop(
            optimizer,
            model=checks.check_model(model, optimizer),
            sensors=reader.make_sensors(sensors, options),
            guard=options,
            transforms=reader.make_transforms(transforms),
            telemetry=reader.make_telemetry(telemetry) if ranks.writes else None,
            compiles=checks.check_compile(compile, optimizer),
            transforms_of=reader.group_transforms,
            ranks=ranks,
        )
        self._close_at_exit()

    @classmethod
    def from_config(
        cls, optimizer: Optimizer, config: Mapping[str, Any], *, model: nn.Module | None = None
    ) -> StableOptimizer:
        """Build from a plain dict, as YAML or Hydra gives it.

        Args:
            optimizer: The optimizer to wrap.
            config: Any of ``preset`` (the name of one of :mod:`stableopt.presets`, on top of which
                the rest is set), ``sensors`` (``False`` for none, or a dict of
                :class:`~stableopt.sensors.Sensors` options), ``guard`` (a dict of
                :class:`~stableopt.Guard` options, or ``False``), ``transforms`` (a list of
                ``{name: options}``), ``telemetry`` (a directory, or
                ``{"directory": …, "every": …}``), ``compile``.
            model: As in the constructor.

        Raises:
            ConfigError: A key or option is unknown, or a value is out of range.

        Example:
            >>> import torch
            >>> opt = StableOptimizer.from_config(
            ...     torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1),
            ...     {"guard": {"max_skips": 3}, "telemetry": None},
            ... )
            >>> guard = opt.summary()["guard"]
            >>> guard["max_skips"]
            3
        """
        return cls(optimizer, model=model, **reader.arguments_from(config))

    # What stableopt adds

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def observe(self, **signals: Any) -> None:
        """Pass the loss, and other signals, to the next :meth:`step`.

        May be called many times before a step. ``loss`` is averaged over the calls, is NaN or
        infinite if one of them is, and takes the place of the closure's loss. Any other signal
        keeps its last value and is recorded by the telemetry. The next step consumes them all.

        Args:
            **signals: Numbers, tensors of any shape, dicts of these, or ``None`` for not
                observed.

        Raises:
            ConfigError: A value is none of these.

        Cost:
            No host synchronisation here; the loss joins that of the step.
        """
        self._loop.settle(lagged=False)
        loss = self._loop.signals.add(signals, self.param_groups)
        if loss is not None and self._loop.skips_losses:
            self._loop.traced.note_loss(loss)

    def track(self, **items: Any) -> None:
        """Have a rollback restore objects together with the weights.

        A scheduler, a gradient scaler, an EMA, generators, a stateful data loader: anything
        with ``state_dict`` and ``load_state_dict``, a module, a generator of torch, Python or
        numpy, or a list of these. Global random states and, with ``model=``, buffers are restored
        without being tracked. A learning rate is restored only if its scheduler is. A copy or
        a pickle of the optimizer tracks nothing.

        Args:
            **items: Objects by name. ``None`` ends the tracking of a name; for a scheduler or a
                scaler it also means that none is to be tracked, and no warning is logged. What is
                called ``dataloader`` or ``generators`` is restored only in the first rollback of an
                episode, so that a batch that fails twice is not drawn a third time.

        Raises:
            ConfigError: An object has no state; nothing of the call is then tracked. There
                is no guard.

        Cost:
            A copy of their state with every snapshot.

        Example:
            >>> import torch
            >>> opt = StableOptimizer(torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1))
            >>> opt.track(scheduler=torch.optim.lr_scheduler.ExponentialLR(opt, 0.9))
            >>> print(*opt.summary()["tracked"])
            scheduler
        """
        self._loop.require_guard("track()").tracked.add(items)

    def snapshot(self) -> None:
        """Ask for a snapshot after the next step that is taken.

        It is kept until the next one that is asked for. :meth:`rollback` may restore it at once,
        the guard once it is verified.

        Raises:
            ConfigError: There is no guard, or it has no slots.
        """
        self._loop.want_snapshot()

    def rollback(self, reason: str = "no reason given") -> None:
        """Ask for a rollback at the next step, whatever that step brings.

        The newest snapshot that is verified or that was asked for is restored. The learning
        rate stays as it is, and the rollback counts against no limit.

        Args:
            reason: Why; goes to the ledger.

        Raises:
            ConfigError: There is no guard, or it has no slots.
        """
        self._loop.want_rollback(reason)

    @property
    def verdict(self) -> Verdict | None:
        """What was decided about the last step and why; ``None`` before the first."""
        self._loop.settle()
        return self._loop.verdict

    @property
    def ledger(self) -> tuple[Event, ...]:
        """Every intervention and every rise of the risk so far, oldest first."""
        self._loop.settle()
        return tuple(self._loop.recorder.ledger.entries)

    @property
    def readings(self) -> Mapping[str, Mapping[str, Reading]]:
        """The newest reading of every metric of every weight, by name and metric."""
        sensing = self._loop.sensing
        weights = {} if sensing is None else sensing.weights
        return {name: dict(health.readings) for name, health in weights.items()}

    @property
    def risk(self) -> RiskLevel | None:
        """The risk of spectral collapse; ``None`` before the first readings."""
        return self._loop.risk

    @property
    def is_stable(self) -> bool:
        """Whether the run has been calm for ``Guard.cooldown`` calls of :meth:`step`.

        A call is calm if nothing intervened, no :class:`~stableopt.SignalRule` holds (or has NaN as
        its signal), no episode of rollbacks is open, and :attr:`risk` is below ``WARNING``. One
        call that is not ends it. Ask it before a curriculum escalates: see
        :class:`~stableopt.StabilityGate`. A run that has just begun is not stable yet.
        """
        self._loop.settle()
        return self._loop.recorder.stability.is_stable

    def summary(self) -> dict[str, Any]:
        """Return what happened so far as a dict of plain values.

        Among them ``integrity``: ``"OK"`` while no known fault remains (skipped and undone steps
        are none), ``"COMPROMISED"`` once the run was stopped, something that is tracked could not
        be restored, or 32 losses in a row were not finite; ``"UNCHECKED"`` with ``guard=False``.
        ``ledger`` lists the newest hundred interventions.
        """
        self._loop.settle()
        return self._loop.summary()

    def close(self) -> None:
        """Write the last summary and close the telemetry; the optimizer remains usable.

        Hooks on the model are removed. It is also called at garbage collection and at interpreter
        exit; a second call does nothing. The status of the last summary is ``"closed"``;
        ``"stopped"`` if the guard has stopped the run; ``"interrupted"`` or ``"failed"`` if a
        ``KeyboardInterrupt`` or another exception is being handled, or has ended the program. Exits
        with code 0, ``StopIteration`` and Optuna's ``TrialPruned`` are no failure.
        """
        if (telemetry := self._loop.recorder.telemetry) is not None:
            telemetry.ending.note()
        self._loop.close()


def _refuse_wrapped(optimizer: object) -> None:
    seen = optimizer
    while isinstance(seen, Optimizer):
        if isinstance(seen, StableOptimizer):
            raise ConfigError(
                f"optimizer={type(optimizer).__name__} object is wrapped in a StableOptimizer "
                "already: wrap the bare optimizer once"
            )
        seen = seen.__dict__.get("optimizer")
