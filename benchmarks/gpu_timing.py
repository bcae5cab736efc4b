"""Times of GPU work: CUDA events around replays of a graph, over buffers that no cache holds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

Work = Callable[[int], Any]
"""Does the work once, on buffer number n."""

_CACHE_BYTES = 256 << 20
"""More than the second-level cache of any GPU: buffers rotate over so many bytes."""

_REPLAYS = 10


def buffers_for(size: int) -> int:
    """Buffers of this size that calls go through in turn, so that none finds its own in a cache."""
    if not torch.cuda.is_available():
        return 1
    return max(1, min(64, -(-_CACHE_BYTES // max(size, 1))))


def seconds(work: Work, buffers: int) -> float:
    """Of one call: the median of replays of a graph that goes through all buffers once.

    A graph, because kernels of microseconds would else be timed by how fast Python launches them.
    """
    for buffer in range(buffers):
        work(buffer)
    if not torch.cuda.is_available():
        return _processor_seconds(work, buffers)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for buffer in range(buffers):
            work(buffer)
    times = []
    for _ in range(_REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / buffers)
    return statistics.median(times)


def _processor_seconds(work: Work, buffers: int) -> float:
    """Without a GPU: a dry run, whose times mean nothing."""
    began = time.perf_counter()
    for buffer in range(buffers):
        work(buffer)
    return (time.perf_counter() - began) / buffers


def extra_bytes(work: Work) -> int:
    """Most that one call allocates beyond what it finds; 0 in a dry run."""
    if not torch.cuda.is_available():
        return 0
    work(0)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    kept = work(0)
    torch.cuda.synchronize()
    most = torch.cuda.max_memory_allocated() - before
    del kept
    return most


def profile(work: Work) -> list[dict[str, Any]]:
    """The kernels of one call and the time in each, longest first; none in a dry run."""
    if not torch.cuda.is_available():
        return []
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CUDA]) as found:
        work(0)
        torch.cuda.synchronize()
    events = sorted(found.key_averages(), key=lambda event: -event.self_device_time_total)
    return [
        {"kernel": event.key, "calls": event.count, "microseconds": event.self_device_time_total}
        for event in events[:8]
    ]
