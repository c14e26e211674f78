"""ACT: copies of everything that a step moves, and the way back to them."""
