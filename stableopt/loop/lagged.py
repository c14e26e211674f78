"""Steps that nobody waits for: taken at once, and judged at the next call."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stableopt.errors import ConfigError
from stableopt.functional import widest_real
from stableopt.health.judge import is_finite
from stableopt.runtime.lane import Lane
from stableopt.runtime.sent import Sent
from stableopt.sensors.gradients import start_gradients
from stableopt.sensors.signals import loss_of
from stableopt.types import Action, Observation, Verdict
from stableopt.update.closures import Replay, requires_closure
from stableopt.update.fused import found_inf, obeys_found_inf
from stableopt.update.learning_rate import learning_rates

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stableopt.health.spectra.sensing import Sensed
    from stableopt.loop.guardian import Guardian
    from stableopt.loop.step import StepLoop
    from stableopt.sensors.gradients import GradientMeasurement

logger = logging.getLogger("stableopt")

GONE = Verdict(
    action=Action.SKIP,
    reason="the gradients are those of weights that have gone back",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pending:
    """What is on its way to the host about a step that was taken, or left out by the device.

    Attributes:
        sent: Losses, norms, and what the guardian asked for; norms of single gradients, signals.
        losses: How many losses there are.
        gradients: What the norms belong to.
        signals: Everything else that was observed; its tensors are in ``sent``.
        sensed: What the sensors had read before it.
        lr: The learning rates it was taken with.
        left_out: Whether the device has left it out if it was bad.
    """

    sent: Sent
    losses: int
    gradients: GradientMeasurement | None
    signals: dict[str, Any]
    sensed: Sensed
    lr: tuple[float, ...] | None
    left_out: bool

    def arrive(self) -> tuple[Observation, list[float]]:
        """Return what is known about the step, and the numbers that the guardian asked for."""
        numbers, tensors = self.sent.wait()
        loss = sum(numbers[: self.losses]) / self.losses if self.losses else None
        norms, rest, arrived = None, numbers[self.losses :], iter(tensors)
        if (gradients := self.gradients) is not None:
            asked, single = len(gradients.asked), next(arrived)
            # Not the gradients themselves: they would lie beside those of the next step.
            gradients = gradients._replace(norms=[*single], values=[*single])
            norms, rest = gradients.finish(rest[:asked]), rest[asked:]
        signals = _filled(self.signals, arrived)
        return Observation(loss=loss, gradients=norms, signals=signals), rest


class LaggedStep:
    """Takes each step before anything about it is known on the host.

    The device decides whether it counts: kernels that obey ``found_inf`` (fused Adam, AdamW, SGD,
    Adagrad), and a compiled update, leave everything as it was where the loss or the norm of a
    gradient is not finite. All others take it, and a NaN goes back to a snapshot one call later.
    The first step of all is judged before it is taken: what it creates could not be undone.
    What is judged arrives at the next call, together with a scan of what the step left behind.

    Args:
        loop: The loop whose steps they are.

    Raises:
        ConfigError: The inner optimizer asks for its closure, there are transforms, or a bad step
            could neither be left out nor undone.
    """

    def __init__(self, loop: StepLoop) -> None:
        # It is handed the loop in every call: holding it would keep all of it alive.
        self.check(bool(loop.transforming))
        if requires_closure(loop.optimizer):
            name = type(loop.optimizer).__name__
            raise ConfigError(
                f"sync='lagged' must not be asked for with {name}, whose line search waits for "
                "every loss: use sync='exact'"
            )
        self._tell_what_is_taken(loop)
        self._lane = Lane()
        self._pending: _Pending | None = None
        self._gone = False

    def is_ready(self, loop: StepLoop) -> bool:
        """Return whether the step that creates the optimizer's state is behind us.

        And whether a bad one could be undone, if the update turned out not to be compiled.
        """
        loop.adopt_group_transforms()
        if loop.compiled is not None:
            loop.compiled.look()
        returns = loop.guardian is not None and loop.guardian.options.slots > 0
        return loop.ledger.steps > 0 and (returns or _leaves_out(loop))

    def _tell_what_is_taken(self, loop: StepLoop) -> None:
        """Say that a batch that is not finite costs a rollback, where the device takes it."""
        guardian, name = loop.guardian, type(loop.optimizer).__name__
        if _leaves_out(loop) or guardian is None:
            return
        mended = "fused=True (Adam, AdamW, SGD, Adagrad) or compile=True leave it out instead"
        if not guardian.options.slots:
            raise ConfigError(
                f"sync='lagged' must not be asked for with slots=0 and {name}, whose step is taken "
                f"before it is judged: there would be no way back. {mended}"
            )
        logger.warning(
            "sync='lagged': %s takes a batch that is not finite, and the run goes back for it, "
            "which counts against Guard(max_rollbacks=%d, budget=%d); %s",
            name,
            guardian.options.max_rollbacks,
            guardian.options.budget,
            mended,
        )

    def check(self, transforms: bool) -> None:
        """Refuse transforms.

        Raises:
            ConfigError: There are some.
        """
        if transforms:
            raise ConfigError(
                "sync='lagged' must not be asked for with transforms, which act on what is known "
                "of a step before it is taken: use sync='exact'"
            )

    def __call__(self, loop: StepLoop, closure: Callable[[], Any] | None) -> Any:
        """Take the step, and judge the one before it."""
        loss = loop.evaluate(closure)
        loop.settle()
        guardian = loop.guardian
        if guardian is None or self._is_gone(loop):
            return loss
        losses, signals = loop.signals.take()
        losses = losses or loss_of(loss)
        sensed = loop.sense()
        gradients = start_gradients(loop.optimizer.param_groups)
        rates = _rates(loop)
        sound = _is_sound(loop, losses, gradients)
        replay = _replay(loop, closure, loss)
        left_out = replay is None and _leaves_out(loop)
        with guardian.step(loop.ledger.steps):
            result = _take(loop, sound, replay)
        guardian.keep_buffers_if(sound)
        self._pending = _Pending(
            sent=self._send(losses, gradients, guardian, signals),
            losses=len(losses),
            gradients=None if gradients is None else gradients._replace(values=()),
            signals=signals,
            sensed=sensed,
            lr=rates,
            left_out=left_out,
        )
        if loop.sensing is not None:
            loop.sensing.launch(loop.ledger.steps + 1)
        return result if closure is None else loss

    def settle(self, loop: StepLoop) -> None:
        """Judge the step that was taken last, if it is not judged yet.

        Raises:
            DivergenceError: Nothing helped.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        observation, numbers = pending.arrive()
        verdict = loop.decide(observation, numbers, pending.sensed)
        kept = is_finite(observation) or not pending.left_out
        if verdict.action is Action.SKIP and kept:
            verdict = too_late(verdict)
        elif verdict.tames and loop.guardian is not None:
            verdict = loop.guardian.tame_late(too_late(verdict))
        loop.finish(verdict, observation, pending.sensed, lr=pending.lr, buffers=False)
        self._gone = loop.verdict is not None and loop.verdict.rollback is not None

    def __getstate__(self) -> dict[str, Any]:
        """Give copies nothing that is under way."""
        return {**self.__dict__, "_pending": None}

    def _is_gone(self, loop: StepLoop) -> bool:
        """Leave a step out whose gradients are of no use: the weights have just gone back."""
        if self._gone:
            self._gone = False
            loop.signals.take()
            loop.finish(GONE, Observation(), loop.sense())
            return True
        return False

    def _send(
        self,
        losses: Sequence[float | Tensor],
        gradients: GradientMeasurement | None,
        guardian: Guardian,
        signals: dict[str, Any],
    ) -> Sent:
        asked = [] if gradients is None else gradients.asked
        norms = [] if gradients is None else [torch.stack(_alike(gradients.norms))]
        numbers = [*losses, *asked, *guardian.start()]
        return Sent(self._lane, numbers, [*norms, *_tensors(signals)])


def _leaves_out(loop: StepLoop) -> bool:
    """Return whether the device leaves a bad step out by itself."""
    compiled = loop.compiled
    if compiled is not None and not compiled.reason:
        return compiled.leaves_out
    return obeys_found_inf(loop.optimizer)


def _is_sound(
    loop: StepLoop, losses: Sequence[float | Tensor], gradients: GradientMeasurement | None
) -> Tensor:
    """Return whether nothing that is not finite reaches the weights, on their device.

    Losses count where they are to be skipped, too.
    """
    device = torch.device("cpu") if gradients is None else gradients.total.device
    wide = widest_real(device)
    told = [
        loss.to(device, wide, non_blocking=True)
        if isinstance(loss, Tensor)
        else torch.full((), loss, dtype=wide, device=device)
        for loss in (losses if loop.skips_losses else ())
    ]
    if gradients is not None:
        told.append(gradients.total.to(wide))
    if not told:
        return torch.ones((), dtype=torch.bool, device=device)
    return torch.stack([number.detach().reshape(()) for number in told]).isfinite().all()


def _replay(loop: StepLoop, closure: Callable[[], Any] | None, loss: Any) -> Replay | None:
    """Return the closure for an optimizer that is given one; later evaluations go unjudged."""
    if closure is None or not loop.takes_closure:
        return None
    return Replay(loop.optimizer, loss, partial(loop.evaluate, closure))


def _take(loop: StepLoop, sound: Tensor, closure: Replay | None) -> Any:
    if closure is not None or not _leaves_out(loop):
        return loop.update(closure)
    if loop.compiled is not None and loop.compiled.leaves_out:
        loop.traced.veto(~sound)
        return loop.update()
    with found_inf(loop.optimizer, ~sound):
        return loop.update()


def too_late(verdict: Verdict) -> Verdict:
    """Return a verdict to skip or tame a step that has been taken already as what it comes to."""
    found = "; ".join(finding.message for finding in verdict.findings)
    what = "tame" if verdict.tames else "skip"
    reason = f"{found or verdict.reason}: too late to {what} it, the step has been taken"
    if all(finding.kind == "first_gradient" for finding in verdict.findings):
        reason = verdict.reason  # it is not about this step
    return replace(verdict, action=Action.TAKE, reason=reason)


def _rates(loop: StepLoop) -> tuple[float, ...] | None:
    """Return the learning rates, unless that would wait for a device."""
    rates = [group.get("lr") for group in loop.optimizer.param_groups]
    if any(isinstance(rate, Tensor) and rate.device.type != "cpu" for rate in rates):
        return None
    return learning_rates(loop.optimizer)


def _alike(norms: Sequence[Tensor]) -> list[Tensor]:
    """Return norms of several dtypes and devices in one of each."""
    wide = max((norm.dtype for norm in norms), key=lambda dtype: torch.finfo(dtype).bits)
    return [norm.to(norms[0].device, wide) for norm in norms]


def _tensors(signals: Any) -> list[Tensor]:
    if isinstance(signals, dict):
        return [tensor for value in signals.values() for tensor in _tensors(value)]
    return [signals] if isinstance(signals, Tensor) else []


def _filled(signals: Any, arrived: Any) -> Any:
    """Return ``signals`` with the tensors that have arrived in their places."""
    if isinstance(signals, dict):
        return {name: _filled(value, arrived) for name, value in signals.items()}
    return next(arrived) if isinstance(signals, Tensor) else signals
