"""ACT: copies of everything that a step changes, to be restored."""
