"""Public fault injectors: test your own training loop before a real fault does.

Each function changes exactly what it names, with plain assignments outside autograd, draws
what is not given from a private generator (``seed``), and returns an :class:`Injection`
that says what was done. None consumes the global random state of torch, python or numpy.
"""

from stableopt.testing.elements import Injection, flip_bit, inject_value
from stableopt.testing.faults import (
    corrupt_buffer,
    corrupt_moment,
    corrupt_weight,
    inject_gradient,
    poison_batch,
)

__all__ = [
    "Injection",
    "corrupt_buffer",
    "corrupt_moment",
    "corrupt_weight",
    "flip_bit",
    "inject_gradient",
    "inject_value",
    "poison_batch",
]
