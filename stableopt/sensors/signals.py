"""The signals of a step: collected by ``observe()``, consumed by ``step()``."""

from __future__ import annotations

import math
import numbers
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stableopt.errors import ConfigError
from stableopt.functional import dense_values, widest_real
from stableopt.runtime.storage import has_data
from stableopt.types import Observation


class Signals:
    """The signals observed since the last step, or since a batch without a step.

    ``loss`` is averaged over all calls, and a value that is not finite wins, as it does
    in any mean. Every other signal keeps its last value.
    """

    def __init__(self) -> None:
        self._losses: list[float | Tensor] = []
        self._others: dict[str, Any] = {}
        self._between: dict[str, Any] = {}
        self._begun = self._ended = False
        self._gradient: tuple[Tensor, weakref.ref[Tensor]] | None = None

    def add(
        self, signals: Mapping[str, Any], param_groups: Sequence[Mapping[str, Any]] = ()
    ) -> float | Tensor | None:
        """Collect ``signals``; a value of ``None`` was not observed.

        Args:
            signals: What is observed.
            param_groups: Those of the optimizer; a gradient that is another one than at the last
                call says that a new batch has begun.

        Returns:
            The loss, one number, if it is among them.

        Raises:
            ConfigError: A value is not a number, a tensor or a dict of these; nothing of
                the call is then collected.
        """
        checked = {n: _checked(n, value) for n, value in signals.items() if _is_there(value)}
        loss = checked.pop("loss", None)
        if isinstance(loss, dict):
            raise ConfigError(
                f"loss={signals['loss']!r}: the loss must be one number or one tensor; "
                "pass the total, and its parts under other names"
            )
        if isinstance(loss, Tensor) and loss.is_complex():
            raise ConfigError(f"loss has dtype {loss.dtype}: the loss must be a real number")
        found = None if loss is None else _mean(loss)
        if found is not None:
            self._look_for_reset(param_groups)
        if self._ended:
            # Signals between two steps, of an evaluation, do not belong to the batch that ended.
            self._losses, self._others, self._ended = [], dict(self._between), False
        if found is not None:
            self._losses.append(found)
        self._others.update(checked)
        if not self._begun:
            self._between.update(checked)
        return found

    @property
    def has_loss(self) -> bool:
        """Whether a loss was observed."""
        return bool(self._losses)

    def take(self) -> tuple[list[float | Tensor], dict[str, Any]]:
        """Return the losses and the other signals, and forget them."""
        losses, others = self._losses, self._others
        self._losses, self._others, self._between = [], {}, {}
        self._begun = self._ended = False
        self._gradient = None
        return losses, others

    def end_batch(self) -> None:
        """Have the next signals replace those of this batch: no step will be taken on it.

        A GradScaler does not call ``step()`` when it skips an overflow, and loops leave out batches
        of their own: their signals are not consumed by a step. They are kept until then,
        because some loops reset the gradients between the forward and the backward pass.
        """
        self._begun = self._ended = True

    def __getstate__(self) -> dict[str, Any]:
        """Give copies and pickles no gradient."""
        return {**self.__dict__, "_gradient": None}

    def _look_for_reset(self, param_groups: Sequence[Mapping[str, Any]]) -> None:
        """End the batch if its gradients were reset after its loss was observed."""
        if self._gradient is not None:
            parameter, known = self._gradient
            gradient = known()
            if gradient is None or parameter.grad is not gradient:
                self.end_batch()
        self._gradient = None
        for group in param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._gradient = parameter, weakref.ref(parameter.grad)
                    return


def loss_of(value: Any) -> list[float | Tensor]:
    """Return a closure's result as a loss, if it is one: closures may return anything."""
    if isinstance(value, Tensor) and value.numel() > 0:
        return [_mean(value.detach())]
    if isinstance(value, numbers.Real):
        return [_as_float(value)]
    return []


def mean_of(values: Sequence[float]) -> float | None:
    """Return the mean of the losses of a step; ``None`` if there are none."""
    return sum(values) / len(values) if values else None


def signals_of(observation: Observation) -> dict[str, Any]:
    """Return the signals of an observation that triggers may read, its loss included."""
    loss = {} if observation.loss is None else {"loss": observation.loss}
    return {**loss, **observation.signals}


def summarize_signals(signals: Mapping[str, Any]) -> dict[str, Any]:
    """Return signals as plain numbers; a tensor of many values as its mean, min and max."""
    return {name: _summary(value) for name, value in signals.items()}


def _is_there(value: Any) -> bool:
    """Return whether something was observed: neither ``None``, nor a tensor without values."""
    return value is not None and not (isinstance(value, Tensor) and not has_data(value))


def _checked(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        found = {k: v for k, v in value.items() if _is_there(v)}
        return {str(k): _checked(f"{name}[{k!r}]", v) for k, v in found.items()}
    if isinstance(value, Tensor):
        return _checked_tensor(name, value)
    if isinstance(value, numbers.Real):
        return _as_float(value)
    if hasattr(value, "__array__") and value.dtype.kind in "biuf":
        return _checked_tensor(name, torch.as_tensor(value))
    raise ConfigError(
        f"{name}={value!r}: a signal must be a number, a tensor or a dict of these; "
        "convert it with float(...) or torch.as_tensor(...)"
    )


def _checked_tensor(name: str, value: Tensor) -> Tensor:
    if value.numel() == 0:
        raise ConfigError(f"{name}: an empty tensor has no value; leave the signal out")
    if value.is_quantized:
        raise ConfigError(f"{name}: a quantized tensor; pass {name}.dequantize() instead")
    # Copied, because running averages and buffers are written to before the step.
    return dense_values(value.detach()).clone()


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an int of hundreds of digits
        return math.inf if value > 0 else -math.inf


def _mean(value: float | Tensor) -> float | Tensor:
    return _wide(value).mean() if isinstance(value, Tensor) else value


def _wide(value: Tensor) -> Tensor:
    real = value.abs() if value.is_complex() else value
    return real.to(widest_real(real.device))


def _summary(value: Any) -> Any:
    if isinstance(value, dict):
        return summarize_signals(value)
    if isinstance(value, Tensor):
        if value.numel() == 1:
            return float(_wide(value))
        wide = _wide(value)
        return {"mean": float(wide.mean()), "min": float(wide.min()), "max": float(wide.max())}
    return value
