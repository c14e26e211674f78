"""torch's own tests of its optimizers and schedulers, run over the wrapper."""
