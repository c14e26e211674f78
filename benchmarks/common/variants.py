"""Who takes part: ways to step the same AdamW, each on its own copy of the same model."""

from __future__ import annotations

import importlib.util
import random
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from benchmarks.common.workload import GPT, make_model
from stableopt import ClipGradNorm, StableOptimizer, presets
from stableopt.functional import assr_condition_number, assr_fiedler
from stableopt.sensors import Sensors
from stableopt.update.compiled import CompiledUpdate

MAX_NORM = 1.0
"""The bound of every variant that clips."""

ASSR_EVERY = 10
ASSR_RATIO = 0.1
"""The recipe of ASSR: how often, and which share of the linear layers, drawn at random."""

IMPLEMENTATIONS = ("fused", "foreach", "for-loop")
"""The implementations of torch's AdamW."""


@dataclass(kw_only=True)
class Learner:
    """A model and all that a training step does with it.

    Attributes:
        model: The model it trains.
        optimizer: What the training loop holds: the wrapper if there is one.
        update: Called with the loss once the gradients are there.
        interventions: Returns how many steps were not taken.
        close: Releases what the variant holds outside of memory.
    """

    model: GPT
    optimizer: Any
    update: Callable[[Tensor], object]
    interventions: Callable[[], int] = lambda: 0
    close: Callable[[], object] = lambda: None


Build = Callable[[GPT, Optimizer, Path], Learner]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the result.

    Attributes:
        label: Its name in the table.
        build: Makes the learner from a model, its bare optimizer and an empty directory.
        requires: A package beyond torch and stableopt, if it needs one.
    """

    label: str
    build: Build
    requires: str | None = None

    @property
    def available(self) -> bool:
        """Tell whether the package it requires is installed."""
        return self.requires is None or importlib.util.find_spec(self.requires) is not None


def make_optimizer(model: GPT, implementation: str) -> torch.optim.AdamW:
    """Return the AdamW that every variant steps.

    Args:
        model: Whose parameters it trains.
        implementation: One of :data:`IMPLEMENTATIONS`.
    """
    fused, foreach = implementation == "fused", implementation == "foreach"
    return torch.optim.AdamW(
        model.parameters(), lr=3e-4, betas=(0.9, 0.95), fused=fused, foreach=foreach
    )


@contextmanager
def make_learners(
    names: Iterable[str], *, size: str, implementation: str, seed: int, directory: Path
) -> Iterator[dict[str, Learner]]:
    """Yield variants by name, each on a new model; they are closed afterwards.

    Args:
        names: Keys of :data:`VARIANTS` or :data:`PERIODIC`.
        size: The models, as in :func:`benchmarks.common.workload.make_model`.
        implementation: One of :data:`IMPLEMENTATIONS`.
        seed: The same seed gives the same weights.
        directory: Where the variants may write.
    """
    learners: dict[str, Learner] = {}
    try:
        for name in names:
            own, model = directory / name, make_model(size, seed)
            own.mkdir(parents=True, exist_ok=True)
            build = {**VARIANTS, **PERIODIC}[name].build
            learners[name] = build(model, make_optimizer(model, implementation), own)
        yield learners
    finally:
        for learner in learners.values():
            learner.close()


def _bare(model: GPT, optimizer: Optimizer, directory: Path) -> Learner:
    return Learner(model=model, optimizer=optimizer, update=lambda loss: optimizer.step())


def _clipped(model: GPT, optimizer: Optimizer, directory: Path) -> Learner:
    parameters = list(model.parameters())

    def update(loss: Tensor) -> None:
        clip_grad_norm_(parameters, MAX_NORM)
        optimizer.step()

    return Learner(model=model, optimizer=optimizer, update=update)


def _stable(make: Callable[[], dict[str, Any]] = dict) -> Build:
    """Return what builds the wrapper with options, new ones for each."""

    def build(model: GPT, optimizer: Optimizer, directory: Path) -> Learner:
        return _learner_of(model, StableOptimizer(optimizer, **make()))

    return build


def _assr(model: GPT, optimizer: Optimizer, directory: Path) -> Learner:
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    draw, steps = random.Random(0), 0

    def update(loss: Tensor) -> None:
        nonlocal steps
        if steps % ASSR_EVERY == 0:
            for layer in draw.sample(layers, max(1, int(ASSR_RATIO * len(layers)))):
                assr_fiedler(layer.weight)
                assr_condition_number(layer.weight)
        steps += 1
        optimizer.step()

    return Learner(model=model, optimizer=optimizer, update=update)


def _robust(model: GPT, optimizer: Optimizer, directory: Path) -> Learner:
    return _learner_of(model, StableOptimizer(optimizer, model=model, **presets.robust()))


def _compiled(model: GPT, optimizer: Optimizer, directory: Path) -> Learner:
    bare = _uncompiled(optimizer)
    update = CompiledUpdate(bare, {})
    return Learner(model=model, optimizer=bare, update=lambda loss: update.take())


def _stable_compiled(model: GPT, optimizer: Optimizer, directory: Path) -> Learner:
    return _learner_of(model, StableOptimizer(_uncompiled(optimizer), compile=True))


def _uncompiled(optimizer: Optimizer) -> torch.optim.AdamW:
    """Return the same AdamW without kernels of its own, for the compiler to make some."""
    options = {key: optimizer.defaults[key] for key in ("lr", "betas", "eps", "weight_decay")}
    return torch.optim.AdamW(optimizer.param_groups[0]["params"], **options)


def _stable_telemetry(model: GPT, optimizer: Optimizer, directory: Path) -> Learner:
    stable = StableOptimizer(optimizer, telemetry=directory)
    learner = _learner_of(model, stable)

    def update(loss: Tensor) -> None:
        stable.observe(loss=loss)
        stable.step()

    learner.update = update
    return learner


def _learner_of(model: GPT, stable: StableOptimizer) -> Learner:
    return Learner(
        model=model,
        optimizer=stable,
        update=lambda loss: stable.step(),
        interventions=lambda: sum(event.intervened for event in stable.ledger),
        close=stable.close,
    )


def _stabilityguard(action: str) -> Build:
    def build(model: GPT, optimizer: Optimizer, directory: Path) -> Learner:
        from stabilityguard import GuardedOptimizer

        # Its hook on the embeddings, whose inputs have no gradient, makes torch warn.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        # Only the periodic line on stdout is off; all else is the default.
        guarded = GuardedOptimizer(
            optimizer, model, nan_action=action, log_dir=str(directory), verbose=False
        )
        return Learner(
            model=model,
            optimizer=guarded,
            update=lambda loss: guarded.step(),
            interventions=lambda: guarded.total_skips,
            close=guarded.close,
        )

    return build


BASELINE = "adamw"
"""The variant that every other is divided by."""

CLIPPED = "adamw+clip"
"""The second baseline: what people run."""

VARIANTS = {
    BASELINE: Variant(label="AdamW", build=_bare),
    "adamw-again": Variant(label="AdamW again (the noise of this table)", build=_bare),
    CLIPPED: Variant(label="AdamW + `clip_grad_norm_`", build=_clipped),
    "stable": Variant(label="`StableOptimizer(AdamW)`", build=_stable()),
    "stable-sensors": Variant(
        label="`StableOptimizer(AdamW, sensors=())`: the guard only",
        build=_stable(lambda: {"sensors": ()}),
    ),
    "stable+clip": Variant(
        label="`StableOptimizer` + `ClipGradNorm`",
        build=_stable(lambda: {"transforms": [ClipGradNorm(MAX_NORM)]}),
    ),
    "robust": Variant(
        label="`StableOptimizer(AdamW, **presets.robust())`: it clips as well", build=_robust
    ),
    "adamw-compiled": Variant(label="AdamW, its update compiled", build=_compiled),
    "stable-compiled": Variant(
        label="`StableOptimizer(AdamW, compile=True)`", build=_stable_compiled
    ),
    "stable+telemetry": Variant(
        label="`StableOptimizer` + telemetry and `observe(loss=)`", build=_stable_telemetry
    ),
    "stabilityguard": Variant(
        label="stabilityguard", build=_stabilityguard("skip"), requires="stabilityguard"
    ),
    "stabilityguard-rollback": Variant(
        label="stabilityguard, `rollback`",
        build=_stabilityguard("rollback"),
        requires="stabilityguard",
    ),
}
"""Every variant by its name in the result file, the baseline first."""

PERIODIC = {
    "stable-unlimited": Variant(
        label="`StableOptimizer(AdamW)`, sensors without a budget",
        build=_stable(lambda: {"sensors": Sensors(budget=None)}),
    ),
    "assr": Variant(label="AdamW + the sensors of ASSR, no actuator", build=_assr),
}
"""What differs every tenth step only, which medians of steps hide: ``benchmarks.sensor_cost``."""

ESSENTIAL = (BASELINE, "adamw-again", CLIPPED, "stable", "stable+clip", "robust")
"""What the cells of the other implementations run."""
