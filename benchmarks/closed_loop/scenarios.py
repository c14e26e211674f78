"""The failures that the closed-loop benchmark drives runs into, and what is in the loop then."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.closed_loop.drives import (
    Drive,
    grow,
    grow_one_direction,
    lose_rank,
    pull_to_clusters,
    queries_and_keys,
)
from benchmarks.learning_rate.model import GPT
from stableopt.functional import lora_delta_norm
from stableopt.sensors import SampledSpectrum, Sampler, Sensors, SpectralNorm
from stableopt.sensors.protocol import Visit
from stableopt.transforms import AdaptiveWeightDecay, LogitBound, LoRANormClamp, QKClip, SpectralCap
from stableopt.triggers import Trigger, above, below

Measure = Callable[[GPT, list[str]], dict[str, float]]

ADAPTERS = "LoRA"
"""The scenario whose model is frozen, and which is driven by its learning rate."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What is in the loop.

    Attributes:
        title: In tables.
        transforms: The transforms; none for a bare optimizer.
        sensors: The sensors, by the seed of the run.
        observed: Whether the loop tells what it measures in its forward passes.
    """

    title: str
    transforms: tuple[Any, ...] = ()
    sensors: Callable[[int], Sensors | tuple[()]] = lambda seed: ()
    observed: bool = False


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A failure, how a run is driven into it, and how it is told.

    Attributes:
        name: In results and on the command line.
        title: In tables.
        driven: What drives it, in words.
        metric: What goes wrong.
        bound: Where it begins to be wrong.
        is_upper: Whether wrong is above the bound, or below.
        units: Returns what is driven and judged one by one: names of parameters.
        measure: Returns the metric of every unit.
        in_forward: Whether it can be told only once the forward pass has met it.
        signal: What it is called in ``observe()``; ``None`` if sensors read it.
        drive: What changes the weights; ``None`` if it is the learning rate alone.
        lr_factor: On the learning rate while it is driven.
        arms: What is in the loop, by ``"l2"``, ``"strong"``, ``"ours"``, ``"dense"``.
    """

    name: str
    title: str
    driven: str
    metric: str
    bound: float
    is_upper: bool = True
    units: Callable[[nn.Module], list[str]]
    measure: Measure
    in_forward: bool = False
    signal: str | None = None
    drive: Drive | None = None
    lr_factor: float = 1.0
    arms: Mapping[str, Arm] = field(default_factory=dict)

    @property
    def trigger(self) -> str:
        """What a decay is told to act on, as text: the bound, and what else the cap acts on."""
        return str(self.arms["l2"].transforms[0].when)

    @property
    def tells_spectra(self) -> bool:
        """Whether it is about the shape of weights, so that this is told for every arm."""
        return self.signal is None

    def beyond(self, value: float, room: float = 1e-3) -> bool:
        """Tell whether a value is on the wrong side of the bound, by more than rounding."""
        if math.isnan(value):
            return True
        return value > self.bound * (1 + room) if self.is_upper else value < self.bound * (1 - room)


def _rarely(seed: int) -> Sensors:
    return Sensors(sampler=Sampler(seed=seed))


def _densely(sensor: Any, params: tuple[str, ...]) -> Callable[[int], Sensors]:
    def sensors(seed: int) -> Sensors:
        sampler = Sampler(ratio=1.0, every=2, seed=seed)
        return Sensors(use=(sensor,), sampler=sampler, params=params, budget=None)

    return sensors


def _decays(
    when: Trigger, params: tuple[str, ...], sensors: Callable[[int], Any], *, observed: bool = False
) -> dict[str, Arm]:
    """Return uniform L2 as ASSR has it, and the same as strong as it gets."""
    weak = AdaptiveWeightDecay(when=when, hold=False, published=True, params=params)
    strong = AdaptiveWeightDecay(when=when, base=1.0, decoupled=True, published=True, params=params)
    return {
        "l2": Arm(
            title="uniform L2, as published", transforms=(weak,), sensors=sensors, observed=observed
        ),
        "strong": Arm(
            title="uniform L2, strong", transforms=(strong,), sensors=sensors, observed=observed
        ),
    }


def _sensed(transform: Any, when: Trigger, params: tuple[str, ...], sensor: Any) -> dict[str, Arm]:
    """Return the arms of a cap, which acts on what sensors read."""
    dense = _densely(sensor, params)
    name = "soft SpectralCap" if transform.mode == "soft" else "SpectralCap"
    return {
        **_decays(when, params, dense),
        "ours": Arm(title=f"{name}, default sampler", transforms=(transform,), sensors=_rarely),
        "dense": Arm(title=f"{name}, dense sampler", transforms=(transform,), sensors=dense),
    }


# what is measured


def spectral_norms(model: GPT, names: list[str]) -> dict[str, float]:
    """Return the exact spectral norm of every weight."""
    return {name: float(torch.linalg.matrix_norm(_weight(model, name), 2)) for name in names}


def spectrum_metric(metric: str) -> Measure:
    """Return what reads a metric of the sampled rows as the sensor does, at every step."""

    def measure(model: GPT, names: list[str]) -> dict[str, float]:
        return {name: spectra(name, _weight(model, name))[metric] for name in names}

    return measure


def spectra(name: str, weight: Tensor) -> dict[str, float]:
    """Return everything that the sensor of the sampled rows reads."""
    seed = zlib.crc32(f"0:{name}".encode())
    measurement = SampledSpectrum().start(Visit(name=name, weight=weight, seed=seed, draw=0))
    return dict(measurement.finish(list(measurement.sent)).values)


def delta_norms(model: GPT, names: list[str]) -> dict[str, float]:
    """Return the Frobenius norm of what every adapter adds, by the name of its B."""
    found = {}
    for name in names:
        layer = model.get_submodule(name.removesuffix(".lora_B.weight"))
        a, b = layer.lora_A.weight.detach(), layer.lora_B.weight.detach()
        found[name] = float(lora_delta_norm(a, b, scale=layer.scaling))
    return found


def attention_logits(model: GPT, names: list[str]) -> dict[str, float]:
    """Return the largest attention logit of the last forward pass, by block."""
    blocks = {name: model.get_submodule(name.removesuffix(".qkv.weight")) for name in names}
    return {name: block.largest for name, block in blocks.items()}


def output_logits(model: GPT, names: list[str]) -> dict[str, float]:
    """Return the largest output logit of the last forward pass."""
    return {name: model.get_submodule(name.removesuffix(".weight")).largest for name in names}


def remember_largest(layer: Any, inputs: Any, output: Tensor) -> None:
    """Note the largest output of a layer: a forward hook."""
    layer.largest = float(output.detach().abs().amax())


def _weight(model: GPT, name: str) -> Tensor:
    return model.get_parameter(name).detach()


def _named(ending: str) -> Callable[[nn.Module], list[str]]:
    def units(model: nn.Module) -> list[str]:
        return [name for name, _ in model.named_parameters() if name.endswith(ending)]

    return units


# the scenarios

SIGMA, LOGIT, DELTA, OUTPUT, RANK = 4.0, 50.0, 3.0, 30.0, 0.6
_MLP = ("*up.weight", "*down.weight")


def _low_rank(*, name: str, title: str, driven: str, drive: Drive) -> Scenario:
    """Return a scenario in which MLP weights lose their rank."""
    when = below("relative_rank", RANK)
    cap = SpectralCap(mode="soft", when=when, params=_MLP)
    return Scenario(
        name=name,
        title=title,
        driven=driven,
        metric="relative_rank",
        bound=RANK,
        is_upper=False,
        units=_named("up.weight"),
        measure=spectrum_metric("relative_rank"),
        drive=drive,
        arms=_sensed(cap, when, _MLP, SampledSpectrum()),
    )


def _qk_arms() -> dict[str, Arm]:
    told = above("max_attention_logit", LOGIT)
    return {
        **_decays(told, ("*qkv.weight",), lambda seed: (), observed=True),
        "ours": Arm(title="QKClip from weights, slack 1", transforms=(QKClip(LOGIT, slack=1.0),)),
        "dense": Arm(title="QKClip, measured", transforms=(QKClip(LOGIT),), observed=True),
    }


def _lora_arms() -> dict[str, Arm]:
    told = above("delta_norm", DELTA)
    return {
        **_decays(told, ("*lora_B.weight",), lambda seed: (), observed=True),
        "ours": Arm(title="LoRANormClamp", transforms=(LoRANormClamp(DELTA),)),
    }


def _output_arms() -> dict[str, Arm]:
    told = above("max_logit", OUTPUT)
    return {
        **_decays(told, ("head.weight",), lambda seed: (), observed=True),
        "ours": Arm(
            title="LogitBound from weights, slack 1", transforms=(LogitBound(OUTPUT, slack=1.0),)
        ),
        "dense": Arm(title="LogitBound, measured", transforms=(LogitBound(OUTPUT),), observed=True),
    }


SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            name="spectral norm",
            title="σ₁ grows",
            driven="0.2 is added to one singular direction of every MLP weight in each update",
            metric="spectral_norm",
            bound=SIGMA,
            units=lambda m: _named("up.weight")(m) + _named("down.weight")(m),
            measure=spectral_norms,
            drive=grow_one_direction(0.2),
            arms=_sensed(
                SpectralCap(SIGMA, params=_MLP), above("spectral_norm", SIGMA), _MLP, SpectralNorm()
            ),
        ),
        Scenario(
            name="attention logits",
            title="attention logits grow",
            driven="queries and keys grow by 1.5% in each update",
            metric="largest attention logit",
            bound=LOGIT,
            units=_named("qkv.weight"),
            measure=attention_logits,
            in_forward=True,
            signal="max_attention_logit",
            drive=grow(0.015, queries_and_keys),
            arms=_qk_arms(),
        ),
        Scenario(
            name=ADAPTERS,
            title="LoRA deltas grow",
            driven="the learning rate is 100 times too high",
            metric="‖scale·BA‖",
            bound=DELTA,
            units=_named("lora_B.weight"),
            measure=delta_norms,
            signal="delta_norm",
            lr_factor=100.0,
            arms=_lora_arms(),
        ),
        _low_rank(
            name="clusters",
            title="neurons fall into clusters",
            driven="rows go 5% of the way to the mean of one of 8 clusters in each update",
            drive=pull_to_clusters(0.05),
        ),
        _low_rank(
            name="rank",
            title="rank collapses",
            driven="all but 4 singular directions decay by 3% in each update",
            drive=lose_rank(0.03),
        ),
        Scenario(
            name="output logits",
            title="output logits grow",
            driven="the output layer grows by 2% in each update",
            metric="largest output logit",
            bound=OUTPUT,
            units=_named("head.weight"),
            measure=output_logits,
            in_forward=True,
            signal="max_logit",
            drive=grow(0.02),
            arms=_output_arms(),
        ),
    )
}
"""By name."""

BASE_ARMS: dict[str, Arm] = {
    "healthy": Arm(title="not driven"),
    "none": Arm(title="nothing in the loop"),
}
"""What every scenario has beside its own: ``"healthy"`` is not driven."""
