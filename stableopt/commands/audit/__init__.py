"""The spectra of every weight in a checkpoint file: ``stableopt audit``."""
