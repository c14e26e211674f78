"""What to measure on the weights, and when."""

from stableopt.sensors.condition_number import ConditionNumber
from stableopt.sensors.options import Sensors
from stableopt.sensors.protocol import Measurement, Result, Sensor, Visit
from stableopt.sensors.published import AssrConditionNumber, AssrFiedler, KappaTilde
from stableopt.sensors.sampled_spectrum import SampledSpectrum
from stableopt.sensors.sampler import Sampler
from stableopt.sensors.spectral_norm import SpectralNorm

__all__ = [
    "AssrConditionNumber",
    "AssrFiedler",
    "ConditionNumber",
    "KappaTilde",
    "Measurement",
    "Result",
    "SampledSpectrum",
    "Sampler",
    "Sensor",
    "Sensors",
    "SpectralNorm",
    "Visit",
]
