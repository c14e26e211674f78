"""ACT: take the step of the inner optimizer: eager, fused, compiled or traced."""
