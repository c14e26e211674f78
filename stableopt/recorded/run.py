"""A run in memory, built from its records one by one, for report, watch and compare."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from stableopt.recorded.interventions import Intervention, Kind, read_intervention
from stableopt.recorded.step_clock import StepClock
from stableopt.recorded.trace import Readings, Trace
from stableopt.recorded.values import dict_of, list_of, number_of, whole_of

TAIL = 10
"""Recorded losses whose mean is the final loss of a run."""

_REMEMBERED = 400
"""Losses from which those that a rollback has undone are taken away."""

_LEAST = 5
"""Losses that a mean needs to be the best one: a single batch can be lucky."""

READINGS_KEPT = 96
"""Points that are kept of one metric of one weight, those between them merged."""

MOST_SIGNALS = 24
"""Signals that are kept; a dict with a key per sample would make one of each."""

_PACE = 200
"""Records over which the pace of a run is taken."""


@dataclass(slots=True)
class LayerTally:
    """How often a layer was named.

    Attributes:
        faults: In the findings of interventions.
        risks: In a rise of the risk.
        acts: As the one that a transform changed most, in recorded steps.
    """

    faults: int = 0
    risks: int = 0
    acts: int = 0


@dataclass(slots=True)
class ActTally:
    """What a transform did in recorded steps.

    Attributes:
        metric: What it moves.
        records: In how many of them it acted.
        before: The metric of the one changed most, at the newest of them.
        after: The same after the change.
    """

    metric: str = ""
    records: int = 0
    before: float | None = None
    after: float | None = None


class Run:
    """Everything that a report shows of a run; series are bounded, interventions complete.

    Args:
        path: The event file.
        number: Which run of its directory, from 1.
        siblings: How many runs that directory has.

    Attributes:
        summary: Of ``summary.json``; ``None`` if there is none that can be read.
        records: How many events were read.
        unreadable: Lines that are no JSON: torn by a crash, or damaged.
        call: Of the newest event.
        step: Updates taken so far, this one included.
        began: Time of the first event, in seconds since the epoch; ``None`` without one.
        ended: Time of the newest.
        loss: Of every step that was taken, over calls.
        grad_norm: The same.
        lr: Learning rate of the first group, our factor included.
        signals: What else was observed, by name; of a tensor its mean.
        risk: Calls at which the level changed, and to what.
        readings: By metric and layer.
        interventions: Oldest first.
        layers: By name, how often each was named.
        acts: By name of the transform.
    """

    def __init__(self, path: Path, number: int = 1, siblings: int = 1) -> None:
        self.path = path
        self.number = number
        self.siblings = siblings
        self.summary: Mapping[str, Any] | None = None
        self.records = self.unreadable = 0
        self.call = self.step = self.first_call = 0
        self.began: float | None = None
        self.ended: float | None = None
        self.loss, self.grad_norm, self.lr = Trace(), Trace(), Trace()
        self.signals: dict[str, Trace] = {}
        self.risk: list[tuple[int, str]] = []
        self.readings: dict[str, dict[str, Readings]] = {}
        self.interventions: list[Intervention] = []
        self.layers: dict[str, LayerTally] = {}
        self.acts: dict[str, ActTally] = {}
        self.lost = 0
        self._bad_since: int | None = None
        self._best = math.inf
        self._tail: deque[tuple[int, float]] = deque(maxlen=_REMEMBERED)
        self._pace: deque[tuple[float, int]] = deque(maxlen=_PACE)
        self._path_of_steps = StepClock()

    # reading

    def add(self, record: Mapping[str, Any]) -> None:
        """Add a record; one that is not the event of a step is ignored."""
        call, step = whole_of(record.get("call")), whole_of(record.get("step"))
        if record.get("event") != "step" or call is None or step is None:
            return
        self.records += 1
        self.first_call = self.first_call or call
        self.call, self.step = call, step
        self._note_time(record, call)
        self._note_intervention(record, call, step)
        self._path_of_steps.add(call, step)
        if record.get("action") == "take":
            self._note_numbers(record, call)
        level = record.get("risk")
        if isinstance(level, str) and level != self.level:
            self.risk.append((call, level))
        self._note_readings(record, call)
        self._note_acts(record)
        if isinstance(record.get("rollback"), dict):
            self._roll_back(step)

    def _note_time(self, record: Mapping[str, Any], call: int) -> None:
        moment = number_of(record.get("time"))
        if moment is None or not math.isfinite(moment):
            return
        if self.began is None:
            self.began = moment
        self.ended = moment
        self._pace.append((moment, call))

    def _note_intervention(self, record: Mapping[str, Any], call: int, step: int) -> None:
        found = read_intervention(record, call, step)
        if found is None:
            return
        self.interventions.append(found)
        if found.kind is Kind.ROLL_BACK:
            self.lost += found.undone
        for layer in found.layers:
            tally = self.layers.setdefault(layer, LayerTally())
            if found.kind is Kind.RISK:
                tally.risks += 1
            else:
                tally.faults += 1

    def _note_numbers(self, record: Mapping[str, Any], call: int) -> None:
        loss = number_of(record.get("loss"))
        if loss is not None:
            self.loss.add(call, loss)
            if math.isfinite(loss):
                self._bad_since = None
            elif self._bad_since is None:
                self._bad_since = call
            self._tail.append((self.step, loss))
            if len(self._tail) >= _LEAST:
                mean = self.final_loss
                self._best = self._best if mean is None else min(self._best, mean)
        norm = number_of(record.get("grad_norm"))
        if norm is not None:
            self.grad_norm.add(call, norm)
        rates = record.get("lr")
        rate = number_of(rates[0] if isinstance(rates, list) and rates else rates)
        if rate is not None:
            self.lr.add(call, rate * (number_of(record.get("lr_scale")) or 1.0))
        for name, value in dict_of(record.get("signals")).items():
            number = number_of(value.get("mean") if isinstance(value, dict) else value)
            known = name in self.signals or len(self.signals) < MOST_SIGNALS
            if number is not None and known:
                self.signals.setdefault(name, Trace()).add(call, number)

    def _note_readings(self, record: Mapping[str, Any], call: int) -> None:
        for layer, read in dict_of(record.get("readings")).items():
            metrics = dict(dict_of(read))
            step = whole_of(metrics.pop("step", None)) or 0
            for metric, value in metrics.items():
                number = number_of(value)
                if number is not None:
                    known = self.readings.setdefault(metric, {})
                    if layer not in known:
                        known[layer] = Readings(READINGS_KEPT)
                    known[layer].read(call, step, number)

    def _note_acts(self, record: Mapping[str, Any]) -> None:
        for act in filter(dict_of, list_of(record.get("acts"))):
            tally = self.acts.setdefault(str(act.get("transform", "")), ActTally())
            tally.metric = str(act.get("metric", ""))
            tally.records += 1
            tally.before, tally.after = number_of(act.get("before")), number_of(act.get("after"))
            worst = act.get("worst")
            if isinstance(worst, str):
                self.layers.setdefault(worst, LayerTally()).acts += 1

    def _roll_back(self, step: int) -> None:
        """Forget what belongs to updates that were undone."""
        self._bad_since = None
        self._tail = deque((t for t in self._tail if t[0] <= step), _REMEMBERED)
        for layers in self.readings.values():
            for readings in layers.values():
                readings.roll_back(step)

    # asking

    @property
    def final_loss(self) -> float | None:
        """Mean of the newest recorded losses of steps that were taken; ``None`` without any.

        It is the newest of them if that is not finite; earlier ones that are not do not count.
        """
        newest = [loss for _, loss in islice(reversed(self._tail), TAIL)]
        if not newest or not math.isfinite(newest[0]):
            return newest[0] if newest else None
        finite = [loss for loss in newest if math.isfinite(loss)]
        return sum(finite) / len(finite)

    @property
    def bad_losses(self) -> int:
        """Calls up to now in which every recorded loss of a step that was taken was not finite."""
        return 0 if self._bad_since is None else self.call - self._bad_since + 1

    @property
    def best_loss(self) -> float | None:
        """The lowest that such a mean has been; ``None`` if none was finite."""
        final = self.final_loss
        best = min(self._best, math.inf if final is None else final)
        return best if math.isfinite(best) else None

    @property
    def level(self) -> str | None:
        """The newest level of the risk; ``None`` while nothing is known."""
        return self.risk[-1][1] if self.risk else None

    @property
    def pace(self) -> float | None:
        """Calls per second over the newest records; ``None`` while there are too few."""
        if len(self._pace) < 2:
            return None
        (t0, c0), (t1, c1) = self._pace[0], self._pace[-1]
        return (c1 - c0) / (t1 - t0) if t1 > t0 and c1 > c0 else None

    def counted(self, kind: Kind) -> int:
        """Return how many interventions of one kind there were."""
        return sum(found.kind is kind for found in self.interventions)

    def newest(self, metric: str, layer: str) -> float | None:
        """Return the newest reading of a layer as it is; ``None`` if that is not known."""
        readings = self.readings.get(metric, {}).get(layer)
        return None if readings is None else readings.newest

    def call_of(self, step: int, before: int) -> int:
        """Return the newest call before a rollback after which ``step`` updates were taken.

        Args:
            step: Updates taken so far.
            before: The call of the rollback.
        """
        return self._path_of_steps.call_of(step, before)

    def setting(self, *keys: str) -> Any:
        """Return what the summary has under nested keys; ``None`` if it has nothing there."""
        value: Any = self.summary
        for key in keys:
            value = dict_of(value).get(key)
        return value
