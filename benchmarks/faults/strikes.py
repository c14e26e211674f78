"""How each fault is done: the tensor and the element are drawn from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from benchmarks.faults.state import Whole
from stableopt import StableOptimizer, testing
from stableopt.testing import Injection

if TYPE_CHECKING:
    from benchmarks.faults.kinds import Scene

_EXPONENT, _SIGN = 30, 31
_MANTISSA = 20
"""Bit that moves a float32 by 6 to 12%."""

_MOST_LEFT_OUT = 40
_NORMS = (nn.LayerNorm, nn.modules.batchnorm._BatchNorm)


def weight(scene: Scene, seed: int) -> Injection:
    """Put a NaN into a weight."""
    return testing.corrupt_weight(scene.optimizer, model=scene.model, seed=seed)


def weight_bit(scene: Scene, seed: int) -> Injection:
    """Flip the highest bit of the exponent, neither in the head nor in the gain of a norm."""
    others = {*_gains(scene.model), *_head(scene.model)}
    weights = scene.model.named_parameters()
    return _exponent({n: w for n, w in weights if n not in others}, seed)


def head_bit(scene: Scene, seed: int) -> Injection:
    """Flip the highest bit of the exponent of a weight of the output layer."""
    return _exponent(_head(scene.model), seed)


def gain_bit(scene: Scene, seed: int) -> Injection:
    """Flip the highest bit of the exponent of the gain of a norm."""
    return _exponent(_gains(scene.model), seed)


def _exponent(weights: Mapping[str, Tensor], seed: int) -> Injection:
    """Flip bit 30 of a weight that it makes huge: from 1 on it would make an Inf or a NaN.

    Where all are at least 1, as gains are before training, it does just that.
    """
    huge = {n: (w.detach().abs() > 1e-8) & (w.detach().abs() < 1.0) for n, w in weights.items()}
    if not any(bool(elements.any()) for elements in huge.values()):
        huge = {name: weight.detach() >= 1.0 for name, weight in weights.items()}
    name, index = _draw(huge, seed)
    return testing.flip_bit(weights[name].detach(), _EXPONENT, index=index, name=name)


def _head(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of the output layer: the last linear one."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return {n: w for n, w in model.named_parameters() if n.rpartition(".")[0] == linear[-1]}


def _gains(model: nn.Module) -> dict[str, Tensor]:
    found = {n: m.weight for n, m in model.named_modules() if isinstance(m, _NORMS)}
    return {f"{name}.weight": gain for name, gain in found.items()}


@torch.no_grad()
def hundredfold(scene: Scene, seed: int) -> Whole:
    """Multiply all of one weight matrix, or of an embedding, by 100."""
    matrices = {n: w for n, w in scene.model.named_parameters() if w.dim() > 1}
    return _scaled(matrices, seed, 100.0)


def vanished(scene: Scene, seed: int) -> Whole:
    """Set all second moments of one tensor to 0."""
    return _scaled(_seconds(scene), seed, 0.0)


def all_vanished(scene: Scene, seed: int) -> tuple[Whole, ...]:
    """Set all second moments to 0."""
    return tuple(_scaled({name: v}, seed, 0.0) for name, v in _seconds(scene).items())


@torch.no_grad()
def _scaled(tensors: Mapping[str, Tensor], seed: int, factor: float) -> Whole:
    name = list(tensors)[int(torch.randint(len(tensors), (), generator=_generator(seed)))]
    before = float(tensors[name].norm())
    tensors[name].mul_(factor)
    return Whole(target=name, before=before, after=float(tensors[name].norm()))


def _seconds(scene: Scene) -> dict[str, Tensor]:
    state = scene.optimizer.state
    return {f"{n}.exp_avg_sq": state[p]["exp_avg_sq"] for n, p in scene.model.named_parameters()}


def in_snapshot(scene: Scene, seed: int) -> tuple[Injection, ...]:
    """Put a NaN into a weight and, if there are snapshots, flip a bit in the newest of them."""
    nan = weight(scene, seed)
    if scene.stable is None:
        return (nan,)
    step, weights = newest_snapshot(scene.stable)
    names = [f"snapshot {step}: {name}" for name, _ in scene.model.named_parameters()]
    copies = dict(zip(names, weights, strict=True))
    name, index = _draw({n: w.abs() > 1e-8 for n, w in copies.items()}, seed + 2)
    return nan, testing.flip_bit(copies[name], _MANTISSA, index=index, name=name)


def newest_snapshot(stable: StableOptimizer) -> tuple[int, list[Tensor]]:
    """Return the step of the newest snapshot that is held, and its weights as they lie there."""
    restorer = stable._loop.restorer
    if restorer is None or not restorer.keeper.ring.sound():
        raise ValueError("there is no snapshot: strike later, or give the guard slots")
    keeper = restorer.keeper
    slot = keeper.ring.sound()[0]
    return slot.step, keeper._snapshots[slot.index]._state._params


def shift(scene: Scene, seed: int) -> None:
    """Do nothing: the run draws its batches from other data from here on."""


def _draw(allowed: Mapping[str, Tensor], seed: int) -> tuple[str, int]:
    """Draw a tensor, then the first of its elements, in random order, that is allowed.

    So that another run, whose weights are a little different, has the same one drawn.
    """
    names = [name for name, elements in allowed.items() if elements.any()]
    name = names[int(torch.randint(len(names), (), generator=_generator(seed)))]
    order = torch.randperm(allowed[name].numel(), generator=_generator(seed + 1))
    return name, int(order[allowed[name].flatten()[order].int().argmax()])


def untouched_row(scene: Scene, seed: int) -> Injection:
    """Put a NaN into a row of an embedding that no batch touches."""
    rows = scene.untouched
    place = int(torch.randint(rows.count * rows.width, (), generator=_generator(seed)))
    return testing.corrupt_weight(
        scene.optimizer, model=scene.model, name=rows.name, index=rows.first * rows.width + place
    )


def moment(
    scene: Scene, seed: int, *, key: str, value: float | None = None, bit: int | None = None
) -> Injection:
    """Write into one element of the state of the optimizer, or flip a bit of it."""
    return testing.corrupt_moment(
        scene.optimizer, key, value, bit=bit, model=scene.model, seed=seed
    )


def second_sign(scene: Scene, seed: int) -> Injection:
    """Flip the sign of a second moment that has one: zero is the same either way."""
    second = {
        name: scene.optimizer.state[parameter]["exp_avg_sq"]
        for name, parameter in scene.model.named_parameters()
    }
    name, index = _draw({name: values != 0 for name, values in second.items()}, seed)
    return testing.flip_bit(second[name], _SIGN, index=index, name=f"{name}.exp_avg_sq")


def gradient(scene: Scene, seed: int, *, value: float) -> Injection:
    """Write into one element of a gradient."""
    return testing.inject_gradient(scene.optimizer, value, model=scene.model, seed=seed)


def thousandfold(scene: Scene, seed: int) -> None:
    """Multiply all gradients by 1000."""
    for parameter in scene.model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(1000.0)


def buffer(scene: Scene, seed: int, *, value: float) -> Injection:
    """Write into one element of a buffer of the model."""
    return testing.corrupt_buffer(scene.model, value, seed=seed)


def poison(scene: Scene, seed: int) -> None:
    """Put a NaN into each part of the batch, or noise in place of symbols."""
    scene.batch = testing.poison_batch(scene.batch, seed=seed)


def leave_out(scene: Scene, seed: int) -> None:
    """Leave out some batches, as many as a rollback may: all that a recovery cannot avoid."""
    scene.left_out += 1 + int(torch.randint(_MOST_LEFT_OUT, (), generator=_generator(seed)))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
