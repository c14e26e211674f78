"""What all benchmarks share: the command, the runner, the tables, models and variants."""
