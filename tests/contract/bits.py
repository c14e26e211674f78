"""Equality to the last bit, of anything that a run leaves."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from tests.contract.third_party import Quantized


def assert_same(a: Any, b: Any, where: str = "trace") -> None:
    """Assert that two values are equal bit by bit: NaN equals the same NaN, -0 is not 0."""
    assert type(a) is type(b), f"{where}: {type(a).__name__} is not {type(b).__name__}"
    if isinstance(a, Quantized):
        assert_same(a.codes, b.codes, f"{where}.codes")
        assert_same(a.scale, b.scale, f"{where}.scale")
    elif isinstance(a, Tensor):
        _assert_same_tensor(a, b, where)
    elif dataclasses.is_dataclass(a):
        for f in dataclasses.fields(a):
            assert_same(getattr(a, f.name), getattr(b, f.name), f"{where}.{f.name}")
    elif isinstance(a, dict):
        assert list(a) == list(b), f"{where}: keys {list(a)} are not {list(b)}"
        for key in a:
            assert_same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), f"{where}: {len(a)} items are not {len(b)}"
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b or (a != a and b != b), f"{where}: {a!r} is not {b!r}"


def _assert_same_tensor(a: Tensor, b: Tensor, where: str) -> None:
    meta = (a.shape, a.dtype, a.device, a.layout)
    assert meta == (b.shape, b.dtype, b.device, b.layout), f"{where}: another kind of tensor"
    if a.layout is torch.sparse_coo:
        a, b = a.coalesce(), b.coalesce()
        _assert_same_tensor(a.indices(), b.indices(), f"{where}.indices")
        a, b = a.values(), b.values()
    assert torch.equal(_bytes(a), _bytes(b)), f"{where}: values differ"


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
