"""Attempts that are in flight: taken, and not judged yet."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from stableopt.errors import ConfigError
from stableopt.functional import widest_real
from stableopt.loop.attempt import Attempt, Fate
from stableopt.runtime.lane import Lane
from stableopt.runtime.once import warn_once
from stableopt.runtime.sent import Sent
from stableopt.sensors.signals import mean_of
from stableopt.types import Action, Finding, Observation, Verdict
from stableopt.update.closures import requires_closure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch.optim import Optimizer

    from stableopt.guard import Guard
    from stableopt.sensors.gradients import GradientMeasurement
    from stableopt.sensors.signals import Signals
    from stableopt.update.eager import Update
    from stableopt.update.traced import Counts, TracedStep

logger = logging.getLogger("stableopt")

NOT_FINITE = Finding(
    kind="nonfinite_gradient", message="the loss or a gradient of a compiled step is not finite"
)
GONE = Verdict(
    action=Action.SKIP,
    reason="the gradients were computed with weights that a rollback has replaced",
)
VETOED = Verdict(
    action=Action.SKIP,
    reason="the gradients of a compiled step may be of weights that a rollback has replaced",
)

UNSEEN = Verdict(action=Action.TAKE)

MANY = 50
"""Compiled steps between two calls of ours after which a warning is logged."""


class InFlight:
    """Holds the step that was taken last, until the host knows about it.

    With ``sync="lagged"`` every step is taken before anything about it is known on the host. The
    device decides whether it counts: kernels that obey ``found_inf`` and a compiled update leave
    everything as it was where the loss or the norm of a gradient is not finite. All others take
    the step, and a NaN is rolled back one call later. What is judged arrives at the next call,
    together with a scan of what the step left behind.

    A step that is compiled from outside decides for itself as well. It leaves nothing but counts,
    from which the attempts are made that may have led to them.

    Args:
        traced: Counts the steps of a graph.

    Attributes:
        rolled_back: Whether a snapshot was restored since the gradients at hand were computed.
    """

    def __init__(self, traced: TracedStep) -> None:
        self._traced = traced
        self._lane = Lane()
        self._sending: _Sending | None = None
        self._said: set[object] = set()
        self.rolled_back = False

    def add(
        self,
        attempt: Attempt,
        losses: Sequence[float | Tensor],
        gradients: GradientMeasurement | None,
        asked: Sequence[float | Tensor],
        sound: Tensor | None,
    ) -> None:
        """Send what is known about an attempt to the host, and judge it when it has arrived.

        Args:
            attempt: It has been taken.
            losses: What was observed.
            gradients: Their norms.
            asked: The numbers that the judge needs.
            sound: Whether the device has taken it; ``None`` if it has in any case.
        """
        norms = [] if gradients is None else [torch.stack(_alike(gradients.norms))]
        of_gradients = [] if gradients is None else gradients.scalars
        fate = [] if sound is None else [sound]
        numbers = [*fate, *losses, *of_gradients, *asked]
        sent = Sent(self._lane, numbers, [*norms, *_tensors(attempt.observation.signals)])
        if gradients is not None:
            # Not the gradients themselves: they would lie beside those of the next step.
            gradients = gradients._replace(values=())
        self._sending = _Sending(attempt, sent, len(losses), gradients, sound is not None)

    def arrive(self, signals: Signals, last: Callable[[], Attempt]) -> Iterator[Attempt]:
        """Yield what can be judged now; nothing more after a rollback.

        Args:
            signals: What was observed.
            last: Returns what is known about the last step that a graph has taken.
        """
        if self._sending is not None:
            sending, self._sending = self._sending, None
            yield sending.arrive()  # it was taken before those of a graph
        counts = self._traced.take_counts()
        if counts is not None:
            self.rolled_back = False
            yield from self._of_graph(counts, signals, last)
            if self.rolled_back:
                self._traced.veto()
                self.rolled_back = False

    def _of_graph(
        self, counts: Counts, signals: Signals, last: Callable[[], Attempt]
    ) -> Iterator[Attempt]:
        """Yield attempts in an order in which they may have happened."""
        if counts.calls > MANY:
            warn_once(
                self._said,
                "unseen",
                "%d compiled steps were taken since the last call that is not compiled: nothing "
                "was judged, and no snapshot taken, in between; call opt.zero_grad() or "
                "opt.observe() between two steps",
                counts.calls,
            )
        for _ in range(counts.vetoed):
            yield Attempt(verdict=VETOED, fate=Fate.LEFT_OUT)
        yield from self._left_out(counts.calls - counts.taken - counts.vetoed - counts.row, signals)
        for _ in range(counts.taken - 1):
            if not self.rolled_back:
                yield Attempt(verdict=UNSEEN, fate=Fate.TAKEN, seen=False)
        if counts.taken and not self.rolled_back:
            attempt = last()
            attempt.fate, attempt.of_graph = Fate.TAKEN, True
            attempt.scans_all = counts.calls > 1
            yield attempt
        yield from self._left_out(counts.row, signals)

    def _left_out(self, count: int, signals: Signals) -> Iterator[Attempt]:
        for _ in range(count):
            if not self.rolled_back:
                signals.take()
                yield Attempt(found=(NOT_FINITE,), fate=Fate.LEFT_OUT)

    def __bool__(self) -> bool:
        """Return whether a step that was taken by us is in flight."""
        return self._sending is not None

    def __getstate__(self) -> dict[str, Any]:
        """Give copies nothing that is in flight."""
        return {**self.__dict__, "_sending": None, "_lane": Lane(), "rolled_back": False}


class _Sending(NamedTuple):
    """What is on its way to the host about an attempt.

    Attributes:
        attempt: It has been taken, or left out by the device.
        sent: Losses, norms, and what the judge asked for; norms of single gradients, signals.
        losses: How many losses there are.
        gradients: What the norms belong to.
        decided: Whether the device has decided, and says how before everything else.
    """

    attempt: Attempt
    sent: Sent
    losses: int
    gradients: GradientMeasurement | None
    decided: bool

    def arrive(self) -> Attempt:
        """Return the attempt with what is known about it now."""
        numbers, tensors = self.sent.wait()
        attempt, arrived = self.attempt, iter(tensors)
        attempt.fate = Fate.TAKEN
        if self.decided:
            attempt.fate = Fate.TAKEN if numbers[0] else Fate.LEFT_OUT
            numbers = numbers[1:]
        losses, rest = numbers[: self.losses], numbers[self.losses :]
        norms = None
        if self.gradients is not None:
            asked, single = len(self.gradients.scalars), [*next(arrived)]
            gradients = self.gradients._replace(norms=single, values=single)
            norms, rest = gradients.finish(rest[:asked]), rest[asked:]
        signals = _filled(attempt.observation.signals, arrived)
        attempt.observation = Observation(loss=mean_of(losses), gradients=norms, signals=signals)
        attempt.numbers = rest
        return attempt


def check_lagged(optimizer: Optimizer, guard: Guard, update: Update, *, transforms: bool) -> None:
    """Refuse what cannot be judged after it was taken; warn of what costs a rollback.

    Raises:
        ConfigError: The inner optimizer asks for its closure, there are transforms, or a bad step
            could neither be left out nor undone.
    """
    name = type(optimizer).__name__
    if transforms:
        raise ConfigError(
            "sync='lagged' must not be asked for with transforms, which act on what is known "
            "of a step before it is taken: use sync='exact'"
        )
    if requires_closure(optimizer):
        raise ConfigError(
            f"sync='lagged' must not be asked for with {name}, whose line search waits for "
            "every loss: use sync='exact'"
        )
    if update.leaves_out:
        return
    mended = "fused=True (Adam, AdamW, SGD, Adagrad) or compile=True leave it out instead"
    if not guard.slots:
        raise ConfigError(
            f"sync='lagged' must not be asked for with slots=0 and {name}, whose step is taken "
            f"before it is judged: it could not be undone. {mended}"
        )
    logger.warning(
        "sync='lagged': %s takes a batch that is not finite, and the run is rolled back for it, "
        "which counts against Guard(max_rollbacks=%d, budget=%d); %s",
        name,
        guard.max_rollbacks,
        guard.budget,
        mended,
    )


def is_sound(losses: Sequence[float | Tensor], gradients: GradientMeasurement | None) -> Tensor:
    """Return whether losses and the norm of the gradients are finite, 0-dim, on their device."""
    device = torch.device("cpu") if gradients is None else gradients.total.device
    wide = widest_real(device)
    numbers = [
        loss.to(device, wide, non_blocking=True)
        if isinstance(loss, Tensor)
        else torch.full((), loss, dtype=wide, device=device)
        for loss in losses
    ]
    if gradients is not None:
        numbers.append(gradients.total.to(wide))
    if not numbers:
        return torch.ones((), dtype=torch.bool, device=device)
    return torch.stack([number.detach().reshape(()) for number in numbers]).isfinite().all()


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
