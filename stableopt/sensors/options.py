"""Which sensors run, on which weights, when, and for how much of the time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from stableopt.errors import ConfigError, require_number
from stableopt.sensors.protocol import Sensor
from stableopt.sensors.sampled_spectrum import SampledSpectrum
from stableopt.sensors.sampler import Sampler
from stableopt.sensors.spectral_norm import SpectralNorm

RISKS = ("spectral", "kappa_tilde")


@dataclass(frozen=True, kw_only=True)
class Sensors:
    """Which sensors run, on which weights, when, and for how much of the time.

    Attributes:
        use: The sensors; the spectral norm and a sampled spectrum if not given.
        sampler: Which weights they visit at which step.
        params: Patterns of parameter names (``*`` and ``?``) to visit; ``None`` for all of two
            dimensions or more.
        heads: Patterns of the names of output layers. Their rows for what never occurs, such as
            tokens that the data lack, are alike in a healthy run: their course is followed, but
            no absolute limit applies to them. ``None`` for those with a part such as ``lm_head``,
            ``head``, ``classifier``, ``score`` or ``embed_out`` in their dotted names, the last
            linear layer of the model, and the table of its vocabulary if no layer has as many
            outputs (then it is tied to them). No limit applies to learned positions either (a part
            such as ``wpe``, ``pos_embed`` or ``position_embeddings``), whatever is given here:
            neighbours are alike in a healthy run.
        budget: Share of the training time that sensors may take, beyond the first visit of all
            weights: visits that would take more are postponed, and that is logged. What is
            read then depends on the machine. ``None`` for no limit. Where readings lead to
            actions nothing is postponed, so that runs are reproducible, and it is only logged.
        risk: What the risk level is read from: ``"spectral"``, or ``"kappa_tilde"`` for the
            slope of κ̃ that Gradience reads (needs :class:`KappaTilde` among the sensors).

    Raises:
        ConfigError: A value is out of range, or something in ``use`` is no sensor.

    Cost:
        Measured in the documentation.

    Example:
        >>> Sensors(sampler=Sampler(every=50)).sampler.coverage
        400
    """

    use: tuple[Sensor, ...] = (SpectralNorm(), SampledSpectrum())
    sampler: Sampler = Sampler()  # noqa: RUF009 - frozen
    params: tuple[str, ...] | None = None
    heads: tuple[str, ...] | None = None
    budget: float | None = 0.005
    risk: str = "spectral"

    def __post_init__(self) -> None:
        object.__setattr__(self, "use", _sensors(self.use))
        if not isinstance(self.sampler, Sampler):
            raise ConfigError(f"sampler={self.sampler!r} must be a Sampler, e.g. Sampler(every=50)")
        if self.params is not None:
            object.__setattr__(self, "params", _patterns("params", self.params, least=1))
        if self.heads is not None:
            object.__setattr__(self, "heads", _patterns("heads", self.heads, least=0))
        if self.budget is not None:
            meaning = "the share of the training time that sensors may take; None for no limit"
            require_number("budget", self.budget, 1.0, meaning)
        if self.risk not in RISKS:
            raise ConfigError(f"risk={self.risk!r} must be 'spectral' or 'kappa_tilde'")
        metrics = {metric for sensor in self.use for metric in sensor.metrics}
        if self.risk == "kappa_tilde" and "kappa_tilde" not in metrics:
            raise ConfigError("risk='kappa_tilde' needs its sensor: add KappaTilde() to use")


def _sensors(given: object) -> tuple[Sensor, ...]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ConfigError(f"use={given!r} must be a list of sensors, e.g. [SpectralNorm()]")
    found = tuple(given)
    seen = set[str]()
    for sensor in found:
        if isinstance(sensor, type) or not isinstance(sensor, Sensor):
            raise ConfigError(
                f"use has {sensor!r}, which is no sensor: it needs metrics, on_suspicion and a "
                "method start, as SpectralNorm() has"
            )
        if not isinstance(sensor.metrics, tuple) or not sensor.metrics:
            raise ConfigError(
                f"use has {sensor!r} with metrics={sensor.metrics!r}: they must be a tuple of names"
            )
        for metric in sensor.metrics:
            if metric in seen:
                raise ConfigError(f"use has two sensors of {metric!r}: leave one of them out")
            seen.add(metric)
    return found


def _patterns(option: str, given: object, least: int) -> tuple[str, ...]:
    patterns = (given,) if isinstance(given, str) else given
    found = tuple(patterns) if isinstance(patterns, Iterable) else None
    strings = found is not None and all(isinstance(pattern, str) for pattern in found)
    if found is None or not strings or len(found) < least:
        raise ConfigError(f"{option}={given!r} must be a list of name patterns, e.g. ['*.weight']")
    return found
