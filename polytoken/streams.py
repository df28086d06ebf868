"""Work that a GPU does concurrently with the work that follows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class Pending(Generic[Result]):
    """A result that a GPU may still be computing.

    Args:
        result: tensors, and what checks them.
        done: recorded behind the computation; None if the result is there.
        finish: reads the result on the host.
    """

    def __init__(self, result: Result, done: torch.cuda.Event | None, finish: Callable[[Result], Tensor]) -> None:
        self._result, self._done, self._finish = result, done, finish

    def wait(self) -> Tensor:
        """Return the finished tensor once it is computed."""
        if self._done is not None:
            self._done.synchronize()
        return self._finish(self._result)


class SideStream:
    """Runs functions on a CUDA stream of their own, concurrently with what follows; on a CPU at once."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    def run(
        self, function: Callable[[], Result], reads: Iterable[Tensor], finish: Callable[[Result], Tensor]
    ) -> Pending[Result]:
        """Start a function after all that the current stream was given before.

        Args:
            function: computes the result without waiting for the device.
            reads: tensors of the current stream that it reads, whose memory is kept until it has.
            finish: turns the result into the tensor that :meth:`Pending.wait` returns; it may wait, and raise.
        """
        reads = [*reads]
        if not any(tensor.is_cuda for tensor in reads):
            return Pending(function(), None, finish)
        device = reads[0].device
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            result = function()
            done = torch.cuda.Event()
            done.record()
        for tensor in reads:
            tensor.record_stream(self._stream)
        return Pending(result, done, finish)
