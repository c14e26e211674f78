"""The fixed cost of a step: what a model that costs nothing shows."""
