"""The faults of the fault benchmark: what strikes, at which moment of a step, and how."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer

from benchmarks.faults import strikes
from benchmarks.faults.state import Whole
from benchmarks.faults.tasks import AMPLE, Rows
from stableopt import StableOptimizer
from stableopt.testing import Injection

Changed = Injection | Whole

BATCH, FORWARD, STEP = "batch", "before forward", "before step"
"""Moments of a training step at which a fault may strike."""

AT_REST = (FORWARD, STEP)
"""Where what lies in memory between two updates may be struck."""

_EXPONENT = 30


@dataclass(kw_only=True)
class Scene:
    """What a fault may change.

    Attributes:
        model: The model.
        optimizer: The inner optimizer.
        stable: The wrapper around it, if there is one.
        untouched: Rows of an embedding that no batch touches.
        batch: The batch of this call.
        left_out: Batches that were never trained on.
    """

    model: nn.Module
    optimizer: Optimizer
    untouched: Rows
    stable: StableOptimizer | None = None
    batch: Any = None
    left_out: int = 0


@dataclass(frozen=True)
class Fault:
    """One row of the result.

    Attributes:
        name: What ``--faults`` calls it.
        title: Its name in the table.
        strike: Does it; draws tensor and element from the seed.
        moments: Of the training step; one of them is drawn.
        first, last: Updates behind the weights when it strikes; ``last=None`` for as late
            as leaves time to find it.
        updates: Of the runs that it strikes; ``None`` for as many as all others have.
        at_rest: Whether it damages weights, state or buffers, and not just one batch.
        shows: Whether loss or gradients are not finite at the next call.
        spike: Whether all of its values are finite and plausible, so that only their course
            gives it away and the longer bound holds.
        in_snapshot: Whether it damages the newest snapshot as well.
        shift: Whether it is none: the data become other data, for good.
        again: Calls from the first rollback to a second strike; ``None`` for one strike.
        times, period: How often it strikes, and calls from one strike to the next.
        optimizer: ``"AdamW"`` or ``"SGD"``.
        tasks: Names of the tasks in which it can strike.
    """

    name: str
    title: str
    strike: Callable[[Scene, int], Changed | tuple[Changed, ...] | None]
    _: KW_ONLY
    moments: tuple[str, ...] = AT_REST
    first: int = 21
    last: int | None = None
    updates: int | None = None
    at_rest: bool = True
    shows: bool = False
    spike: bool = False
    in_snapshot: bool = False
    shift: bool = False
    again: int | None = None
    times: int = 1
    period: int = 40
    optimizer: str = "AdamW"
    tasks: tuple[str, ...] = ("classifier", "transformer")


_FIRST = partial(strikes.moment, key="exp_avg")
_SECOND = partial(strikes.moment, key="exp_avg_sq")
_ONCE: dict[str, Any] = {"at_rest": False, "moments": (STEP,)}
_JUMP: dict[str, Any] = {**_ONCE, "spike": True}
_THRICE: dict[str, Any] = {**_JUMP, "times": 3, "last": 115}
_BATCH: dict[str, Any] = {"at_rest": False, "moments": (BATCH,)}
_EARLY: dict[str, Any] = {"first": 1, "last": 20}
_LATE: dict[str, Any] = {"first": 65, "spike": True}  # past three looks that are 20 updates apart
_BUFFERS: dict[str, Any] = {"tasks": ("classifier",)}

FAULTS = {
    fault.name: fault
    for fault in (
        Fault("weight-nan", "NaN in a weight", strikes.weight, shows=True),
        Fault("weight-bit", "bit 30 of a weight (finite, 1e30 up)", strikes.weight_bit),
        Fault("head-bit", "bit 30 of a weight of the head (finite, 1e30 up)", strikes.head_bit),
        Fault("gain-bit", "bit 30 of a norm's gain below 1 (finite, 1e38)", strikes.gain_bit),
        Fault("weight-100", "a weight matrix times 100", strikes.hundredfold, **_LATE),
        Fault(
            "untouched-nan", "NaN in an embedding row that no batch touches", strikes.untouched_row
        ),
        Fault("m-nan", "NaN in exp_avg", partial(_FIRST, value=math.nan)),
        Fault("m-inf", "Inf in exp_avg", partial(_FIRST, value=math.inf)),
        Fault("m-bit", "bit 30 of exp_avg", partial(_FIRST, bit=_EXPONENT)),
        Fault("v-inf", "Inf in exp_avg_sq", partial(_SECOND, value=math.inf)),
        Fault("v-sign", "sign of exp_avg_sq", strikes.second_sign),
        Fault("v-zero", "exp_avg_sq of a tensor set to 0", strikes.vanished, **_LATE),
        Fault("v-zero-all", "all of exp_avg_sq set to 0", strikes.all_vanished, **_LATE),
        Fault(
            "gradient-nan",
            "NaN in a gradient",
            partial(strikes.gradient, value=math.nan),
            shows=True,
            **_ONCE,
        ),
        Fault(
            "gradient-inf",
            "Inf in a gradient",
            partial(strikes.gradient, value=math.inf),
            shows=True,
            **_ONCE,
        ),
        Fault("gradient-1000", "gradients times 1000", strikes.thousandfold, **_JUMP),
        Fault(
            "gradient-1000-sgd",
            "gradients times 1000, SGD",
            strikes.thousandfold,
            optimizer="SGD",
            **_JUMP,
        ),
        Fault(
            "gradient-1000-thrice",
            "gradients times 1000, three times",
            strikes.thousandfold,
            **_THRICE,
        ),
        Fault(
            "gradient-1000-thrice-sgd",
            "gradients times 1000, three times, SGD",
            strikes.thousandfold,
            optimizer="SGD",
            **_THRICE,
        ),
        Fault(
            "buffer-nan",
            "NaN in a BatchNorm buffer",
            partial(strikes.buffer, value=math.nan),
            **_BUFFERS,
        ),
        Fault(
            "buffer-huge",
            "1e37 in a BatchNorm buffer",
            partial(strikes.buffer, value=1e37),
            **_BUFFERS,
        ),
        Fault(
            "twice",
            "NaN in a weight, and again 3 calls after the rollback",
            strikes.weight,
            shows=True,
            again=3,
        ),
        Fault(
            "twice-long",
            "NaN in a weight, twice as above, early in 1,500 updates",
            strikes.weight,
            last=150,
            updates=1500,
            tasks=AMPLE,
            shows=True,
            again=3,
        ),
        Fault(
            "snapshot-bit",
            "bit 20 of a weight in the newest snapshot, and NaN in a weight",
            strikes.in_snapshot,
            first=101,
            shows=True,
            in_snapshot=True,
        ),
        Fault(
            "batch-nan",
            "NaN in a batch",
            strikes.poison,
            at_rest=False,
            shows=True,
            moments=(BATCH,),
            tasks=("classifier",),
        ),
        Fault(
            "batch-noise",
            "a batch of random symbols",
            strikes.poison,
            **_BATCH,
            spike=True,
            tasks=("transformer",),
        ),
        Fault("early-weight", "NaN in a weight, warm-up", strikes.weight, shows=True, **_EARLY),
        Fault(
            "early-1000", "gradients times 1000, warm-up", strikes.thousandfold, **_JUMP, **_EARLY
        ),
        Fault(
            "first-1000",
            "the very first gradients times 1000",
            strikes.thousandfold,
            spike=True,
            first=0,
            last=0,
            **_ONCE,
        ),
        Fault(
            "momentum-bit",
            "bit 30 of SGD's momentum_buffer",
            partial(strikes.moment, key="momentum_buffer", bit=_EXPONENT),
            optimizer="SGD",
        ),
        Fault("shift", "no fault: the data become other data", strikes.shift, **_BATCH, shift=True),
        Fault("none", "control: no fault, up to 40 batches left out", strikes.leave_out, **_BATCH),
    )
}
"""Every fault by its name; ``none`` is the control."""
