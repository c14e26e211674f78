"""A small network in every parallel mode, its batches, and the bits of what it has learned."""

from __future__ import annotations

import hashlib

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

WIDTH = 32


class Net(nn.Module):
    """Three layers and a side path, with BatchNorm where it is asked for."""

    def __init__(self, *, norm):
        super().__init__()
        self.first = nn.Linear(16, WIDTH)
        self.second = nn.Linear(WIDTH, WIDTH)
        self.third = nn.Linear(WIDTH, 8)
        self.side = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH) if norm else nn.Identity()

    def forward(self, x):
        hidden = self.norm(F.gelu(self.first(x)))
        return self.third(F.gelu(self.second(hidden + self.side(hidden))))


def build(mode, kernels="single"):
    """Return a model and its bare optimizer.

    Args:
        mode: ``"one"``, ``"ddp"``, ``"ddp_no_sync"``, ``"ddp_unused"``, ``"fsdp2"``, ``"hsdp"``
            or ``"tp"``.
        kernels: ``"single"``, ``"foreach"`` or ``"fused"``.
    """
    torch.manual_seed(0)
    net = Net(norm=mode.startswith("ddp"))
    if mode == "one":
        model = net
    elif mode in ("ddp", "ddp_no_sync"):
        model = DistributedDataParallel(net)
    elif mode == "ddp_unused":
        model = DistributedDataParallel(net, find_unused_parameters=True)
    elif mode in ("fsdp2", "hsdp"):
        ranks = dist.get_world_size()
        shape = (1, ranks) if mode == "fsdp2" else (2, ranks // 2)
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("copies", "shards"))
        mesh = mesh["shards"] if mode == "fsdp2" else mesh
        for layer in (net.first, net.second, net.third, net.side):
            fully_shard(layer, mesh=mesh)
        model = fully_shard(net, mesh=mesh)
    elif mode == "tp":
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        plan = {"second": ColwiseParallel(), "third": RowwiseParallel()}
        model = parallelize_module(net, mesh, plan)
    else:
        raise ValueError(mode)
    options = {"single": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2, **options[kernels])


def batch(number, rank, mode="ddp"):
    """Return the inputs and targets of a batch, other ones on every rank but with ``"tp"``."""
    generator = torch.Generator().manual_seed(1000 + 10 * number + rank * (mode != "tp"))
    x = torch.randn(12, 16, generator=generator)
    return x, x[:, :8].cumsum(1).tanh()


class Loader:
    """A stream of batches that can be set back."""

    def __init__(self, rank, mode):
        self.number, self.rank, self.mode = 0, rank, mode

    def next(self):
        """Return the number of a batch, and the batch."""
        self.number += 1
        return self.number - 1, *batch(self.number - 1, self.rank, self.mode)

    def state_dict(self):
        """Return where it is."""
        return {"number": self.number}

    def load_state_dict(self, state):
        """Go where it was."""
        self.number = state["number"]


def local(tensor):
    """Return this rank's part of a tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def digest(model, optimizer, more=()):
    """Return a hash of weights, state, buffers, random state, and more tensors."""
    found = hashlib.sha1()
    for parameter in model.parameters():
        found.update(_bytes(parameter))
        for key, value in sorted(optimizer.state.get(parameter, {}).items()):
            found.update(key.encode() + _bytes(value))
    for tensor in (*model.buffers(), *more):
        found.update(_bytes(tensor))
    found.update(torch.get_rng_state().numpy().tobytes())
    return found.hexdigest()


def _bytes(tensor):
    values = local(tensor.detach()).contiguous().reshape(-1)
    return values.view(torch.uint8).numpy().tobytes()


def is_last():
    """Return whether this is the rank that faults are put into."""
    return dist.get_rank() == dist.get_world_size() - 1
