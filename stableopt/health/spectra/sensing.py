"""Between two steps: who measures which weight, and what it says about the run."""

from __future__ import annotations

import logging
import math
import time
import zlib
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from torch import Tensor

from stableopt.health.spectra.monitor import Monitor
from stableopt.health.spectra.renamed import renamed
from stableopt.health.spectra.sensed import Sensed
from stableopt.health.spectra.tiers import TIERS, standing_of
from stableopt.sensors.governor import Governor
from stableopt.sensors.options import RISKS
from stableopt.sensors.protocol import Visit
from stableopt.sensors.runner import Runner, Task
from stableopt.sensors.targets import Targets
from stableopt.types import Finding, Reading, RiskLevel, Scope, Standing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import nn
    from torch.optim import Optimizer

    from stableopt.health.spectra.risk import Assessment, WeightHealth
    from stableopt.sensors import Result, Sensor, Sensors
    from stableopt.sensors.runner import Round

logger = logging.getLogger("stableopt")

BURST = 20
"""Steps that telemetry records one by one after the risk has risen."""


_Remembered: TypeAlias = "tuple[Monitor, dict[str, dict[str, Tensor]], int, int]"


class _Launch(NamedTuple):
    """All that was started after one step."""

    step: int
    round: Round
    shapes: dict[str, tuple[int, int]]
    heads: frozenset[str]


class Sensing:
    """Starts the sensors after a step, and reads them in the next one.

    Everything that it reads is a function of the weights, their names, the step, the seed and
    what it remembers; what it remembers goes back with the weights, and into checkpoints.

    Args:
        optimizer: The inner optimizer.
        model: Gives names.
        options: What runs when.
        acts: Whether anything is done about the readings; they are then never postponed.

    Raises:
        ConfigError: A pattern of parameter names matches none.
    """

    def __init__(
        self, optimizer: Optimizer, model: nn.Module | None, options: Sensors, *, acts: bool
    ) -> None:
        self.options = options
        self.acts = acts
        self.waits = 0
        self._targets = Targets(optimizer, model, options.params, options.heads)
        self._targets.check()
        self._governor = Governor(options.budget)
        self._runner = Runner()
        self._told = False
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
        """What is known about every weight."""
        return self._monitor.weights

    def measured(self) -> dict[str, frozenset[str]]:
        """Return by metric the names of the weights that are visited for it."""
        names = frozenset(self._targets.weights())
        return {metric: names for sensor in self.options.use for metric in sensor.metrics}

    @property
    def assessment(self) -> Assessment | None:
        """The level of the run; ``None`` while nothing is known."""
        return self._monitor.assessment

    # between two steps

    def launch(self, step: int) -> None:
        """Start the sensors that are due once the weights are ``step`` updates old."""
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
        tasks = [task for name in names for task in self._plan(name, weights[name], step)]
        shapes = {n: (weights[n].shape[0], weights[n][:1].numel()) for n in names}
        self._launched = _Launch(step, self._runner.start(tasks), shapes, self._targets.heads)
        self._governor.charge(time.perf_counter() - began)

    def _may_run(self) -> bool:
        """Ask the account; what is acted upon runs in any case."""
        if self._governor.allows():
            return True
        self._governor.postponed += not self.acts
        if not self._told:
            self._told = True
            logger.log(
                logging.WARNING if self.acts else logging.INFO,
                "sensors take more than budget=%g of the training time, and %s; a larger every or "
                "a smaller ratio of their Sampler, or a larger budget, makes that regular",
                self.options.budget,
                "run in any case, as they are acted upon" if self.acts else "are postponed",
            )
        return self.acts

    def _choose(self, weights: Mapping[str, Tensor], step: int) -> list[str]:
        """Return whose turn it is, what has no baseline yet, and what is suspected."""
        if not weights:
            return []
        names = list(weights)
        at = {self._targets.places[name]: name for name in names}
        turned = [at[place] for place in self.options.sampler.pick(list(at), self._turn, step)]
        beside = {name for name in names if self._monitor.learns(name, step)}
        beside |= self._monitor.suspects | self._monitor.corrected
        return turned + sorted(beside.intersection(names).difference(turned))

    def _plan(self, name: str, weight: Tensor, step: int) -> list[Task]:
        # Not by its name: a checkpoint may be loaded where parameters have others, or none.
        known = f"{self.options.sampler.seed}:{self._targets.places[name]}"
        visit = Visit(
            name=name,
            weight=weight,
            seed=zlib.crc32(known.encode()),
            draw=zlib.crc32(f"{known}:{step}".encode()),
        )
        return [
            Task(sensor, replace(visit, memory=self._remembered(sensor, name)))
            for sensor in self.options.use
            if name in self._monitor.suspects or not sensor.on_suspicion
        ]

    # in the next step

    def join(self, step: int) -> Sensed:
        """Return what the sensors have read, and draw the conclusions.

        Args:
            step: Updates behind the weights.
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
        readings: list[Reading] = []
        for task, result in self._runner.finish(launch.round):
            readings += self._readings(launch, task, result)
        self._governor.charge(launch.round.device_seconds)
        before = self.assessment
        self._monitor.take(readings, launch.shapes, launch.step)
        risen = self._risen(before)
        if risen:
            self._burst = BURST
        self._governor.charge(time.perf_counter() - began)
        return Sensed(tuple(readings), risen)

    def _readings(self, launch: _Launch, task: Task, result: Result | None) -> list[Reading]:
        """Turn what came of a visit into readings, and remember what the next one starts from."""
        sensor, name = task.sensor, task.visit.name
        self._remember(sensor, name, None if result is None else result.memory)
        values = dict.fromkeys(sensor.metrics, math.nan) if result is None else result.values
        return [
            self._reading(launch, name, metric, value, failed=result is None)
            for metric, value in values.items()
        ]

    def _reading(
        self, launch: _Launch, name: str, metric: str, value: float, *, failed: bool
    ) -> Reading:
        standing = standing_of(metric, value, *launch.shapes[name])
        if name in launch.heads and standing is not Standing.UNDEFINED:
            standing = Standing.UNJUDGED
        if math.isnan(value) and not failed and self._was_defined(name, metric):
            standing = Standing.DANGER
        return Reading(name=name, metric=metric, value=value, step=launch.step, standing=standing)

    def _was_defined(self, name: str, metric: str) -> bool:
        """Tell whether a metric existed before: a weight has become zero, or not finite.

        What never did is meant to be so: a mask of infinities, a factor that begins at zero.
        """
        known = self.weights.get(name)
        before = None if known is None else known.readings.get(metric)
        judged = metric in TIERS or metric == "spectral_norm"
        return judged and before is not None and before.standing is not Standing.UNDEFINED

    def _remembered(self, sensor: Sensor, name: str) -> Tensor | None:
        return self._memories.get(sensor.metrics[0], {}).get(name)

    def _remember(self, sensor: Sensor, name: str, memory: Tensor | None) -> None:
        known = self._memories.setdefault(sensor.metrics[0], {})
        if memory is None:
            known.pop(name, None)
        else:
            known[name] = memory

    def _risen(self, before: Assessment | None) -> tuple[Finding, ...]:
        """Return the risk if its level is one to worry about and higher than before."""
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
        """Whether telemetry should record every step for now: the risk has risen lately."""
        return self._burst > 0

    def altered(self, names: Iterable[str]) -> None:
        """Hear which weights were corrected upon a reading: they are visited out of turn next."""
        for name in names:
            self._monitor.altered(name)

    # waiting, going back, checkpoints

    def wait(self) -> None:
        """Return once nothing that was started reads a weight any more."""
        if self._launched is not None:
            self._launched.round.wait()

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered: plain data, and the tensors that sensors start from.

        Weights are named by where they stand: their names may change. Measurements in progress
        are left out: they are started again from the same weights.
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
            AttributeError, KeyError, TypeError, ValueError: :meth:`state_dict` has not made it.
        """
        self._read(state)

        def assign() -> None:
            self.wait()
            self._launched, self._postponed = None, -1
            # Now, because the names of the weights may have been loaded with the optimizer.
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
        """Give copies and pickles nothing that is under way: it is started anew."""
        return {**self.__dict__, "_launched": None, "_governor": Governor(self.options.budget)}

    def summary(self) -> dict[str, Any]:
        """Return the level, and what the sensors cost, as plain values.

        Called on the threads of writers, too: what is iterated over is a copy.
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
            "unjudged": [name for name, health in known.items() if _is_unjudged(health)],
            "undefined": sum(health.level is None for health in weights),
            "share": round(self._governor.share(), 6),
            "postponed": self._governor.postponed,
            "waits": self.waits,
        }


def _is_unjudged(health: WeightHealth) -> bool:
    """Tell whether no limit applies to a weight: an output layer, or one too small for them."""
    limited = [reading for metric, reading in dict(health.readings).items() if metric in TIERS]
    return bool(limited) and all(reading.standing is Standing.UNJUDGED for reading in limited)
