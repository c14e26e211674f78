"""JUDGE: detectors that turn what was observed into findings."""
