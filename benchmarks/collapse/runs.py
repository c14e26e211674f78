"""Runs of the collapse benchmark: trained once, then watched as often as needed.

A run is trained with a bare optimizer, and its weights are kept at every step at which sensors
are due. Watching replays them into a model of the same names, and drives the sensors in the order
in which a training loop does: they read the same bits as beside the training itself.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.collapse.kinds import Collapse
from benchmarks.collapse.tasks import TASKS
from stableopt.health.spectra.sensed import Sensed
from stableopt.health.spectra.sensing import Sensing
from stableopt.ranks.group import Ranks
from stableopt.sensors import Sensors
from stableopt.types import Drift, RiskLevel, Standing

SMALLEST = 32
"""Rows and columns from which on a weight is made to collapse."""

STEPS, QUICK_STEPS = 800, 480
STRUCK = 0.6
"""Share of the steps after which a weight begins to collapse."""


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """The weights of a run that was trained without us.

    Attributes:
        kind: A key of :data:`~benchmarks.collapse.tasks.TASKS`.
        seed: Of weights and batches.
        steps: Updates.
        quick: Whether it is the small version.
        losses: Of every update.
        weights: By step, at every one at which sensors are due; by name.
    """

    kind: str
    seed: int
    steps: int
    quick: bool
    losses: list[float]
    weights: dict[int, dict[str, Tensor]]

    def at(self, step: int) -> dict[str, Tensor]:
        """Return the weights; after the end of training, those at its end."""
        return self.weights[min(step, self._last)]

    @cached_property
    def _last(self) -> int:
        return max(self.weights)

    def model(self) -> nn.Module:
        """Return a model of the same names, as it was before training."""
        return TASKS[self.kind].build(self.seed, quick=self.quick)


def train(
    kind: str,
    seed: int,
    *,
    quick: bool,
    steps: int | None = None,
    beside: Callable[..., None] | None = None,
) -> Trajectory:
    """Train a model with a bare optimizer.

    Args:
        kind: A key of :data:`~benchmarks.collapse.tasks.TASKS`.
        seed: Of weights and batches.
        quick: Whether the small version is trained.
        steps: Updates; as many as that version takes if not given.
        beside: Called with the moment (``"join"`` or ``"launch"``), the step, the optimizer and
            the model.
    """
    task, steps = TASKS[kind], steps or (QUICK_STEPS if quick else STEPS)
    model, recipe, sampler = task.build(seed, quick=quick), task.recipe(seed), Sensors().sampler
    optimizer = recipe.optimizer(model)
    losses, kept = [], {0: _matrices(model)}
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(step, steps)
        loss = task.loss(model, seed, step, quick=quick)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if recipe.clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        if beside is not None:
            beside("join", step, optimizer, model)
        optimizer.step()
        losses.append(float(loss.detach()))
        if beside is not None:
            beside("launch", step + 1, optimizer, model)
        if sampler.due(step + 1):
            kept[step + 1] = _matrices(model)
    return Trajectory(kind=kind, seed=seed, steps=steps, quick=quick, losses=losses, weights=kept)


def _matrices(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.dim() > 1}


class Visited(NamedTuple):
    """One visit of one weight.

    Attributes:
        name: Of the weight.
        step: Updates behind it.
        values: What was read, by metric.
        standings: Of what was read, by metric.
        drifts: Metric by metric, whether it is confirmed.
        level: Of the weight.
    """

    name: str
    step: int
    values: Mapping[str, float]
    standings: Mapping[str, Standing]
    drifts: Mapping[str, bool]
    level: RiskLevel | None

    @property
    def bad(self) -> list[str]:
        """The metrics that make it a warning or worse."""
        beyond = (Standing.WARNING, Standing.DANGER)
        found = [metric for metric, standing in self.standings.items() if standing in beyond]
        return found + [f"{metric} drift" for metric, sure in self.drifts.items() if sure]


class Watch:
    """The sensors and what they say, driven over replayed weights.

    Args:
        trajectory: Whose weights they are.
        only: The name of the one weight that is watched; all if not given.
    """

    def __init__(self, trajectory: Trajectory, only: str | None = None) -> None:
        self._trajectory = trajectory
        self.model = trajectory.model()
        self._parameters = dict(self.model.named_parameters())
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0)
        options = Sensors(budget=None, params=None if only is None else (only,))
        self.sensing = Sensing(optimizer, self.model, options, Ranks(), acts=False)
        self.visits: list[Visited] = []
        self.assessments: Counter[RiskLevel] = Counter()
        self._listen()

    def load(self, step: int, altered: Mapping[str, Tensor] | None = None) -> None:
        """Bring the weights to where they were at ``step``.

        Args:
            step: One at which sensors are due.
            altered: Weights that are something else.
        """
        with torch.no_grad():
            for name, weight in {**self._trajectory.at(step), **(altered or {})}.items():
                self._parameters[name].copy_(weight)

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on with what another watch remembered."""
        self.sensing.prepare(state)()
        self._listen()

    def _listen(self) -> None:
        """Note every drift, confirmed or not."""
        self._drifts: list[Drift] = []
        detector = self.sensing._monitor._drift
        judge = type(detector).judge

        def heard(*args: Any) -> Drift | None:
            found = judge(detector, *args)
            if found is not None:
                self._drifts.append(found)
            return found

        detector.judge = heard  # type: ignore[assignment, method-assign]

    def join(self, step: int) -> list[Visited]:
        """Read what was started, and return what was visited."""
        return self.note(self.sensing.join(step))

    def note(self, sensed: Sensed) -> list[Visited]:
        """Keep what the sensors told."""
        names = list(dict.fromkeys(reading.name for reading in sensed.readings))
        found = [self._visited(name, sensed) for name in names]
        self._drifts.clear()
        self.visits += found
        if found and self.sensing.assessment is not None:
            self.assessments[self.sensing.assessment.level] += 1
        return found

    def _visited(self, name: str, sensed: Sensed) -> Visited:
        readings = [reading for reading in sensed.readings if reading.name == name]
        return Visited(
            name=name,
            step=readings[0].step,
            values={reading.metric: reading.value for reading in readings},
            standings={reading.metric: reading.standing for reading in readings},
            drifts={drift.metric: drift.confirmed for drift in self._drifts if drift.name == name},
            level=self.sensing.weights[name].level,
        )


def watch(trajectory: Trajectory) -> tuple[Watch, dict[str, Any]]:
    """Watch a whole run as it was, and return what was remembered when collapses begin."""
    seen, state = Watch(trajectory), dict[str, Any]()
    due = seen.sensing.options.sampler.due
    for step in range(trajectory.steps + 1):
        seen.join(step)
        if step == struck_at(trajectory):
            state = seen.sensing.state_dict()
        if due(step + 1) and step < trajectory.steps:
            seen.load(step + 1)
            seen.sensing.launch(step + 1)
    return seen, state


def struck_at(trajectory: Trajectory) -> int:
    """Return the step after which weights collapse."""
    return round(STRUCK * trajectory.steps)


def collapsible(trajectory: Trajectory) -> list[str]:
    """Return the weights that are large enough to collapse."""
    sizes = {name: (w.shape[0], w[0].numel()) for name, w in trajectory.at(0).items()}
    return [name for name, size in sizes.items() if min(size) >= SMALLEST]


def strike(
    trajectory: Trajectory, state: Mapping[str, Any], name: str, collapse: Collapse
) -> dict[str, Any]:
    """Let one weight collapse under the sensors while the training goes on without that.

    It collapses further at every visit, and is visited when its turn comes or when it is
    suspected, as in a run in which all the other weights are watched, too.

    Args:
        trajectory: A healthy run.
        state: What the sensors remembered when the collapse begins.
        name: The weight.
        collapse: How.
    """
    seen = Watch(trajectory, only=name)
    seen.resume(state)
    sampler, names = seen.sensing.options.sampler, list(trajectory.at(0))
    first, known = struck_at(trajectory), seen.sensing.weights[name].level
    already = known is not None and known.rank >= RiskLevel.WARNING.rank
    record = {"name": name, "shape": list(trajectory.at(0)[name].shape), "already": already}
    found, acted, visit, step = None, None, 0, first
    while visit < collapse.visits and acted is None:
        step += 1
        # Turns are counted by due steps: the first is step 0, then every `every`.
        turn = (step + 1) // sampler.every
        if not sampler.due(step) or not _is_visited(
            seen, name, step, sampler.pick(names, turn, step)
        ):
            continue
        visit += 1
        weight = trajectory.at(step)[name]
        seen.load(step, {name: collapse.apply(weight, visit, zlib.crc32(name.encode()))})
        seen.sensing.launch(step)
        (visited,) = seen.join(step)
        if found is None and visited.bad:
            found = {"visits": visit, "steps": step - first, "by": visited.bad}
        if visited.level in (RiskLevel.DANGER, RiskLevel.INSTABILITY):
            acted = {"visits": visit, "steps": step - first}
    return {**record, "found": found, "acted": acted}


def _is_visited(seen: Watch, name: str, step: int, turned: list[str]) -> bool:
    monitor = seen.sensing._monitor
    return name in turned or name in monitor.suspects or monitor.learns(name, step)
