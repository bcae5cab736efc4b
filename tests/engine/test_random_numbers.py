"""A GPU's default generator after a recording that failed, with stand-ins for the GPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from benchmarks import gpu_timing
from scoring_service.engine.machine import cuda_graphs
from scoring_service.engine.machine.cuda_graphs import CudaRecorder

CAPTURING = "Offset increment outside graph capture encountered unexpectedly"


HostGenerator = torch.Generator
"""Before the stand-in takes its name."""


class State:
    """Seed and offset, by torch's generator of the CPU, and whether a recording goes on."""

    def __init__(self) -> None:
        self.numbers = HostGenerator()
        self.capturing = False


class DeviceGenerator:
    """Of a GPU: a recording marks the state it holds, and only one that ends well unmarks it."""

    def __init__(self, _device: str = "") -> None:
        self.state = State()

    def get_state(self) -> Tensor:
        return self.state.numbers.get_state()

    def set_state(self, numbers: Tensor) -> None:
        self.state.numbers.set_state(numbers)

    def graphsafe_get_state(self) -> State:
        return self.state

    def graphsafe_set_state(self, state: State) -> None:
        self.state = state

    def draw(self) -> float:
        if self.state.capturing:
            raise RuntimeError(CAPTURING)
        return torch.rand(1, generator=self.state.numbers).item()


class Graph:
    """A recording; also what `torch.cuda.graph` makes one by."""

    generator: DeviceGenerator

    def capture_begin(self, *_memory: object, **_options: str) -> None:
        self.generator.state.capturing = True

    def capture_end(self) -> None:
        raise RuntimeError("operation failed due to a previous error during capture")

    def __enter__(self) -> None:
        self.capture_begin()

    def __exit__(self, *_error: object) -> None:
        self.capture_end()


def refuse(*_buffer: int) -> Tensor:
    raise RuntimeError("operation not permitted when stream is capturing")


def record() -> None:
    CudaRecorder()(refuse)


def capture() -> None:
    gpu_timing.capture(refuse, 1)


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> DeviceGenerator:
    stream = SimpleNamespace(wait_stream=lambda _other: None)
    made = DeviceGenerator()
    monkeypatch.setattr(Graph, "generator", made, raising=False)
    monkeypatch.setattr(torch, "Generator", DeviceGenerator)
    stand_ins = {
        "default_generators": (made,), "CUDAGraph": Graph, "current_device": lambda: 0,
        "current_stream": lambda: stream, "set_stream": lambda _stream: None,
        "stream": lambda _stream: nullcontext(), "graph": lambda graph, **_modes: graph,
        "graph_pool_handle": lambda: (0, 0), "synchronize": lambda: None,
    }  # fmt: skip
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(cuda_graphs, "_recording_stream", lambda _device: stream)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *_pool: None, raising=False)
    monkeypatch.setattr(gpu_timing, "waiting_forbidden", lambda: nullcontext())
    return made


@pytest.mark.parametrize("broken_off", [record, capture])
def test_numbers_are_drawn_on_after_a_recording_that_failed(
    broken_off: Callable[[], None], generator: DeviceGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next of the same seed: whoever shares the process had not asked for another."""
    calls: list[int] = []

    def at_first(*_buffer: int) -> Tensor:
        calls.append(1)
        return refuse() if generator.state.capturing else torch.zeros(1)

    monkeypatch.setitem(globals(), "refuse", at_first)
    before = generator.get_state()
    expected = [generator.draw() for _ in range(2)]
    generator.set_state(before)
    assert generator.draw() == expected[0]
    with pytest.raises(RuntimeError):
        broken_off()
    assert calls
    assert generator.draw() == expected[1]
