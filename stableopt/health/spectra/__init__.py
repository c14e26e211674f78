"""The assessment of weights and the run from readings of the spectral sensors."""
