"""Run sensors on weights, beside training where possible; a sensor that fails ends no run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from stableopt.runtime.lane import Lane, Transfer, undisturbed
from stableopt.sensors.protocol import Measurement, Result, Sensor, Visit

logger = logging.getLogger("stableopt")


class Task(NamedTuple):
    """A sensor and the weight that it visits.

    Attributes:
        sensor: Who measures.
        visit: What is measured.
        measurement: Once it is started; ``None`` if the sensor failed.
    """

    sensor: Sensor
    visit: Visit
    measurement: Measurement | None = None


class Round(NamedTuple):
    """Visits that are under way.

    Attributes:
        transfers: What each device sends to the host.
        started: What was started there, in the order in which it was.
    """

    transfers: dict[torch.device, Transfer]
    started: dict[torch.device, list[Task]]

    @property
    def late(self) -> int:
        """How many devices are not done yet."""
        return sum(transfer.late for transfer in self.transfers.values())

    def wait(self) -> None:
        """Return once nothing of it reads a weight any more."""
        for transfer in self.transfers.values():
            transfer.wait()

    @property
    def device_seconds(self) -> float:
        """Seconds that it took on accelerators. Only after :meth:`wait`."""
        return sum(transfer.device_seconds for transfer in self.transfers.values())

    def arrivals(self) -> list[tuple[Task, list[Tensor]]]:
        """Return everything that was started, with what it has sent to the host."""
        found = []
        for device, transfer in self.transfers.items():
            sent = list(transfer.wait())
            for task in self.started[device]:
                count = 0 if task.measurement is None else len(task.measurement.sent)
                found.append((task, sent[:count]))
                del sent[:count]
        return found


class Runner:
    """Starts sensors after a step, and finishes them in the next one."""

    def __init__(self) -> None:
        self.lane = Lane()
        self._failed = set[str]()

    def start(self, tasks: Sequence[Task]) -> Round:
        """Queue the work of all sensors, on the devices of their weights."""
        by_device: dict[torch.device, list[Task]] = {}
        for task in tasks:
            by_device.setdefault(task.visit.weight.device, []).append(task)
        started: dict[torch.device, list[Task]] = {device: [] for device in by_device}
        transfers = {
            device: self._run(device, mine, started[device]) for device, mine in by_device.items()
        }
        return Round(transfers, started)

    def finish(self, launched: Round) -> list[tuple[Task, Result | None]]:
        """Return the result of every visit; ``None`` where the sensor failed."""
        return [(task, self._result(task, sent)) for task, sent in launched.arrivals()]

    def _run(self, device: torch.device, tasks: Sequence[Task], started: list[Task]) -> Transfer:
        try:
            return self.lane.run(device, partial(self._start, tasks, started))
        except Exception as error:  # noqa: BLE001 - a sensor must not end a run
            started[:] = tasks
            for task in tasks:
                self._warn(task, error)
            return Transfer([])

    def _start(self, tasks: Sequence[Task], started: list[Task]) -> list[Tensor]:
        sent: list[Tensor] = []
        for task in tasks:
            measurement = None
            try:
                measurement = task.sensor.start(task.visit)
                sent += measurement.sent
            except Exception as error:  # noqa: BLE001 - a sensor must not end a run
                self._warn(task, error)
                measurement = None
            started.append(task._replace(measurement=measurement))
        return sent

    def _result(self, task: Task, sent: list[Tensor]) -> Result | None:
        if task.measurement is None:
            return None
        try:
            with undisturbed(task.visit.weight.device):
                result = task.measurement.finish(sent)
            odd = set(task.sensor.metrics).symmetric_difference(result.values)
            if odd:
                raise ValueError(f"its result does not fit its metrics: {', '.join(sorted(odd))}")
            values = {metric: float(value) for metric, value in result.values.items()}
        except Exception as error:  # noqa: BLE001 - a sensor must not end a run
            self._warn(task, error)
            return None
        return result._replace(values=values)

    def _warn(self, task: Task, error: Exception) -> None:
        name = f"{task.sensor!r}"
        if name not in self._failed:
            self._failed.add(name)
            logger.warning(
                "%s failed on %s (%s: %s): its metrics are undefined there; this is logged once",
                name,
                task.visit.name,
                type(error).__name__,
                error,
            )
