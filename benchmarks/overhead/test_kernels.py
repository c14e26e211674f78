"""The kernels of a step, each beside the torch function that it stands for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn
from torch.nn.utils import clip_grad_norm_, get_total_norm

from benchmarks.common.variants import make_optimizer
from benchmarks.common.workload import GPT, loss_of, make_batches, make_model
from stableopt import ClipGradNorm
from stableopt.sensors.gradients import measure_gradients
from stableopt.snapshots.buffers import BufferShadow

pytestmark = pytest.mark.benchmark(max_time=0.5, warmup=True, warmup_iterations=3)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread, as the overhead benchmark does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=["1M", "20M"])
def size(request: pytest.FixtureRequest) -> str:
    """Name the models by their parameter count."""
    return request.param


@pytest.fixture(scope="module")
def model(size: str) -> GPT:
    """Return a model with the gradients of one batch."""
    model = make_model(size, seed=0)
    loss_of(model, make_batches(1, 256, seed=0)[0]).backward()
    return model


@pytest.fixture
def parameters(model: GPT) -> list[nn.Parameter]:
    """Return the model's parameters, whose gradients may be clipped but not otherwise changed."""
    return list(model.parameters())


def test_get_total_norm(
    benchmark: BenchmarkFixture, size: str, parameters: list[nn.Parameter]
) -> None:
    """Time torch's norm of all gradients, read on the host."""
    benchmark.group = f"gradient norm, {size}"
    benchmark(lambda: get_total_norm([p.grad for p in parameters]).item())


def test_measure_gradients(
    benchmark: BenchmarkFixture, size: str, parameters: list[nn.Parameter]
) -> None:
    """Time ours, which keeps the norm of each gradient."""
    benchmark.group = f"gradient norm, {size}"
    benchmark(measure_gradients, [{"params": parameters}])


def test_clip_grad_norm_(
    benchmark: BenchmarkFixture, size: str, parameters: list[nn.Parameter]
) -> None:
    """Time torch's clipping: the norm, then the multiplication."""
    benchmark.group = f"clipping, {size}"
    benchmark(clip_grad_norm_, parameters, 1.0)


def test_measure_and_clip(
    benchmark: BenchmarkFixture, size: str, parameters: list[nn.Parameter]
) -> None:
    """Time ours with the measurement. Gradients clipped to the bound are multiplied again."""
    clip = ClipGradNorm(1.0)

    def run() -> None:
        gradients, _ = measure_gradients([{"params": parameters}])
        assert gradients is not None
        clip.transform_gradients(parameters, gradients)

    benchmark.group = f"clipping, {size}"
    benchmark(run)


def test_clip_what_was_measured(
    benchmark: BenchmarkFixture, size: str, parameters: list[nn.Parameter]
) -> None:
    """Time what clipping adds to a step that measures anyhow."""
    clip_grad_norm_(parameters, 1.0)  # so that the multiplier stays close to 1
    gradients, _ = measure_gradients([{"params": parameters}])
    benchmark.group = f"clipping, {size}"
    benchmark(ClipGradNorm(1.0).transform_gradients, parameters, gradients)


def test_adamw_step(benchmark: BenchmarkFixture, size: str, model: GPT) -> None:
    """Time the fused AdamW, the yardstick of the others."""
    benchmark.group = f"AdamW, {size}"
    benchmark(make_optimizer(model, "fused").step)


def test_refresh_buffers(benchmark: BenchmarkFixture) -> None:
    """Time the shadow of the buffers of 53 BatchNorm layers, as many as a ResNet-50 has."""
    model = nn.Sequential(*(nn.BatchNorm2d(512) for _ in range(53)))
    benchmark.group = "buffers"
    benchmark(BufferShadow(model).refresh)
