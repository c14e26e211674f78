"""What every function of a forward pass keeps: finite gradients, dtypes, compile, no waiting."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from stableopt.functional import (
    attention_entropy,
    clamp_delta_norm,
    clamp_lora_output,
    lora_delta_norm,
    lora_norm_penalty,
    overlap_penalty,
    soft_clamp_logits,
    spectral_entropy,
    z_loss,
)

A, B = (2, 3, 6), (2, 5, 3)


def spectral(a, b):
    return lora_delta_norm(a, b, ord="spectral")


def clamped_output(y, a, b):
    return clamp_lora_output(y, a, b, 0.5)


# Every function, the shapes of its tensors, and whether these must not be negative.
FUNCTIONS = {
    "soft_clamp_logits": (soft_clamp_logits, [(4, 6)], False),
    "lora_delta_norm": (lora_delta_norm, [A, B], False),
    "lora_delta_norm, spectral": (spectral, [A, B], False),
    "clamp_lora_output": (clamped_output, [(2, 4, 5), A, B], False),
    "clamp_delta_norm": (lambda d: clamp_delta_norm(d, 0.5), [(4, 6)], False),
    "lora_norm_penalty": (lambda *d: lora_norm_penalty(d), [(2, 5, 6), (2, 3, 3)], False),
    "attention_entropy": (attention_entropy, [(2, 4, 6)], True),
    "overlap_penalty": (overlap_penalty, [(2, 4, 3, 3)], True),
    "spectral_entropy": (spectral_entropy, [(2, 4, 6)], False),
    "z_loss": (lambda x: 1e-4 * z_loss(x), [(4, 6)], False),
}
ACTIVATIONS = ("soft_clamp_logits", "clamp_lora_output", "clamp_delta_norm")
REDUCED = [torch.float32, torch.bfloat16, torch.float16]

every_function = pytest.mark.parametrize("name", FUNCTIONS)


def inputs(name, *, seed=0, dtype=torch.float64, scale=1.0):
    """Draw tensors the function is made for."""
    _, shapes, positive = FUNCTIONS[name]
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [(d.abs() if positive else d).mul(scale).to(dtype) for d in drawn]


def gradients(name, tensors):
    """Return the gradients of the sum, which must be there and finite."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    FUNCTIONS[name][0](*leaves).sum().backward()
    for leaf in leaves:
        assert leaf.grad is not None
        assert leaf.grad.dtype == leaf.dtype
        assert torch.isfinite(leaf.grad).all(), name
    return [leaf.grad for leaf in leaves]


KINDS = {
    "random": lambda t: t,
    "zero": torch.zeros_like,
    "one value": torch.ones_like,
    "identical rows": lambda t: t[..., :1, :].expand_as(t),
    "one sample zero": lambda t: torch.cat([torch.zeros_like(t[:1]), t[1:]]),
    "one hot": lambda t: torch.zeros_like(t).index_fill(-1, torch.tensor([1]), 1.0),
}


@every_function
@pytest.mark.parametrize("dtype", [torch.float64, *REDUCED])
@settings(max_examples=60, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=3, max_size=3),
    exponents=st.lists(st.integers(-45, 30), min_size=3, max_size=3),
    seed=st.integers(0, 2**16),
)
def test_the_gradient_is_finite_wherever_the_input_is(name, dtype, kinds, exponents, seed):
    tensors = inputs(name, seed=seed)
    for i, tensor in enumerate(tensors):
        # What float16 can hold, with room for the product of a gradient with a few values.
        exponent = max(-9, exponents[i] % 13 - 9) if dtype is torch.float16 else exponents[i]
        if name == "clamp_lora_output" and i == 0:
            exponent = min(exponent, 0)  # or the gradient of the factors is out of range itself
        tensors[i] = (KINDS[kinds[i]](tensor) * 10.0**exponent).to(dtype)
    gradients(name, tensors)


@every_function
@pytest.mark.parametrize("largest", [1e30, 3e38])
def test_the_gradient_is_finite_for_the_largest_numbers(name, largest):
    for value in (largest, -largest):
        if value < 0 and FUNCTIONS[name][2]:
            continue
        tensors = [torch.full(shape, value) for shape in FUNCTIONS[name][1]]
        if name == "clamp_lora_output":
            tensors[0].fill_(1.0)
        if "lora_delta_norm" in name:
            # Otherwise the gradient itself, the norm of the other factor, is out of range.
            tensors = [t / 10 for t in tensors]
        gradients(name, tensors)


@every_function
def test_derivatives(name):
    if name == "clamp_delta_norm":
        tensors = [torch.cat([inputs(name)[0], torch.full((1, 6), 0.01).double()])]
    elif name == "soft_clamp_logits":
        tensors = inputs(name, scale=60.0)
    else:
        tensors = inputs(name)
    leaves = [t.requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(FUNCTIONS[name][0], leaves)


SECOND = ["lora_delta_norm", "clamp_lora_output", "lora_norm_penalty", "overlap_penalty"]


@pytest.mark.parametrize("name", [*SECOND, "attention_entropy", "spectral_entropy", "z_loss"])
def test_second_derivatives(name):
    leaves = [t.requires_grad_() for t in inputs(name)]
    assert torch.autograd.gradgradcheck(FUNCTIONS[name][0], leaves)


@every_function
@pytest.mark.parametrize("dtype", REDUCED)
def test_less_precise_inputs_give_what_their_values_give_in_float64(name, dtype):
    tensors = inputs(name, dtype=dtype, scale=0.7)
    function = FUNCTIONS[name][0]
    result, exact = function(*tensors), function(*[t.double() for t in tensors])
    activation = name in ACTIVATIONS
    assert result.dtype == (dtype if activation else torch.float32)
    tolerance = 2 * torch.finfo(dtype).eps if activation else 2e-6
    torch.testing.assert_close(result.double(), exact, rtol=tolerance, atol=tolerance)


@every_function
@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(name, autocast, monkeypatch):
    # Autocast leaves float64 alone; a device without it computes in float32.
    for module in ("lora", "entropy"):
        monkeypatch.setattr(f"stableopt.functional.{module}.widest_real", lambda _: torch.float32)
    tensors = inputs(name, dtype=torch.float32)
    expected = FUNCTIONS[name][0](*tensors)
    with torch.autocast("cpu", dtype=autocast):
        assert torch.equal(FUNCTIONS[name][0](*tensors), expected)


@every_function
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles_as_one_graph_once(name, dtype):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    function = FUNCTIONS[name][0]
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for seed, scale in enumerate([1.0, 1e-3, 80.0, 0.0]):
        tensors = inputs(name, seed=seed, dtype=dtype, scale=scale)
        outputs = []
        for variant in (compiled, function):
            leaves = [t.clone().requires_grad_() for t in tensors]
            result = variant(*leaves)
            result.sum().backward()
            outputs.append([result.detach(), *(leaf.grad for leaf in leaves)])
        tolerance = 2 * torch.finfo(dtype).eps if dtype is torch.bfloat16 else 1e-5
        for ours, eager in zip(*outputs, strict=True):
            torch.testing.assert_close(ours, eager, rtol=tolerance, atol=tolerance)
    assert counter.frame_count == 1


@every_function
def test_a_batch_of_another_size_compiles_once_more_at_most(name):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    function = FUNCTIONS[name][0]
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for samples in (2, 3, 5, 7):
        tensors = [t[:1].expand(samples, *t.shape[1:]) for t in inputs(name, dtype=torch.float32)]
        torch.testing.assert_close(compiled(*tensors), function(*tensors))
    assert counter.frame_count <= 2


@every_function
def test_compiles_under_autocast(name):
    torch._dynamo.reset()
    tensors = inputs(name, dtype=torch.float32)
    compiled = torch.compile(FUNCTIONS[name][0], fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = compiled(*[t.clone().requires_grad_() for t in tensors])
        result.sum().backward()
    torch.testing.assert_close(result, FUNCTIONS[name][0](*tensors), rtol=1e-5, atol=1e-6)


class Operators(TorchDispatchMode):
    """Collects the names of all operators."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


WAITING = {"_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal"}


@every_function
def test_nothing_waits_for_the_device(name):
    with Operators() as operators:
        gradients_of = [t.requires_grad_() for t in inputs(name)]
        FUNCTIONS[name][0](*gradients_of).sum().backward()
    assert operators.seen
    assert not operators.seen & WAITING
    if name != "spectral_entropy":  # of which it is documented
        assert not any("svd" in op or "eigh" in op for op in operators.seen)


def test_the_collector_sees_what_waits():
    with Operators() as operators:
        torch.ones(()).item()
    assert operators.seen & WAITING


@every_function
def test_a_nan_stays_one(name):
    for i in range(len(FUNCTIONS[name][1])):
        tensors = inputs(name, dtype=torch.float32)
        tensors[i].view(-1)[0] = torch.nan
        result = FUNCTIONS[name][0](*tensors)
        if not (name == "clamp_lora_output" and i):  # which then leaves the output alone
            assert torch.isnan(result).any()


@every_function
def test_integers_are_an_error_that_says_so(name):
    tensors = [t.long() for t in inputs(name)]
    with pytest.raises(ValueError, match=r"dtype=torch.int64 must be a real floating"):
        FUNCTIONS[name][0](*tensors)
