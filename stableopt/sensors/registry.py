"""The sensors that come with the package, and what they measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from stableopt.sensors.condition_number import ConditionNumber
from stableopt.sensors.protocol import Sensor
from stableopt.sensors.published import AssrConditionNumber, AssrFiedler, KappaTilde
from stableopt.sensors.sampled_spectrum import SampledSpectrum
from stableopt.sensors.spectral_norm import SpectralNorm

_KINDS = (
    SpectralNorm,
    SampledSpectrum,
    ConditionNumber,
    AssrFiedler,
    AssrConditionNumber,
    KappaTilde,
)

SENSORS: Mapping[str, Callable[..., Sensor]] = {kind.__name__: kind for kind in _KINDS}
"""Every sensor by its name."""

METRICS: Mapping[str, str] = {metric: kind.__name__ for kind in _KINDS for metric in kind.metrics}
"""By metric, the name of the sensor that measures it."""
