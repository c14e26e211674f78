"""JUDGE: detectors that turn observations into findings."""
