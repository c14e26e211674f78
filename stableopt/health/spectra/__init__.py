"""What readings of the spectral sensors say about weights and the run."""
