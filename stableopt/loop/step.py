"""One step: observe, judge, decide, act, record."""

from __future__ import annotations

import sys
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from stableopt.errors import ConfigError, DivergenceError
from stableopt.loop.attempt import Attempt, Fate
from stableopt.loop.decide import unjudged
from stableopt.loop.in_flight import GONE, is_sound
from stableopt.loop.join import join_ranks
from stableopt.loop.parts import Parts
from stableopt.loop.tame import tame
from stableopt.runtime.scalars import read_scalars
from stableopt.runtime.storage import has_data
from stableopt.sensors.gradients import measure_gradients, start_gradients
from stableopt.sensors.signals import loss_of, mean_of
from stableopt.types import Action, Observation, Scope
from stableopt.update.closures import call_step
from stableopt.update.learning_rate import is_priming, known_rates, scaled_lr

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor
    from torch.optim import Optimizer

    from stableopt.health.spectra.sensed import Sensed
    from stableopt.loop.decide import Decider
    from stableopt.loop.restore import Restorer
    from stableopt.types import Finding, Verdict


class StepLoop(Parts):
    """One call is one step of the inner optimizer, or the decision not to take it.

    A step is an :class:`Attempt`. With ``sync="exact"`` it is judged before it is taken, with
    ``sync="lagged"`` at the next call, and inside a graph at the next call that is not compiled:
    until then it is in flight. Whichever it is, it is judged and concluded here. The parts are
    listed in :class:`~stableopt.loop.parts.Parts`; ``docs/explanation/how-a-step-works.md`` has
    the order in words.
    """

    def __init__(self, optimizer: Optimizer, **options: Any) -> None:
        super().__init__(optimizer, **options)
        if (telemetry := self.recorder.telemetry) is not None:
            telemetry.begin(_weakly(self.close))
            telemetry.send_summary(self.summary())

    def __call__(self, closure: Callable[[], Any] | None) -> Any:
        """Run one step."""
        self.called = True
        if not self._has_data():
            return call_step(self.optimizer, closure)
        if self.restorer is not None:
            self.restorer.adapt()
            if self._is_lagged(self.restorer):
                return self._take_then_judge(closure, self.restorer)
        return self._judge_then_take(closure)

    def _judge_then_take(self, closure: Callable[[], Any] | None) -> Any:
        """Run a step with ``sync="exact"``."""
        self.settle()
        if not self.ranks.joined:
            if closure is None and not self.signals.has_loss and is_priming(self.optimizer, None):
                return self.optimizer.step()
            join_ranks(self)
        loss = self.take.evaluate(closure)
        with torch.no_grad():
            attempt = self.observe(closure, loss)
            primes = closure is None and self._is_priming(attempt.observation)
            if not primes:
                if self.decider is not None:
                    self.decider.ask(attempt)
                attempt.sensed = self._sense()
                verdict = self.judge(attempt)
        if primes:
            return self.optimizer.step()
        self.conclude(attempt, verdict)
        return attempt.result if closure is None else loss

    def _take_then_judge(self, closure: Callable[[], Any] | None, restorer: Restorer) -> Any:
        """Run a step with ``sync="lagged"``: judge the one before it, take this one."""
        loss = self.take.evaluate(closure)
        self.settle()
        with torch.no_grad():
            sensed = self._sense()
            if self.in_flight.rolled_back:  # by settle(): these gradients are of other weights
                self.in_flight.rolled_back = False
                self.signals.take()
                self.conclude(Attempt(closure=closure, sensed=sensed), GONE)
                return loss
            losses, signals = self.signals.take()
            losses = losses or loss_of(loss)
            gradients = start_gradients(self.optimizer.param_groups)
            sound = is_sound(losses if self.skips_losses else (), gradients)
        attempt = Attempt(Observation(signals=signals), sensed=sensed, closure=closure, loss=loss)
        attempt.lr = known_rates(self.optimizer)
        again = self.take.closure_of(attempt, lambda: self.take.evaluate(closure))
        # Where the device can leave the step out it does so if not ``sound``; else it is taken.
        leaves_out = again is None and self.update.leaves_out
        attempt.result = self._inner_step(lambda: self.update.take(again, ~sound))
        restorer.keep_buffers_if(sound)
        fate = sound if leaves_out else None
        self.in_flight.add(attempt, losses, gradients, self._start_judging(), fate)
        if self.sensing is not None:
            self.sensing.launch(self.steps + 1)
        return attempt.result if closure is None else loss

    def settle(self, *, lagged: bool = True) -> None:
        """Judge and conclude what is in flight.

        Args:
            lagged: Whether to wait for what is on its way to the host; steps of a graph are
                concluded in any case.

        Raises:
            DivergenceError: The run cannot go on.
        """
        of_graph = self.traced.called
        if of_graph and self.decider is not None and self.ranks.expected() > 1:
            raise ConfigError(
                "a step was compiled from outside before there were several ranks, and they did "
                "not agree on it: build StableOptimizer after init_process_group()"
            )
        if not of_graph and not (lagged and self.in_flight):
            return
        self.called = True
        with torch.no_grad():
            for attempt in self.in_flight.arrive(self.signals, self._observe_graph):
                self.conclude(attempt, attempt.verdict or self.judge(attempt))
        if of_graph:
            self.traced.scale.fill_(self.lr_scale)
            self.look_at_graph()

    # observe

    def observe(self, closure: Callable[[], Any] | None, loss: Any) -> Attempt:
        """Return what is known about a step before it is taken."""
        losses, signals = self.signals.take()
        losses = losses or loss_of(loss)
        if self.decider is None:
            if self.recorder.telemetry is None and not self.transforms.wants("loss"):
                losses = []  # not needed: do not wait for the device
            if not self.transforms:
                known = Observation(loss=mean_of(read_scalars(losses)), signals=signals)
                return Attempt(known, closure=closure, loss=loss)
        groups, asked = self.optimizer.param_groups, [*losses, *self._start_judging()]
        gradients, numbers = measure_gradients(groups, asked, self.shares)
        count = len(losses)
        known = Observation(loss=mean_of(numbers[:count]), gradients=gradients, signals=signals)
        return Attempt(known, numbers[count:], closure=closure, loss=loss)

    def _observe_graph(self) -> Attempt:
        """Return what is known about the last step that a graph has taken."""
        losses, signals = self.signals.take()
        numbers = read_scalars([*losses, *self._start_judging()])
        known = Observation(loss=mean_of(numbers[: len(losses)]), signals=signals)
        return Attempt(known, numbers[len(losses) :], sensed=self._sense())

    def _start_judging(self) -> Sequence[float | Tensor]:
        """Start the checks of this step; return the scalars that the judge needs on the host."""
        if self.decider is None:
            return []
        self.scaler.note_step()
        return self.decider.detectors.start()

    def _sense(self) -> Sensed:
        sensed = self.no_readings if self.sensing is None else self.sensing.join(self.steps)
        self.transforms.note(sensed)
        return sensed

    # judge and decide

    def judge(self, attempt: Attempt) -> Verdict:
        """Return what is to be done about an attempt.

        Every attempt that is observed comes here. Decided elsewhere: what is clear without a look
        (``GONE`` and ``VETOED`` of :mod:`~stableopt.loop.in_flight`), what a line search finds in
        the middle of a step (:meth:`_take`), and what is done if a snapshot turns out damaged
        (:meth:`_act`).
        """
        if self.decider is None:
            return unjudged(attempt.sensed.risen)
        return self.decider.judge(attempt, self.steps)

    # act and record

    def conclude(self, attempt: Attempt, verdict: Verdict) -> None:
        """Carry out a verdict, remember what became of it, and record it.

        Raises:
            DivergenceError: The verdict is to stop.
        """
        if not attempt.seen:
            self._count_unseen(verdict)
            return
        if attempt.fate is Fate.OPEN and verdict.action is Action.TAKE:
            verdict = self._take(attempt, verdict)
        if self.guarded is not None:
            verdict = self._act(attempt, verdict, *self.guarded)
        self.verdict = verdict
        self.recorder.count(verdict)
        if self.sensing is not None and verdict.action is Action.TAKE:
            self.sensing.launch(self.steps)
        event = self.recorder.record(
            attempt,
            verdict,
            acts=self.transforms.acts_of(self.recorder.ledger.calls),
            risk=self.risk,
            calm=self.decider is None or self.decider.calm,
            lr_scale=self.lr_scale,
            often=self.sensing is not None and self.sensing.bursts,
            summary=self.summary,
        )
        if verdict.action is Action.STOP and event is not None:
            raise self.recorder.stop(event)

    def _take(self, attempt: Attempt, verdict: Verdict) -> Verdict:
        """Take the inner step, between what transforms do before and after it."""
        observation = attempt.observation
        if verdict.tames:
            own = attempt.closure is not None and self.take.evaluates_again
            verdict, observation = tame(
                self.optimizer, verdict, observation, own=own, measure=self.measure
            )
        self.adopt_group_transforms()
        self.transforms.before_step(observation, self.steps, self.measure)
        late: tuple[Finding, ...] = self._inner_step(lambda: self.take(attempt, self.decider))
        if late and self.decider is not None:  # the step was undone already
            return self.decider.decide(late, self.steps)
        self.transforms.after_step(observation, self.lr_scale, self.measure)
        return verdict

    def _inner_step(self, take: Callable[[], Any]) -> Any:
        """Take the step such that it can be undone, with our factor on the learning rates."""
        if self.guarded is None:
            return take()
        decider, restorer = self.guarded
        restorer.begin(self.steps)
        updates, scale = decider.detectors.updates, self.lr_scale
        before = self.options.before(self.optimizer)
        updates.before()
        if scale == 1.0:
            result = take()
        else:
            with scaled_lr(self.optimizer, scale):
                result = take()
        updates.after()
        self.options.after(self.optimizer, before)
        return result

    def _act(
        self, attempt: Attempt, verdict: Verdict, decider: Decider, restorer: Restorer
    ) -> Verdict:
        """Restore or keep what the verdict says; return what was done in the end."""
        step = self.steps
        if attempt.of_graph or attempt.found:
            # A graph may take the first steps of all: begin with what it left, unless damaged.
            lost = any(finding.scope is Scope.STATE for finding in verdict.findings)
            if restorer.begun or not lost:
                restorer.begin(step + 1 if verdict.action is Action.TAKE else step)
        verdict = restorer.go_back(verdict, step, decider)
        if attempt.fate is Fate.OPEN:
            restorer.keep_buffers(verdict)
        else:
            self.in_flight.rolled_back = verdict.action is Action.ROLL_BACK
        healthy = decider.note(attempt.observation, verdict, step)
        if verdict.action is Action.TAKE and not verdict.baseline_reset:
            if healthy:
                restorer.keeper.ring.healthy(step)
            now = decider.answers_risk and any(f.scope is Scope.RISK for f in verdict.findings)
            # A snapshot that was due and found damage: everything is looked at in the next step.
            decider.suspicious = restorer.after(step + 1, now=now)
        return verdict

    def _count_unseen(self, verdict: Verdict) -> None:
        """Count a step that a graph has taken, and of which nothing else is known."""
        if self.decider is not None:
            self.decider.policy.note(verdict, self.steps)
        self.recorder.stability.note(healthy=True)
        self.recorder.count(verdict)

    # what a step is like

    def _has_data(self) -> bool:
        """Return whether there is anything to look at: not on the meta device, nor in a rehearsal.

        Tools that ask how much memory a run will need train a step of tensors without values.
        """
        every = (p for group in self.optimizer.param_groups for p in group["params"])
        first = next(every, None)
        return first is None or has_data(first) or any(map(has_data, every))

    def _is_priming(self, observation: Observation) -> bool:
        """Return whether ``torch.distributed.checkpoint`` only makes the optimizer create state."""
        if self.optimizer.state or observation.loss is not None:
            return False
        norms = observation.gradients
        return is_priming(self.optimizer, None if norms is None else norms.total_value)

    def _is_lagged(self, restorer: Restorer) -> bool:
        """Return whether the step is taken before it is judged.

        The first one is not: what it creates could not be undone. Nor is one that could be neither
        left out nor undone, once it turns out that the update is not compiled.
        """
        if not self.lags:
            return False
        self.adopt_group_transforms()
        restores = bool(restorer.keeper.ring.slots)
        return self.steps > 0 and (restores or self.update.leaves_out)

    # the end of a run

    def close(self) -> None:
        """Write the last summary, let the writers and the model go; a second call does nothing."""
        # The collector may call this while a graph is traced, or runs: torch would
        # compile this, too. (It is loaded then; at exit it is too late for that.)
        disable = getattr(sys.modules.get("torch._dynamo"), "disable", lambda close: close)
        disable(self._close)()

    def _close(self) -> None:
        if self.restorer is not None and self.restorer.buffers is not None:
            self.restorer.buffers.close()
        telemetry = self.recorder.telemetry
        if telemetry is not None and not telemetry.closed:
            with suppress(DivergenceError), _disable_current_modes():
                self.settle()
            telemetry.close(self.summary(*telemetry.ending.status()))


def _weakly(method: Callable[[], None]) -> Callable[[], None]:
    """Return ``method`` for those who must not keep its object alive."""
    ref = weakref.WeakMethod(method)

    def call() -> None:
        bound = ref()
        if bound is not None:
            bound()

    return call
