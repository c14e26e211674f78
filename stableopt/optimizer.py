"""StableOptimizer: a torch optimizer that owns nothing of the one it wraps."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from stableopt.config import checks, reader
from stableopt.errors import ConfigError
from stableopt.loop.step import StepLoop

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import nn

    from stableopt.guard import Guard
    from stableopt.sensors import Sensor, Sensors
    from stableopt.telemetry import Writer
    from stableopt.transforms import Transform
    from stableopt.types import Event, Reading, RiskLevel, Verdict


KEY = "stableopt"
"""The key of what is ours in the optimizer's state dict."""


class _Inner:
    """An attribute that lives in the inner optimizer: read and written there, never here."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, wrapper: StableOptimizer | None, owner: type) -> Any:
        return self if wrapper is None else getattr(wrapper.optimizer, self._name)

    def __set__(self, wrapper: StableOptimizer, value: Any) -> None:
        setattr(wrapper.optimizer, self._name, value)


class StableOptimizer(Optimizer):
    """Wrap a torch optimizer; training stays bit-identical to it while nothing is wrong.

    Every call of :meth:`step` observes the loss and the gradients, judges them, and either
    takes the step of the inner optimizer or leaves everything as it was. A NaN or Inf in a
    gradient skips the step: parameters, optimizer state and, with ``model=``, buffers stay
    untouched, so that the batch never happened. Gradients that spike are scaled down. Weights,
    optimizer state or buffers that are damaged are restored from a snapshot in memory; where that
    does not help the run ends with :class:`~stableopt.DivergenceError`.

    The wrapper is a true :class:`torch.optim.Optimizer` for schedulers, gradient scalers
    and trainers, and shares ``param_groups``, ``state``, ``defaults`` and hooks with the
    inner one: either may be used to build a scheduler or to register a hook.

    Args:
        optimizer: Any :class:`torch.optim.Optimizer`, kept as ``self.optimizer``.
        model: The module it trains. Gives parameters their names in messages, and lets a
            skipped step restore the buffers (BatchNorm statistics) that its forward pass
            has already changed, to what they were before it. Hooks on modules with buffers
            see when that pass begins; :meth:`close` removes them.
        sensors: What is measured on the weights between steps: ``None`` for the default set,
            a list of sensors (empty for none), or :class:`~stableopt.sensors.Sensors` with a
            schedule of its own. They read; they change nothing.
        transforms: What changes gradients before a step that is taken, and weights after it, in
            this order. A parameter group may have its own: ``{"params": …, "transforms": […]}``;
            they act after these, and the key is taken out of the group.
        guard: ``None`` for the default :class:`~stableopt.Guard`, or ``False`` for none.
        telemetry: ``None``, a directory for ``telemetry.jsonl`` and ``summary.json``, or a
            writer or list of writers.
        compile: ``True`` to have the inner update compiled, in one graph that no learning rate
            breaks, while all that is decided about it stays Python; or a dict of options for
            :func:`torch.compile` (``backend``, ``mode``, ``options``). What cannot be traced (fused
            kernels, Adafactor) says so once, and runs as it is.

    Attributes:
        optimizer: The inner optimizer.

    Raises:
        ConfigError: ``optimizer`` is no torch optimizer, already wrapped or differentiable;
            ``model`` does not belong to it; an option is out of range; the telemetry
            directory cannot be written; several ranks without ``guard=False``.

    Cost:
        Time: one read of the gradients and one host synchronisation per step; one scan of weights
        and state in 20 steps; one copy of them every 100 steps. Memory: ``Guard.slots`` (3) copies
        of parameters, optimizer state and buffers; with ``model=`` one more copy of the buffers.

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

    param_groups = _Inner()
    state = _Inner()
    defaults = _Inner()
    _optimizer_step_pre_hooks = _Inner()
    _optimizer_step_post_hooks = _Inner()
    _optimizer_state_dict_pre_hooks = _Inner()
    _optimizer_state_dict_post_hooks = _Inner()
    _optimizer_load_state_dict_pre_hooks = _Inner()
    _optimizer_load_state_dict_post_hooks = _Inner()

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
    ) -> None:
        # Optimizer.__init__ would add the groups again and empty the inner state.
        _refuse_wrapped(optimizer)
        self.optimizer = checks.check_optimizer(optimizer)
        self._take_its_name()
        options = reader.make_guard(guard)
        if options is not None:
            checks.check_single_process(optimizer)
        self._loop = StepLoop(
            optimizer,
            model=checks.check_model(model, optimizer),
            sensors=reader.make_sensors(sensors, options),
            guard=options,
            transforms=reader.make_transforms(transforms),
            telemetry=reader.make_telemetry(telemetry),
            compiles=checks.check_compile(compile, optimizer),
            transforms_of=reader.group_transforms,
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
        """Tell the next :meth:`step` what is known about it.

        May be called many times before a step. ``loss`` is averaged over the calls and a
        value that is not finite wins; it takes the place of the closure's loss. Any other
        signal keeps its last value and goes to the telemetry. Everything is consumed by
        the next step.

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
            self._loop.traced.hear(loss)

    def track(self, **items: Any) -> None:
        """Have objects go back together with the weights in a rollback.

        A scheduler, a gradient scaler, an EMA, generators, a stateful data loader: anything
        with ``state_dict`` and ``load_state_dict``, a module, a generator of torch, Python or
        numpy, or a list of these. Global random states and, with ``model=``, buffers go back
        without being tracked. A learning rate goes back only if its scheduler does. A copy or
        a pickle of the optimizer tracks nothing.

        Args:
            **items: Objects by name; ``None`` ends the tracking of a name, and says of a
                scheduler or a scaler that it is meant to stay as it is. What is called
                ``dataloader`` or ``generators`` goes back in the first rollback of an
                episode alone, so that a batch that fails twice is passed by.

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

        It is kept until the next one that is asked for, and a place to go back to for
        :meth:`rollback` at once, for the guard once it is verified.

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
        """How much the run is in danger of spectral collapse; ``None`` while nothing is known."""
        return self._loop.risk

    @property
    def is_stable(self) -> bool:
        """Whether the run has been calm for ``Guard.cooldown`` calls of :meth:`step`.

        Calm is a call at which nothing intervened, no :class:`~stableopt.SignalRule` holds (or
        was told NaN), no episode of rollbacks is open, and :attr:`risk` is below ``WARNING``. It
        is lost at once and regained slowly: what a curriculum asks before it escalates, see
        :class:`~stableopt.StabilityGate`. A run that has just begun is not stable yet.
        """
        self._loop.settle()
        return self._loop.recorder.stability.is_stable

    def summary(self) -> dict[str, Any]:
        """Return what happened so far as a dict of plain values.

        Among them ``integrity``: ``"OK"`` while nothing harmful remained (skipped steps
        included), ``"COMPROMISED"`` once the run was stopped, its weights were found not to
        be finite or it trains on a loss that is not, ``"UNCHECKED"`` where ``guard=False``
        left nobody to know. ``ledger`` lists the newest hundred interventions.
        """
        self._loop.settle()
        return self._loop.summary()

    def close(self) -> None:
        """Write the last summary and close the telemetry; the optimizer remains usable.

        Hooks on the model are removed. Done at garbage collection and at interpreter exit for those
        who forget; a second call does nothing. The status of the
        last summary is ``"closed"``, ``"stopped"`` if the guard has stopped the run, and otherwise
        ``"interrupted"`` or ``"failed"`` where this is called while a ``KeyboardInterrupt`` or
        another exception is handled, in an ``except`` or a ``finally``, or where that ended the
        program. Exits with code 0, ``StopIteration`` and Optuna's ``TrialPruned`` are no failure.
        """
        if (telemetry := self._loop.recorder.telemetry) is not None:
            telemetry.ending.note()
        self._loop.close()

    # The torch contract

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step of the inner optimizer, or leave everything as it was.

        Args:
            closure: Reevaluates the model and returns the loss. It is evaluated before the
                inner step (and before its hooks), also when the step is then skipped.

        Returns:
            The closure's loss, else what the inner optimizer returns.

        Raises:
            DivergenceError: Rollbacks did not help, or were used up: the run cannot go on.
        """
        compiling = torch.compiler.is_dynamo_compiling()  # the other one asks for all threads
        if compiling and closure is None and not self._loop.traced.obstacle:
            return self._loop.traced()
        return self._eager_step(closure, compiling)

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def _eager_step(self, closure: Callable[[], Any] | None, compiling: bool) -> Any:
        if compiling:
            self._loop.warn_untraced()
        return self._loop(closure)

    # The inner step fires the global hooks, so torch must not add them to this one; and a
    # scheduler must not replace it on the instance, where a copy would step the original.
    step.hooked = True  # type: ignore[attr-defined]
    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of all parameters, as the inner optimizer does."""
        if torch.compiler.is_dynamo_compiling():
            self.optimizer.zero_grad(set_to_none=set_to_none)
            return
        self._loop.settle(lagged=False)
        self.optimizer.zero_grad(set_to_none=set_to_none)
        self._loop.signals.end_batch()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group to the inner optimizer, with transforms of its own if it has some.

        Raises:
            ConfigError: A transform cannot work with it; the group is then not added.
        """
        checks.check_group(param_group)
        self._loop.settle()
        transforms = reader.group_transforms(param_group)
        self._loop.wait()
        bare = {key: value for key, value in param_group.items() if key != "transforms"}
        self.optimizer.add_param_group(bare)
        try:
            self._loop.add_transforms(transforms, len(self.param_groups) - 1)
        except BaseException:
            self.param_groups.pop()
            raise

    def state_dict(self) -> dict[str, Any]:
        """Return the inner optimizer's state dict, with our clocks beside it.

        A bare optimizer loads it as well; it is plain data (``weights_only=True``).
        """
        self._loop.wait()
        self._loop.settle()
        return {**self.optimizer.state_dict(), KEY: self._loop.register.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of a wrapped or of a bare optimizer."""
        load = self._loop.prepare(state_dict.get(KEY, {}))  # refuses before anything moves
        self._loop.settle()
        self._loop.wait()
        inner = {key: value for key, value in state_dict.items() if key != KEY}
        self.optimizer.load_state_dict(inner)
        load()

    @property
    def train(self) -> Any:
        """The inner optimizer's ``train``; absent if it has none (schedule-free ones do)."""
        return self._inner_method("train")

    @property
    def eval(self) -> Any:
        """The inner optimizer's ``eval``; absent if it has none."""
        return self._inner_method("eval")

    def _inner_method(self, name: str) -> Any:
        self._loop.wait()
        method = getattr(self.optimizer, name, None)
        if method is None:
            raise AttributeError(f"{type(self.optimizer).__name__} has no {name}()")
        return method

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Tell GradScaler to unscale first, so that true gradients are judged.

        Only when it has stopped calling :meth:`step` because the weights are not finite
        themselves is it told to call regardless: a rollback needs no gradients.
        """
        # If it decides against this batch, nobody will step on it.
        self._loop.signals.end_batch()
        return self._loop.scaler.must_step()

    @property
    def _opt_called(self) -> bool:
        """Tell schedulers whether a step was called before theirs."""
        return self._loop.called or self._loop.traced.called

    @_opt_called.setter
    def _opt_called(self, value: bool) -> None:
        self._loop.called = value

    def __getattr__(self, name: str) -> Any:
        """Point to the inner optimizer: delegating blindly would leak what is not ours."""
        inner = self.__dict__.get("optimizer")
        hint = ""
        if inner is not None and not name.startswith("__") and hasattr(inner, name):
            hint = f"; the wrapped {type(inner).__name__} has it: use .optimizer.{name}"
        raise AttributeError(f"'StableOptimizer' object has no attribute {name!r}{hint}")

    def __repr__(self) -> str:
        return f"StableOptimizer(guard={self._loop.guard or False!r}, {self.optimizer!r})"

    def __eq__(self, other: object) -> bool:
        """Be equal to the inner optimizer: whoever follows ``.optimizer`` has met this one."""
        return other is self or other is self.__dict__.get("optimizer", self)

    __hash__ = Optimizer.__hash__

    def _take_its_name(self) -> None:
        """Be of a class that is called like that of the inner optimizer: trackers name by it."""
        self.__class__ = _class_like(type(self), type(self.optimizer))

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Be found by the class that has a module, and not by that which only has a name."""
        return _empty, (getattr(type(self), "_wraps_with", type(self)),), self.__getstate__()

    def __getstate__(self) -> dict[str, Any]:
        """Give copies and pickles everything but the writers."""
        self._loop.settle()
        return {"optimizer": self.optimizer, "loop": self._loop}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A model that holds its optimizer is not filled yet: nothing here may look at it.
        self.optimizer = state["optimizer"]
        self._take_its_name()
        self._loop = state["loop"]
        self._close_at_exit()

    def _close_at_exit(self) -> None:
        # Weakly: what is tracked may hold this optimizer, and would never be let go.
        self._finalizer = weakref.finalize(self, _close, weakref.ref(self._loop))

    def __del__(self) -> None:
        """Close what the collector found in a cycle: its weak references are dead by now."""
        loop = self.__dict__.get("_loop")
        if loop is not None:
            loop.close()


_classes: dict[tuple[type, type], type[StableOptimizer]] = {}


def _class_like(wrapper: type[StableOptimizer], inner: type) -> type[StableOptimizer]:
    """Return a class of wrappers that has the name of the inner optimizer's."""
    base = getattr(wrapper, "_wraps_with", wrapper)
    if (base, inner) not in _classes:
        known = {"_wraps_with": base, "__module__": base.__module__, "__doc__": base.__doc__}
        _classes[base, inner] = type(inner.__name__, (base,), known)
    return _classes[base, inner]


def _empty(wrapper: type[StableOptimizer]) -> StableOptimizer:
    return wrapper.__new__(wrapper)


def _close(loop: weakref.ref[StepLoop]) -> None:
    alive = loop()
    if alive is not None:
        alive.close()


def _refuse_wrapped(optimizer: object) -> None:
    seen = optimizer
    while isinstance(seen, Optimizer):
        if isinstance(seen, StableOptimizer):
            raise ConfigError(
                f"optimizer={type(optimizer).__name__} object is wrapped in a StableOptimizer "
                "already: wrap the bare optimizer once"
            )
        seen = seen.__dict__.get("optimizer")
