"""What the loop is made of, and what it remembers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stableopt.errors import ConfigError
from stableopt.health.judge import Judge
from stableopt.health.spectra.sensed import Sensed
from stableopt.health.spectra.sensing import Sensing
from stableopt.health.stability import COOLDOWN
from stableopt.loop.checkpoint import Register
from stableopt.loop.decide import Decider
from stableopt.loop.in_flight import InFlight, check_lagged
from stableopt.loop.record import Recorder
from stableopt.loop.restore import Restorer
from stableopt.loop.scaler import ScalerWatch
from stableopt.loop.take import Take
from stableopt.ranks.replicas import Replicas
from stableopt.runtime.once import warn_once
from stableopt.runtime.storage import has_data
from stableopt.sensors.gradients import measure_gradients
from stableopt.sensors.signals import Signals
from stableopt.snapshots.buffers import BufferShadow
from stableopt.snapshots.keeper import Keeper
from stableopt.snapshots.tracked import Tracked
from stableopt.telemetry.setup import hyperparameters
from stableopt.telemetry.summary import summarize
from stableopt.transforms.chain import Transforming
from stableopt.update.compiled import CompiledUpdate
from stableopt.update.eager import EagerUpdate
from stableopt.update.option_watch import OptionWatch
from stableopt.update.traced import TracedStep

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn
    from torch.optim import Optimizer

    from stableopt.guard import Guard
    from stableopt.ranks.group import Ranks
    from stableopt.sensors import Sensors
    from stableopt.telemetry.dispatch import Dispatcher
    from stableopt.transforms import Transform
    from stableopt.types import GradientNorms, RiskLevel, Verdict
    from stableopt.update.eager import Update


class Parts:
    """Puts the parts together.

    Args:
        optimizer: The inner optimizer.
        model: Gives names, and buffers to protect.
        sensors: What is measured between steps; ``None`` for nothing.
        guard: Its options; ``None`` takes every step unjudged.
        transforms: What changes gradients and weights in a step that is taken, in order; those
            that parameter groups bring come after them.
        telemetry: Where events go.
        compiles: Options of ``torch.compile`` for the inner update; ``None`` not to compile it.
        transforms_of: Returns the transforms that a parameter group has brought.
        ranks: Those that take one verdict.

    Attributes:
        verdict: What was decided about the last step.
        called: Whether a step was called.
        signals: What :meth:`~stableopt.StableOptimizer.observe` was given.
        sensing: Measures weights between steps; ``None`` without sensors.
        transforms: Change gradients and weights in a step that is taken.
        update: Takes the inner step: eager, fused or compiled.
        traced: Takes it inside a graph that is compiled from outside.
        take: Takes it with its closure, where it is given one.
        options: Notes what the inner step changes in its own options.
        in_flight: The step that was taken last, while it is not judged.
        decider: Judges and decides; ``None`` with ``guard=False``.
        shares: Factors on gradient norms, where ranks hold other parts of the model.
        restorer: Restores; ``None`` with ``guard=False``.
        guarded: Both of these.
        ranks: Those that take one verdict.
        recorder: Ledger and telemetry.
        register: What is remembered, for checkpoints and snapshots.
        scaler: Counts how often a gradient scaler asks before it steps.
        said: The warnings that were logged.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        model: nn.Module | None,
        sensors: Sensors | None,
        guard: Guard | None,
        transforms: Sequence[Transform],
        telemetry: Dispatcher | None,
        compiles: Mapping[str, Any] | None = None,
        transforms_of: Callable[[Mapping[str, Any]], Sequence[Transform]],
        ranks: Ranks,
    ) -> None:
        self.optimizer = optimizer
        self.model = model
        self.guard = guard
        self.ranks = ranks
        self.transforms_of = transforms_of
        self.verdict: Verdict | None = None
        self.shares: Mapping[tuple[int, int], float] | None = None
        self.called = False
        self.said: set[object] = set()
        self.no_readings = Sensed()
        self.lags = guard is not None and guard.sync == "lagged"
        self.skips_losses = guard is not None and guard.skips_losses
        self._hyperparameters = hyperparameters(optimizer)

        # observe
        acts = guard is not None and guard.answers_risk
        agrees = guard is not None and not ranks.alone
        self.signals = Signals()
        self.sensing = (
            None
            if sensors is None
            else Sensing(optimizer, model, sensors, ranks, acts=acts, agrees=agrees)
        )
        self.transforms = Transforming(optimizer, model, self.sensing, agrees=agrees)
        self.transforms.add(transforms)
        # act
        self.traced = TracedStep(optimizer)
        self.update: Update = EagerUpdate(optimizer)
        self.compiled: CompiledUpdate | None = None
        if compiles is not None:
            inside = self.traced if self.lags and not self.traced.obstacle else None
            self.update = self.compiled = CompiledUpdate(optimizer, compiles, inside)
        self.take = Take(optimizer, self.update, self.signals, self.transforms)
        self.options = OptionWatch()
        self.in_flight = InFlight(self.traced)
        # record
        cooldown = COOLDOWN if guard is None else guard.cooldown
        self.recorder = Recorder(optimizer, telemetry, cooldown, ranks)
        self.register = Register()
        # judge, decide, and restore
        self.decider: Decider | None = None
        self.restorer: Restorer | None = None
        self.guarded: tuple[Decider, Restorer] | None = None
        if guard is not None:
            self._add_guard(guard, model)
        self._fill_register()
        self.scaler = ScalerWatch(self.restorer, self.ranks)
        if self.lags and guard is not None:
            check_lagged(optimizer, guard, self.update, transforms=bool(self.transforms))
        self.adopt_group_transforms()
        self.look_at_graph()

    def _add_guard(self, guard: Guard, model: nn.Module | None) -> None:
        buffers, tracked = None if model is None else BufferShadow(model), Tracked()
        judge = Judge(self.optimizer, model, buffers, guard, tracked)
        replicas = Replicas(self.optimizer, model, self.ranks, guard.scan_period)
        keeper = Keeper(self.optimizer, guard, judge, buffers, tracked, self.ranks, replicas)
        ledger = self.recorder.ledger
        self.decider = Decider(
            self.optimizer,
            guard,
            judge,
            keeper,
            self.sensing,
            self.ranks,
            ledger,
            replicas,
            self.transforms,
        )
        self.restorer = Restorer(
            self.optimizer,
            self.register,
            judge,
            keeper,
            buffers,
            tracked,
            self.options,
            replicas,
            model,
        )
        self.guarded = self.decider, self.restorer

    def _fill_register(self) -> None:
        """List what is remembered: in checkpoints, and what a rollback restores."""
        self.register.add("clocks", self.recorder.ledger, restored=False)
        self.register.add("stability", self.recorder.stability, restored=False)
        if self.decider is not None:
            self.register.add("policy", self.decider.policy, restored=False)
            self.register.add("spikes", self.decider.detectors.spikes, restored=True)
            self.register.add("rules", self.decider.rules, restored=True)
        if self.sensing is not None:
            self.register.add("sensors", self.sensing, restored=True)
        self.register.add("transforms", self.transforms, restored=True)

    # what the optimizer shows

    @property
    def steps(self) -> int:
        """Steps taken so far, those that were undone not counted."""
        return self.recorder.ledger.steps

    @property
    def risk(self) -> RiskLevel | None:
        """The level that the sensors say the run is at; ``None`` while nothing is known."""
        assessment = None if self.sensing is None else self.sensing.assessment
        return None if assessment is None else assessment.level

    @property
    def lr_scale(self) -> float:
        """Our factor on the learning rates."""
        return 1.0 if self.decider is None else self.decider.policy.lr_scale

    def require_guard(self, what: str) -> Restorer:
        """Return what keeps snapshots, for a request of the user.

        Raises:
            ConfigError: There is no guard.
        """
        if self.restorer is None:
            raise ConfigError(f"guard=False leaves {what} nothing to work with: use a guard")
        return self.restorer

    def want_snapshot(self) -> None:
        """Take a snapshot after the next step that is taken, and keep it."""
        restorer = self.require_guard("snapshot()")
        restorer.require_snapshots("snapshot()")
        restorer.keeper.wanted = True

    def want_rollback(self, reason: str) -> None:
        """Roll back at the next step, whatever it brings."""
        self.require_guard("rollback()").require_snapshots("rollback()")
        if self.decider is not None:
            self.decider.manual = reason

    def wait(self) -> None:
        """Return once nothing reads the weights any more."""
        if self.sensing is not None:
            self.sensing.wait()

    def prepare(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Return what assigns the state of a checkpoint; what it lacks starts again.

        Raises:
            ConfigError: No ``state_dict()`` of ours has written it; nothing has changed.
        """
        assign = self.register.prepare(state)

        def load() -> None:
            assign()
            if self.restorer is not None:
                self.restorer.accept()

        return load

    def summary(self, status: str | None = None, ended_by: str | None = None) -> dict[str, Any]:
        """Return what :meth:`stableopt.StableOptimizer.summary` promises."""
        groups = self.optimizer.param_groups
        setup = {
            "optimizer": type(self.optimizer).__name__,
            "hyperparameters": self._hyperparameters,
            "parameters": sum(p.numel() for g in groups for p in g["params"] if has_data(p)),
            "guard": False if self.guard is None else self.guard.as_config(),
            "transforms": self.transforms.summary(),
            "sensors": False if self.sensing is None else self.sensing.summary(),
            "compiled": self.compiled is not None and (self.compiled.reason or True),
        }
        if self.guarded is not None:
            decider, restorer = self.guarded
            setup |= {
                "lr_scale": self.lr_scale,
                "rollbacks_left": decider.policy.tokens,
                "tracked": list(restorer.tracked.names),
                "snapshots": restorer.keeper.summary(),
            }
        if self.ranks.several:
            setup["ranks"] = self.ranks.summary()
        recorder = self.recorder
        return summarize(recorder.ledger, setup, recorder.telemetry, status, ended_by)

    # ranks

    def measure(self) -> GradientNorms | None:
        """Return the norms of the gradients as they are now, on all ranks."""
        norms, _ = measure_gradients(self.optimizer.param_groups, (), self.shares)
        return norms if self.decider is None else self.decider.agree.norms(norms)

    # transforms of parameter groups, and graphs

    def adopt_group_transforms(self) -> None:
        """Take the transforms out of the parameter groups that bring some, and have them act.

        Raises:
            ConfigError: One of them cannot work.
        """
        groups = self.optimizer.param_groups
        bringing = [(i, group) for i, group in enumerate(groups) if "transforms" in group]
        for number, group in bringing:
            self.add_transforms(self.transforms_of(group), number)
        for _, group in bringing:
            del group["transforms"]

    def add_transforms(self, transforms: Sequence[Transform], group: int) -> None:
        """Have transforms act on a parameter group.

        Raises:
            ConfigError: One of them cannot work.
        """
        if self.lags and self.guard is not None and transforms:
            check_lagged(self.optimizer, self.guard, self.update, transforms=True)
        self.transforms.add(transforms, group)

    def look_at_graph(self) -> None:
        """Find out whether a step can be traced as things are now, and what it has to keep."""
        # compile=True has its own graph, around which buffers are kept as ever.
        buffers = None if self.restorer is None or self.compiled else self.restorer.buffers
        kept = [] if buffers is None else buffers.pairs()
        guarded = self.guard is not None
        self.traced.look(
            transforms=bool(self.transforms),
            guarded=guarded,
            several=self.ranks.expected() > 1,
            buffers=kept,
        )

    def warn_untraced(self) -> None:
        """Warn once why a step that is compiled from outside runs as Python."""
        reason = self.traced.obstacle or "it has a closure"
        warn_once(
            self.said,
            "untraced",
            "inside torch.compile step() runs as Python, all of it: %s",
            reason,
        )
