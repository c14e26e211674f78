"""Which sensor measures which weight between two steps, and the findings from it."""

from __future__ import annotations

import logging
import time
import zlib
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from torch import Tensor

from stableopt.health.spectra.judged import is_unjudged, readings_of
from stableopt.health.spectra.monitor import Monitor
from stableopt.health.spectra.renamed import renamed
from stableopt.health.spectra.sensed import Sensed
from stableopt.health.spectra.sharing import Sharing
from stableopt.runtime.once import warn_once
from stableopt.runtime.shards import whole
from stableopt.sensors.governor import Governor
from stableopt.sensors.options import RISKS
from stableopt.sensors.protocol import Visit
from stableopt.sensors.runner import Runner, Task
from stableopt.sensors.targets import Targets
from stableopt.types import Finding, RiskLevel, Scope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import nn
    from torch.optim import Optimizer

    from stableopt.health.spectra.risk import Assessment, WeightHealth
    from stableopt.health.spectra.sharing import Values, Visited
    from stableopt.ranks.group import Ranks
    from stableopt.sensors import Result, Sensors
    from stableopt.sensors.runner import Round

BURST = 20
"""Steps after a rise of the risk for which telemetry records every step."""


_Remembered: TypeAlias = "tuple[Monitor, dict[str, dict[str, Tensor]], int, int]"


class _Launch(NamedTuple):
    """The measurements that were started after one step."""

    step: int
    round: Round
    shapes: dict[str, tuple[int, int]]
    heads: set[str]


class Sensing:
    """Starts the sensors after a step, and reads them in the next one.

    Every reading is a function of the weights, their names, the step, the seed and the state of
    this object, which is restored with the weights and part of checkpoints.

    Args:
        optimizer: The inner optimizer.
        model: Has the names.
        options: What runs when.
        ranks: Those that share the visits: each measures some of the weights, and tells the others.
        acts: Whether transforms or the guard act on the readings; they are then never postponed.
        agrees: Whether ranks agree on the visits: only then are sharded weights gathered.

    Raises:
        ConfigError: A pattern of parameter names matches none.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module | None,
        options: Sensors,
        ranks: Ranks,
        *,
        acts: bool,
        agrees: bool = True,
    ) -> None:
        self.options = options
        self.sharing = Sharing(ranks)
        self.acts = acts
        self.waits = 0
        self._targets = Targets(optimizer, model, options.params, options.heads)
        self._targets.check(sharded=agrees)
        self._governor = Governor(options.budget)
        self._runner = Runner()
        self._warned = set[object]()
        self._burst = 0
        self._launched: _Launch | None = None
        self._monitor = self._new_monitor()
        self._memories: dict[str, dict[str, Tensor]] = {}
        self._turn = 0
        self._measured = self._postponed = -1

    def _new_monitor(self) -> Monitor:
        return Monitor(self.options.risk, self.options.sampler.spacing)

    @property
    def weights(self) -> Mapping[str, WeightHealth]:
        """The readings of every weight."""
        return self._monitor.weights

    def meet(self) -> None:
        """Share the visits with other ranks; every rank calls this at once."""
        self.sharing.meet(self.names())

    def names(self) -> frozenset[str]:
        """Return the names of the weights that are measured."""
        return frozenset(self._targets.weights())

    def measured(self) -> dict[str, frozenset[str]]:
        """Return the names of the weights for which each metric is measured."""
        names = self.names()
        return {metric: names for sensor in self.options.use for metric in sensor.metrics}

    @property
    def assessment(self) -> Assessment | None:
        """The level of the run; ``None`` while nothing is known."""
        return self._monitor.assessment

    # between two steps

    def launch(self, step: int) -> None:
        """Start the sensors that are due after ``step`` steps."""
        if self._launched is not None or step in (self._measured, self._postponed):
            return
        if not self.options.sampler.due(step):
            return
        if not self._may_run():
            self._postponed = step
            return
        began = time.perf_counter()
        weights = self._targets.weights()
        names = self._choose(weights, step)
        tasks: list[Task] = []
        for name in names:
            weight = whole(weights[name])  # every rank that has a part of it takes part
            if self.sharing.is_mine(name):
                tasks += self._plan(name, weight, step)
        shapes = {
            n: (weights[n].shape[0], weights[n].numel() // weights[n].shape[0]) for n in names
        }
        self._launched = _Launch(step, self._runner.start(tasks), shapes, set(self._targets.heads))
        self._governor.charge(time.perf_counter() - began)

    @property
    def over_budget(self) -> bool:
        """Whether the sensors of this rank have used up their time."""
        return not self._governor.allows()

    def _may_run(self) -> bool:
        """Return whether the time budget allows a measurement; always if it is acted on."""
        if not (self.sharing.postpones if self.sharing.several else self.over_budget):
            return True
        self._governor.postponed += not self.acts
        warn_once(
            self._warned,
            "budget",
            "sensors take more than budget=%g of the training time, and %s; to avoid that, give "
            "their Sampler a larger every or a smaller ratio, or raise the budget",
            self.options.budget,
            "run all the same, because they are acted on" if self.acts else "are postponed",
            level=logging.WARNING if self.acts else logging.INFO,
        )
        return self.acts

    def _choose(self, weights: Mapping[str, Tensor], step: int) -> list[str]:
        """Return the weights whose turn it is, and those that should be visited out of turn."""
        if not weights:
            return []
        names = list(weights)
        at = {self._targets.places[name]: name for name in names}
        turned = [at[place] for place in self.options.sampler.pick(list(at), self._turn, step)]
        beside = {name for name in names if self._monitor.learns(name, step)}
        beside |= self._monitor.suspects | self._monitor.corrected
        return turned + sorted(beside.intersection(names).difference(turned))

    def _plan(self, name: str, weight: Tensor, step: int) -> list[Task]:
        # By place, because parameters may have other names when a checkpoint is loaded.
        known = f"{self.options.sampler.seed}:{self._targets.places[name]}"
        visit = Visit(
            name=name,
            weight=weight,
            seed=zlib.crc32(known.encode()),
            draw=zlib.crc32(f"{known}:{step}".encode()),
        )
        return [
            Task(sensor, replace(visit, memory=self._memories.get(sensor.metrics[0], {}).get(name)))
            for sensor in self.options.use
            if name in self._monitor.suspects or not sensor.on_suspicion
        ]

    # in the next step

    def join(self, step: int) -> Sensed:
        """Return the readings of the sensors, after they were judged.

        Args:
            step: Steps taken so far.
        """
        self._burst = max(0, self._burst - 1)
        if self._launched is None:
            self.launch(step)  # the first step; or the one after a checkpoint or a rollback
        launch, self._launched = self._launched, None
        if launch is None:
            return Sensed()
        began = time.perf_counter()
        self._measured = launch.step
        self._turn += 1
        self.waits += launch.round.late
        found = self._results(launch)
        readings = readings_of(found, launch.step, launch.shapes, launch.heads, self.weights)
        self._governor.charge(launch.round.device_seconds)
        before = self.assessment
        self._monitor.take(readings, launch.shapes, launch.step)
        risen = self._risen(before)
        if risen:
            self._burst = BURST
        self._governor.charge(time.perf_counter() - began)
        return Sensed(tuple(readings), risen)

    def _results(self, launch: _Launch) -> Mapping[Visited, Values]:
        """Return what every rank has measured; keep the vectors of this one."""
        mine: dict[Visited, Values] = {}
        for task, result in self._runner.finish(launch.round):
            self._keep_memory(task, result)
            visited = (task.visit.name, task.sensor.metrics)
            mine[visited] = None if result is None else result.values
        return self.sharing.exchange(mine, launch.shapes, launch.heads)

    def _keep_memory(self, task: Task, result: Result | None) -> None:
        """Keep the vector from which the next visit starts."""
        known = self._memories.setdefault(task.sensor.metrics[0], {})
        known.pop(task.visit.name, None)
        if result is not None and result.memory is not None:
            known[task.visit.name] = result.memory

    def _risen(self, before: Assessment | None) -> tuple[Finding, ...]:
        """Return a finding if the level is at least ``WARNING`` and higher than before."""
        now, least = self.assessment, RiskLevel.LEARNING.rank
        if before is not None:
            least = max(least, before.level.rank)
        if now is None or now.level.rank <= least:
            return ()
        level = now.level.value
        message = f"the risk rises to {level}: {now.reason}"
        finding = Finding(kind=f"risk_{level}", message=message, scope=Scope.RISK, where=now.where)
        return (finding,)

    @property
    def bursts(self) -> bool:
        """Whether telemetry should record every step, because the risk has risen lately."""
        return self._burst > 0

    def altered(self, names: Iterable[str]) -> None:
        """Note which weights a transform has corrected: they are visited next."""
        for name in names:
            self._monitor.altered(name)

    # waiting, snapshots, checkpoints

    def wait(self) -> None:
        """Wait until no measurement reads a weight any more."""
        if self._launched is not None:
            self._launched.round.wait()

    def state_dict(self) -> dict[str, Any]:
        """Return the state: plain data, and the vectors from which sensors start.

        Weights are named by their places, because names may change. Measurements in progress are
        left out: they are started again from the same weights.
        """
        self._targets.weights()
        state = {
            "turn": self._turn,
            "measured": self._measured,
            "memories": {metric: dict(known) for metric, known in self._memories.items()},
            "monitor": self._monitor.state_dict(),
        }
        return renamed(state, self._targets.places)

    def prepare(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Return what assigns ``state``, of a checkpoint or a snapshot.

        Raises:
            AttributeError, KeyError, TypeError, ValueError: It is no state of :meth:`state_dict`.
        """
        self._read(state)

        def assign() -> None:
            self.wait()
            self._launched, self._postponed = None, -1
            # Read again: names may have been loaded with the optimizer in the meantime.
            self._monitor, self._memories, self._turn, self._measured = self._read(state)

        return assign

    def _read(self, state: Mapping[str, Any]) -> _Remembered:
        monitor = self._new_monitor()
        if not state:
            return monitor, {}, 0, -1
        weights = self._targets.weights()
        named = renamed(state, {place: name for name, place in self._targets.places.items()})
        turn, measured = int(named["turn"]), int(named["measured"])
        if turn < 0 or named["monitor"]["kind"] not in RISKS:
            raise ValueError(f"turn={turn} with risk={named['monitor']['kind']!r}")
        memories: dict[str, dict[str, Tensor]] = {}
        for metric, known in named["memories"].items():
            if not all(isinstance(v, Tensor) and v.dim() == 1 for v in known.values()):
                raise TypeError(f"memories[{metric!r}] must be vectors")
            memories[str(metric)] = {
                name: vector.to(weights[name].device)
                for name, vector in known.items()
                if name in weights
            }
        monitor.load_state_dict(named["monitor"])
        return monitor, memories, turn, measured

    def __getstate__(self) -> dict[str, Any]:
        """Give copies and pickles no measurement in progress: it is started again."""
        return {**self.__dict__, "_launched": None, "_governor": Governor(self.options.budget)}

    def summary(self) -> dict[str, Any]:
        """Return the level, and what the sensors cost, as plain values.

        Called on the threads of writers, too, so it iterates over copies.
        """
        assessment, known = self.assessment, dict(self.weights)
        weights = tuple(known.values())
        return {
            "risk": None if assessment is None else assessment.level.value,
            "reason": "" if assessment is None else assessment.reason,
            "where": [] if assessment is None else list(assessment.where),
            "use": [repr(sensor) for sensor in self.options.use],
            "sampler": asdict(self.options.sampler),
            "budget": self.options.budget,
            "params": self.options.params,
            "heads": self.options.heads,
            "judged_by": self.options.risk,
            "weights": len(weights),
            "unjudged": [name for name, health in known.items() if is_unjudged(health)],
            "undefined": sum(health.level is None for health in weights),
            "share": round(self._governor.share(), 6),
            "postponed": self._governor.postponed,
            "waits": self.waits,
        }
