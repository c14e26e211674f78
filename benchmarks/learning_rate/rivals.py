"""What is done to the gradients between backward and step, by clipping alone and by its rivals."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grads_with_norm_, get_total_norm

BOUND = 1.0
"""On the global norm of the gradients, wherever one clips to a constant."""


class Gate(Protocol):
    """Changes gradients in place, and may refuse a step."""

    def before_step(self, parameters: Sequence[Tensor], loss: float) -> bool:
        """Return whether the step is to be taken.

        Args:
            parameters: All of them, each with its gradient.
            loss: Of the batch.
        """


class Nothing:
    """Leaves the gradients as they are."""

    def before_step(self, parameters: Sequence[Tensor], loss: float) -> bool:
        """Return ``True``."""
        return True


class Clip:
    """Clip the global gradient norm to a constant."""

    def before_step(self, parameters: Sequence[Tensor], loss: float) -> bool:
        """Clip; the step is always taken."""
        clip_grad_norm_(parameters, BOUND)
        return True


class ZClip:
    r"""Clip a gradient norm that is an outlier among the recent ones.

    With :math:`z = (\lVert g \rVert - \mu) / \sigma` above ``threshold``, the norm becomes
    :math:`\mu + \text{threshold}^2 \sigma / z`; the averages μ and σ² take in the norm that came
    of it, so that they hardly learn from a spike. The constant bound of its authors' code is
    there as well, during the warm-up alone and afterwards on top.

    Args:
        decay: Of both averages.
        threshold: Standard deviations that make an outlier.
        warmup: Steps whose norms the averages begin with.

    Reference:
        Kumar, Owen, Chowdhury, Güra, "ZClip: adaptive spike mitigation for LLM pre-training",
        2025, arXiv:2504.02507; the defaults are those of github.com/bluorion-com/ZClip.
    """

    def __init__(self, decay: float = 0.97, threshold: float = 2.5, warmup: int = 25) -> None:
        self.decay, self.threshold, self.warmup = decay, threshold, warmup
        self.mean, self.variance = math.nan, math.nan
        self._first: list[float] = []

    def before_step(self, parameters: Sequence[Tensor], loss: float) -> bool:
        """Clip; the step is always taken."""
        total = get_total_norm(_gradients(parameters))
        bound = norm = float(total)
        if len(self._first) < self.warmup:
            self._first.append(norm)
            self.mean = fmean(self._first)
            self.variance = fmean((known - self.mean) ** 2 for known in self._first)
        else:
            bound = self._bound(norm)
            self.mean = self.decay * self.mean + (1 - self.decay) * bound
            spread = (bound - self.mean) ** 2
            self.variance = self.decay * self.variance + (1 - self.decay) * spread
        if min(bound, BOUND) < norm:
            clip_grads_with_norm_(parameters, min(bound, BOUND), total)
        return True

    def _bound(self, norm: float) -> float:
        deviation = math.sqrt(self.variance)
        z = (norm - self.mean) / (deviation + 1e-6)
        return self.mean + self.threshold**2 * deviation / z if z > self.threshold else norm


class AdaGC:
    r"""Clip the gradient of every tensor relative to its own past norms.

    :math:`g \leftarrow g \cdot \min(1, \lambda_\text{rel} \gamma / \lVert g \rVert)`, and
    :math:`\gamma` is the moving average of the norm that comes of it. In the first ``warmup``
    steps the global norm is clipped to a constant, and :math:`\gamma` is the smallest norm so far.

    Args:
        relative: :math:`\lambda_\text{rel}`.
        decay: Of the moving average.
        warmup: Steps.

    Reference:
        Wang et al., "AdaGC: enhancing LLM pretraining stability via adaptive gradient clipping",
        2025, arXiv:2502.11034; the defaults are those of pytorch_optimizer.
    """

    def __init__(self, relative: float = 1.05, decay: float = 0.98, warmup: int = 100) -> None:
        self.relative, self.decay, self.warmup = relative, decay, warmup
        self.past: list[Tensor] | None = None
        self._steps = 0

    def before_step(self, parameters: Sequence[Tensor], loss: float) -> bool:
        """Clip; the step is always taken."""
        gradients = _gradients(parameters)
        if self._steps < self.warmup or self.past is None:
            clip_grad_norm_(parameters, BOUND)
            norms = list(torch._foreach_norm(gradients))
            self.past = norms if self.past is None else _smaller(self.past, norms)
        else:
            self._clip(gradients, self.past)
        self._steps += 1
        return True

    def _clip(self, gradients: list[Tensor], past: list[Tensor]) -> None:
        for gradient, known in zip(gradients, past, strict=True):
            norm = gradient.norm()
            gradient.mul_((self.relative * known / norm.clamp(min=1e-12)).clamp(max=1.0))
            known.lerp_(gradient.norm(), 1 - self.decay)


class SkipSpikes:
    """Skip a step whose loss or gradient norm is far from the recent ones; clip all others.

    Far is more than ``factor`` standard deviations from the mean of up to ``window`` steps before
    it, skipped ones included; nothing is skipped before half a window is full.

    Args:
        window: Steps.
        factor: Standard deviations.

    Attributes:
        skipped: Steps so far.

    Reference:
        ``SkipStepOptimizer`` of github.com/allenai/OLMo-core, whose defaults these are; OLMo et
        al., "2 OLMo 2 Furious", 2025, arXiv:2501.00656.
    """

    def __init__(self, window: int = 128, factor: float = 6.0) -> None:
        self.window, self.factor, self.skipped = window, factor, 0
        self._losses: deque[float] = deque(maxlen=window)
        self._norms: deque[float] = deque(maxlen=window)

    def before_step(self, parameters: Sequence[Tensor], loss: float) -> bool:
        """Clip, and return whether loss and norm are like the others."""
        norm = float(clip_grad_norm_(parameters, BOUND))
        usual = self._is_usual(loss, self._losses) and self._is_usual(norm, self._norms)
        self._losses.append(loss)
        self._norms.append(norm)
        self.skipped += not usual
        return usual

    def _is_usual(self, value: float, past: deque[float]) -> bool:
        # The step itself counts among those that fill the window, as it does there.
        if len(past) + 1 < max(20, self.window // 2):
            return True
        if not all(math.isfinite(number) for number in (value, *past)):
            return False  # what is not finite spoils mean and deviation while it is remembered
        return abs(value - fmean(past)) <= self.factor * stdev(past)


def _gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def _smaller(known: list[Tensor], norms: list[Tensor]) -> list[Tensor]:
    return [torch.minimum(a, b) for a, b in zip(known, norms, strict=True)]
