"""The faults of the fault benchmark: what strikes, at which moment of a step, and how."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from stableopt import testing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from benchmarks.fault_tasks import Rows
    from stableopt.testing import Injection

BATCH, FORWARD, STEP = "batch", "before forward", "before step"
"""Moments of a training step at which a fault may strike."""

AT_REST = (FORWARD, STEP)
"""Where what lies in memory between two updates may be struck."""

_EXPONENT, _SIGN = 30, 31
_MOST_LEFT_OUT = 40


@dataclass(kw_only=True)
class Scene:
    """What a fault may change.

    Attributes:
        model: The model.
        optimizer: The inner optimizer.
        untouched: Rows of an embedding that no batch touches.
        batch: The batch of this call.
        left_out: Batches that were never trained on.
    """

    model: nn.Module
    optimizer: Optimizer
    untouched: Rows
    batch: Any = None
    left_out: int = 0


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One row of the result.

    Attributes:
        name: What ``--faults`` calls it.
        title: Its name in the table.
        strike: Does it; draws tensor and element from the seed.
        moments: Of the training step; one of them is drawn.
        first, last: Updates behind the weights when it strikes; ``last=None`` for as late
            as leaves time to find it.
        at_rest: Whether it damages weights, state or buffers, and not just one batch.
        spike: Whether it shows as a spike alone, so that the longer bound holds.
        again: Calls from the first rollback to a second strike; ``None`` for one strike.
        optimizer: ``"AdamW"`` or ``"SGD"``.
        tasks: Names of the tasks in which it can strike.
    """

    name: str
    title: str
    strike: Callable[[Scene, int], Injection | None]
    moments: tuple[str, ...] = AT_REST
    first: int = 21
    last: int | None = None
    at_rest: bool = True
    spike: bool = False
    again: int | None = None
    optimizer: str = "AdamW"
    tasks: tuple[str, ...] = ("classifier", "transformer")


def _weight(scene: Scene, seed: int) -> Injection:
    return testing.corrupt_weight(scene.optimizer, model=scene.model, seed=seed)


def _weight_bit(scene: Scene, seed: int) -> Injection:
    """Flip the highest bit of the exponent; not of a weight where that is no huge number."""
    weights = {name: weight.detach() for name, weight in scene.model.named_parameters()}
    huge = {name: (w.abs() > 1e-8) & (w.abs() < 1.0) for name, w in weights.items()}
    name, index = _draw(huge, seed)
    return testing.flip_bit(weights[name], _EXPONENT, index=index, name=name)


def _draw(allowed: Mapping[str, Tensor], seed: int) -> tuple[str, int]:
    """Draw a tensor, then one of its elements that are allowed."""
    names = [name for name, elements in allowed.items() if elements.any()]
    name = names[int(torch.randint(len(names), (), generator=_generator(seed)))]
    places = allowed[name].flatten().nonzero().flatten()
    return name, int(places[int(torch.randint(len(places), (), generator=_generator(seed + 1)))])


def _untouched_row(scene: Scene, seed: int) -> Injection:
    rows = scene.untouched
    place = int(torch.randint(rows.count * rows.width, (), generator=_generator(seed)))
    return testing.corrupt_weight(
        scene.optimizer, model=scene.model, name=rows.name, index=rows.first * rows.width + place
    )


def _moment(
    scene: Scene, seed: int, *, key: str, value: float | None = None, bit: int | None = None
) -> Injection:
    return testing.corrupt_moment(
        scene.optimizer, key, value, bit=bit, model=scene.model, seed=seed
    )


def _second_sign(scene: Scene, seed: int) -> Injection:
    """Flip the sign of a second moment that has one: zero is the same either way."""
    second = {
        name: scene.optimizer.state[parameter]["exp_avg_sq"]
        for name, parameter in scene.model.named_parameters()
    }
    name, index = _draw({name: values != 0 for name, values in second.items()}, seed)
    return testing.flip_bit(second[name], _SIGN, index=index, name=f"{name}.exp_avg_sq")


def _gradient(scene: Scene, seed: int, *, value: float) -> Injection:
    return testing.inject_gradient(scene.optimizer, value, model=scene.model, seed=seed)


def _thousandfold(scene: Scene, seed: int) -> None:
    for parameter in scene.model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(1000.0)


def _buffer(scene: Scene, seed: int, *, value: float) -> Injection:
    return testing.corrupt_buffer(scene.model, value, seed=seed)


def _poison(scene: Scene, seed: int) -> None:
    scene.batch = testing.poison_batch(scene.batch, seed=seed)


def _leave_out(scene: Scene, seed: int) -> None:
    """Leave out some batches, as many as a rollback may: all that a recovery cannot avoid."""
    scene.left_out += 1 + int(torch.randint(_MOST_LEFT_OUT, (), generator=_generator(seed)))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


_FIRST = partial(_moment, key="exp_avg")
_SECOND = partial(_moment, key="exp_avg_sq")
_ONCE: dict[str, Any] = {"at_rest": False, "moments": (STEP,)}
_EARLY: dict[str, Any] = {"first": 1, "last": 20}
_BUFFERS: dict[str, Any] = {"tasks": ("classifier",)}

FAULTS = {
    fault.name: fault
    for fault in (
        Fault(name="weight-nan", title="NaN in a weight", strike=_weight),
        Fault(name="weight-bit", title="bit 30 of a weight (finite, 1e30 up)", strike=_weight_bit),
        Fault(
            name="untouched-nan",
            title="NaN in an embedding row that no batch touches",
            strike=_untouched_row,
        ),
        Fault(name="m-nan", title="NaN in exp_avg", strike=partial(_FIRST, value=math.nan)),
        Fault(name="m-inf", title="Inf in exp_avg", strike=partial(_FIRST, value=math.inf)),
        Fault(name="m-bit", title="bit 30 of exp_avg", strike=partial(_FIRST, bit=_EXPONENT)),
        Fault(name="v-inf", title="Inf in exp_avg_sq", strike=partial(_SECOND, value=math.inf)),
        Fault(name="v-sign", title="sign of exp_avg_sq", strike=_second_sign),
        Fault(
            name="gradient-nan",
            title="NaN in a gradient",
            strike=partial(_gradient, value=math.nan),
            **_ONCE,
        ),
        Fault(
            name="gradient-inf",
            title="Inf in a gradient",
            strike=partial(_gradient, value=math.inf),
            **_ONCE,
        ),
        Fault(
            name="gradient-1000",
            title="gradients times 1000",
            strike=_thousandfold,
            spike=True,
            **_ONCE,
        ),
        Fault(
            name="buffer-nan",
            title="NaN in a BatchNorm buffer",
            strike=partial(_buffer, value=math.nan),
            **_BUFFERS,
        ),
        Fault(
            name="buffer-huge",
            title="1e37 in a BatchNorm buffer",
            strike=partial(_buffer, value=1e37),
            **_BUFFERS,
        ),
        Fault(
            name="twice",
            title="NaN in a weight, and again 3 calls after the rollback",
            strike=_weight,
            again=3,
        ),
        Fault(
            name="batch-nan",
            title="NaN in a batch",
            strike=_poison,
            at_rest=False,
            moments=(BATCH,),
            tasks=("classifier",),
        ),
        Fault(
            name="batch-noise",
            title="a batch of random symbols",
            strike=_poison,
            at_rest=False,
            moments=(BATCH,),
            spike=True,
            tasks=("transformer",),
        ),
        Fault(name="early-weight", title="NaN in a weight, warm-up", strike=_weight, **_EARLY),
        Fault(
            name="early-1000",
            title="gradients times 1000, warm-up",
            strike=_thousandfold,
            spike=True,
            **_ONCE,
            **_EARLY,
        ),
        Fault(
            name="momentum-bit",
            title="bit 30 of SGD's momentum_buffer",
            strike=partial(_moment, key="momentum_buffer", bit=_EXPONENT),
            optimizer="SGD",
        ),
        Fault(
            name="none",
            title="control: no fault, up to 40 batches left out",
            strike=_leave_out,
            at_rest=False,
            moments=(BATCH,),
        ),
    )
}
"""Every fault by its name; ``none`` is the control."""
