"""The faults of the fault benchmark: what strikes, at which moment of a step, and how."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.faults import strikes
from benchmarks.faults.tasks import AMPLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn
    from torch.optim import Optimizer

    from benchmarks.faults.state import Whole
    from benchmarks.faults.tasks import Rows
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
_EARLY: dict[str, Any] = {"first": 1, "last": 20}
_LATE: dict[str, Any] = {"first": 65, "spike": True}  # past three looks that are 20 updates apart
_BUFFERS: dict[str, Any] = {"tasks": ("classifier",)}

FAULTS = {
    fault.name: fault
    for fault in (
        Fault(name="weight-nan", title="NaN in a weight", strike=strikes.weight, shows=True),
        Fault(
            name="weight-bit",
            title="bit 30 of a weight (finite, 1e30 up)",
            strike=strikes.weight_bit,
        ),
        Fault(
            name="head-bit",
            title="bit 30 of a weight of the head (finite, 1e30 up)",
            strike=strikes.head_bit,
        ),
        Fault(
            name="gain-bit",
            title="bit 30 of a norm's gain below 1 (finite, 1e38)",
            strike=strikes.gain_bit,
        ),
        Fault(
            name="weight-100",
            title="a weight matrix times 100",
            strike=strikes.hundredfold,
            **_LATE,
        ),
        Fault(
            name="untouched-nan",
            title="NaN in an embedding row that no batch touches",
            strike=strikes.untouched_row,
        ),
        Fault(name="m-nan", title="NaN in exp_avg", strike=partial(_FIRST, value=math.nan)),
        Fault(name="m-inf", title="Inf in exp_avg", strike=partial(_FIRST, value=math.inf)),
        Fault(name="m-bit", title="bit 30 of exp_avg", strike=partial(_FIRST, bit=_EXPONENT)),
        Fault(name="v-inf", title="Inf in exp_avg_sq", strike=partial(_SECOND, value=math.inf)),
        Fault(name="v-sign", title="sign of exp_avg_sq", strike=strikes.second_sign),
        Fault(
            name="v-zero",
            title="exp_avg_sq of a tensor set to 0",
            strike=strikes.vanished,
            **_LATE,
        ),
        Fault(
            name="v-zero-all",
            title="all of exp_avg_sq set to 0",
            strike=strikes.all_vanished,
            **_LATE,
        ),
        Fault(
            name="gradient-nan",
            title="NaN in a gradient",
            strike=partial(strikes.gradient, value=math.nan),
            shows=True,
            **_ONCE,
        ),
        Fault(
            name="gradient-inf",
            title="Inf in a gradient",
            strike=partial(strikes.gradient, value=math.inf),
            shows=True,
            **_ONCE,
        ),
        Fault(
            name="gradient-1000",
            title="gradients times 1000",
            strike=strikes.thousandfold,
            spike=True,
            **_ONCE,
        ),
        Fault(
            name="gradient-1000-sgd",
            title="gradients times 1000, SGD",
            strike=strikes.thousandfold,
            spike=True,
            optimizer="SGD",
            **_ONCE,
        ),
        Fault(
            name="gradient-1000-thrice",
            title="gradients times 1000, three times",
            strike=strikes.thousandfold,
            spike=True,
            times=3,
            last=115,
            **_ONCE,
        ),
        Fault(
            name="gradient-1000-thrice-sgd",
            title="gradients times 1000, three times, SGD",
            strike=strikes.thousandfold,
            spike=True,
            times=3,
            last=115,
            optimizer="SGD",
            **_ONCE,
        ),
        Fault(
            name="buffer-nan",
            title="NaN in a BatchNorm buffer",
            strike=partial(strikes.buffer, value=math.nan),
            **_BUFFERS,
        ),
        Fault(
            name="buffer-huge",
            title="1e37 in a BatchNorm buffer",
            strike=partial(strikes.buffer, value=1e37),
            **_BUFFERS,
        ),
        Fault(
            name="twice",
            title="NaN in a weight, and again 3 calls after the rollback",
            strike=strikes.weight,
            shows=True,
            again=3,
        ),
        Fault(
            name="twice-long",
            title="NaN in a weight, twice as above, early in 1,500 updates",
            strike=strikes.weight,
            last=150,
            updates=1500,
            tasks=AMPLE,
            shows=True,
            again=3,
        ),
        Fault(
            name="snapshot-bit",
            title="bit 20 of a weight in the newest snapshot, and NaN in a weight",
            strike=strikes.in_snapshot,
            first=101,
            shows=True,
            in_snapshot=True,
        ),
        Fault(
            name="batch-nan",
            title="NaN in a batch",
            strike=strikes.poison,
            at_rest=False,
            shows=True,
            moments=(BATCH,),
            tasks=("classifier",),
        ),
        Fault(
            name="batch-noise",
            title="a batch of random symbols",
            strike=strikes.poison,
            at_rest=False,
            moments=(BATCH,),
            spike=True,
            tasks=("transformer",),
        ),
        Fault(
            name="early-weight",
            title="NaN in a weight, warm-up",
            strike=strikes.weight,
            shows=True,
            **_EARLY,
        ),
        Fault(
            name="early-1000",
            title="gradients times 1000, warm-up",
            strike=strikes.thousandfold,
            spike=True,
            **_ONCE,
            **_EARLY,
        ),
        Fault(
            name="first-1000",
            title="the very first gradients times 1000",
            strike=strikes.thousandfold,
            spike=True,
            first=0,
            last=0,
            **_ONCE,
        ),
        Fault(
            name="momentum-bit",
            title="bit 30 of SGD's momentum_buffer",
            strike=partial(strikes.moment, key="momentum_buffer", bit=_EXPONENT),
            optimizer="SGD",
        ),
        Fault(
            name="shift",
            title="no fault: the data become other data",
            strike=strikes.shift,
            at_rest=False,
            moments=(BATCH,),
            shift=True,
        ),
        Fault(
            name="none",
            title="control: no fault, up to 40 batches left out",
            strike=strikes.leave_out,
            at_rest=False,
            moments=(BATCH,),
        ),
    )
}
"""Every fault by its name; ``none`` is the control."""
