"""The storage of a tensor: whether it has values, and which of them overlap."""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torch.nn.parameter import Parameter, is_lazy

_PLAIN = (Tensor, Parameter)


def has_data(tensor: Tensor) -> bool:
    """Return whether the values of a tensor can be read.

    They cannot on the meta device (a model that is built before it gets memory, a base that is
    offloaded between two forward passes), under ``FakeTensorMode``, in a lazy parameter that has no
    shape yet, or after the storage was freed.
    """
    if type(tensor) in _PLAIN:
        if tensor.is_meta:
            return False
        if tensor.layout is not torch.strided:
            return True
        return tensor.untyped_storage().nbytes() > 0 or tensor.numel() == 0
    return not (is_lazy(tensor) or tensor.is_meta or is_fake(tensor))


def is_plain(tensor: Tensor) -> bool:
    """Return whether the values of a tensor can be read, compared and copied one by one.

    Torch lacks kernels for that for sparse, nested, quantized and half-precision complex tensors.
    """
    return (
        has_data(tensor)
        and tensor.layout is torch.strided
        and not (tensor.is_nested or tensor.is_quantized)
        and tensor.dtype is not torch.complex32
    )


def is_fake(tensor: Tensor) -> bool:
    """Return whether a tensor is a ``FakeTensor``, which has no values."""
    fake = sys.modules.get("torch._subclasses.fake_tensor")
    return fake is not None and isinstance(tensor, fake.FakeTensor)


def without_overlap(target: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """Return views of two tensors of one shape, without elements that overlap in the first.

    An expanded tensor has many elements at one address, and torch refuses to write to it.
    """
    for dim, (size, stride) in enumerate(zip(target.shape, target.stride(), strict=True)):
        if stride == 0 and size > 1:
            target, source = target.narrow(dim, 0, 1), source.narrow(dim, 0, 1)
    return target, source
