"""Run work that only reads beside training: on a CUDA stream of its own, else at once."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor


class Transfer:
    """Numbers on their way to the host.

    Args:
        values: On the host, or on their way there.
        done: Event recorded after them; ``None`` if they are there already.
        started: Event recorded before them.
    """

    def __init__(self, values: Sequence[Tensor], done: Any = None, started: Any = None) -> None:
        self._values = values
        self._done = done
        self._started = started

    @property
    def late(self) -> bool:
        """Whether :meth:`wait` would have to wait."""
        return self._done is not None and not self._done.query()

    def wait(self) -> Sequence[Tensor]:
        """Return the values on the host; the work no longer reads any weight."""
        if self._done is not None:
            self._done.synchronize()
        return self._values

    @property
    def device_seconds(self) -> float:
        """Seconds that the work took on the device; 0 on the CPU. Only after :meth:`wait`."""
        if self._done is None:
            return 0.0
        return float(self._started.elapsed_time(self._done)) / 1e3


class Lane:
    """Runs work that reads weights, without making training wait.

    On a CUDA device the work is queued on a stream of its own, after everything queued so far
    on the current one, and its results are copied to pinned host memory. Call :meth:`Transfer.wait`
    before you change what it reads. On the CPU it runs at once.
    """

    def __init__(self) -> None:
        self._streams: dict[torch.device, Any] = {}

    def run(self, device: torch.device, work: Callable[[], Sequence[Tensor]]) -> Transfer:
        """Run ``work`` without autograd and autocast.

        Args:
            device: Of everything that ``work`` reads.
            work: Queues kernels and returns small tensors.
        """
        with undisturbed(device):
            if device.type != "cuda":
                return Transfer([value.cpu() for value in work()])
            return self._beside(device, work)

    def _beside(self, device: torch.device, work: Callable[[], Sequence[Tensor]]) -> Transfer:
        stream = self._streams.get(device)
        if stream is None:
            stream = self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        started, done = _event(), _event()
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            started.record(stream)
            values = [self._to_host(value) for value in work()]
            done.record(stream)
        return Transfer(values, done, started)

    @staticmethod
    def _to_host(value: Tensor) -> Tensor:
        if value.device.type == "cpu":
            return value
        pinned = torch.empty(value.shape, dtype=value.dtype, device="cpu", pin_memory=True)
        return pinned.copy_(value, non_blocking=True)

    def __getstate__(self) -> dict[str, Any]:
        """Give copies and pickles no stream."""
        return {"_streams": {}}


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Disable autograd, and autocast on ``device`` and on the CPU."""
    with torch.no_grad(), ExitStack() as stack:
        for kind in {device.type, "cpu"}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
