"""What a computation launches on a GPU, recorded once and launched again as a whole."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

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
        self._stream = torch.cuda.Stream()

    def __call__(self, compute: Compute) -> Compute:
        """Records a computation that was done before, so that nothing is compiled meanwhile.

        Raises:
            RuntimeError: it does what cannot be recorded, such as waiting for the device.
        """
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            # Of this thread alone: others may take memory meanwhile, such as those that stage
            # weights. `torch.cuda.graph` would give back all cached memory first.
            graph.capture_begin(self._memory, capture_error_mode="thread_local")
            try:
                output = compute()
            finally:
                graph.capture_end()
        current.wait_stream(self._stream)

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay
