"""What a computation launches on a GPU, recorded once and launched again as a whole."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

from scoring_service.engine.machine.random_numbers import generator_kept

Compute = Callable[[], Tensor]
"""Reads tensors where they lie; what it returns is written anew each time."""

Recorder = Callable[[Compute], Compute]
"""Records a computation without doing it; what it returns does it."""


class CudaRecorder:
    """Records into CUDA graphs that share one memory.

    They may be replayed in any order, one at a time, and what one returned is used before another
    is replayed. The memory is free again once none of them is left; then a new recorder is needed.
    """

    def __init__(self) -> None:
        self._memory = torch.cuda.graph_pool_handle()
        self._stream = _recording_stream(torch.cuda.current_device())

    def __call__(self, compute: Compute) -> Compute:
        """Records a computation that was done before, so that nothing is compiled meanwhile.

        Raises:
            RuntimeError: it does what cannot be recorded, such as waiting for the device.
        """
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream), generator_kept():
            # Of this thread alone: others may take memory meanwhile, such as those that stage
            # weights. `torch.cuda.graph` would give back all cached memory first.
            graph.capture_begin(self._memory, capture_error_mode="thread_local")
            try:
                output = compute()
                graph.capture_end()
            except BaseException:
                self._abandon(graph)
                raise
        current.wait_stream(self._stream)

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay

    def _abandon(self, graph: torch.cuda.CUDAGraph) -> None:
        """Ends a recording that failed.

        Torch goes on allocating for one whose end fails too, and then can neither give back cached
        memory nor get over a want of it.
        """
        with suppress(RuntimeError):
            graph.capture_end()
        with suppress(RuntimeError, AttributeError):  # it ended, or this torch has another name
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self._memory)


@functools.cache
def _recording_stream(device: int) -> torch.cuda.Stream:
    """One for good: cuBLAS keeps a workspace of tens of megabytes for each stream it ever saw.

    It takes it here, not while something is recorded, where it would come out of that memory.
    """
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        square = torch.zeros(16, 16, device=torch.device("cuda", device))
        torch.mm(square, square)
    return stream
