"""Check and read the options of a wrapper before training starts."""
