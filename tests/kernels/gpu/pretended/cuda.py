"""`torch.cuda` as a pretended device has it, and Triton's kernels on its tensors."""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from triton.runtime import interpreter

from scoring_service.kernels import dispatch
from tests.kernels.gpu.pretended.tensors import GPU, HOST, PretendedDevice, Recording

FREE_BYTES = 256 << 20
TOTAL_BYTES = 320 << 20
_ERROR = 2
"""The mode in which waits are errors, as torch counts them."""

_HOW_THE_INTERPRETER_COMPUTES = ("INTERPRETED", "UPCAST")
"""Parameters of kernels that know of it, because it lacks what GPUs do with bfloat16."""


class Event:
    """Whoever waits for one waits for what was asked before it was recorded."""

    def __init__(self, device: PretendedDevice) -> None:
        self._device = device
        self._asked = 0
        self._at = 0.0

    def record(self, _stream: object = None) -> None:
        self._asked, self._at = self._device.asked, time.perf_counter()

    def synchronize(self) -> None:
        self._device.wait("Event.synchronize", self._asked)

    def elapsed_time(self, later: Event) -> float:
        """Milliseconds, of what a processor takes: they mean nothing."""
        return (later._at - self._at) * 1e3


class Generator(torch.Generator):
    """One of the device is one of the host."""

    def __new__(cls, _device: object = HOST) -> Generator:
        return super().__new__(cls, HOST)

    def graphsafe_get_state(self) -> Generator:
        return self

    def graphsafe_set_state(self, _state: Generator) -> None: ...


class Stream:
    """Whatever the stream, work is done in the order in which it was asked for."""

    device = GPU

    def __init__(self, device: PretendedDevice) -> None:
        self._device = device

    def synchronize(self) -> None:
        self._device.wait("Stream.synchronize")

    def wait_stream(self, _other: object) -> None: ...


class CudaGraph:
    """A recording."""

    def __init__(self, device: PretendedDevice) -> None:
        self._device = device
        self._recording = Recording()

    def capture_begin(
        self, _memory: object = None, capture_error_mode: str = "global", **_checks: object
    ) -> None:
        assert capture_error_mode == "thread_local", "other threads go on meanwhile"
        assert self._device.recording is None, "two recordings at once"
        self._device.recording = self._recording

    def capture_end(self) -> None:
        self._device.recording = None

    def replay(self) -> None:
        assert self._device.recording is None, "replayed while another is recorded"
        self._device.replays += 1
        self._recording.replay()


@contextmanager
def pretended_gpu() -> Iterator[PretendedDevice]:
    """A GPU that is none, for this thread and those that begin meanwhile.

    `TRITON_INTERPRET` has to be set, and to have been when Triton was imported.
    """
    device = PretendedDevice()
    _have_a_guard()
    with pytest.MonkeyPatch.context() as patch:
        _stand_in(patch, device)
        dispatch._has_triton.cache_clear()
        try:
            with _entered(device):
                yield device
        finally:
            dispatch._has_triton.cache_clear()


@contextmanager
def _entered(device: PretendedDevice) -> Iterator[None]:
    """This thread's tensors may be of the device."""
    # `torch.tensor` makes a tensor of the host, and copies it as anybody would.
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with device.mode():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(False)


@functools.cache
def _have_a_guard() -> None:
    """Compiles guard.cpp, and loads it for good: without one, torch refuses to index."""
    root = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "guard.so"
        subprocess.run(
            [
                "c++", "-std=c++20", "-shared", "-fPIC", f"-I{root / 'include'}",
                str(Path(__file__).with_name("guard.cpp")), "-o", str(library),
                f"-L{root / 'lib'}", "-lc10",
            ],
            check=True,
        )  # fmt: skip
        ctypes.CDLL(str(library))


def _stand_in(patch: pytest.MonkeyPatch, device: PretendedDevice) -> None:
    answers: dict[str, Any] = {
        "is_available": True, "device_count": 1, "current_device": 0, "set_device": None,
        "_lazy_init": None, "get_device_capability": (9, 0), "get_device_name": "no GPU at all",
        "mem_get_info": (FREE_BYTES, TOTAL_BYTES), "memory_reserved": 0, "memory_allocated": 0,
        "memory_stats": {}, "empty_cache": None, "graph_pool_handle": (0, 1),
        "max_memory_allocated": 0, "reset_peak_memory_stats": None, "set_stream": None,
        "current_stream": Stream(device), "stream": nullcontext(), "device": nullcontext(),
    }  # fmt: skip
    for name, answer in answers.items():
        patch.setattr(torch.cuda, name, _answering(answer))
    for name, kind in (("Stream", Stream), ("Event", Event), ("CUDAGraph", CudaGraph)):
        patch.setattr(torch.cuda, name, _making(kind, device))
    patch.setattr(torch.cuda, "synchronize", lambda *_device: device.wait("synchronize"))
    patch.setattr(torch.cuda, "default_generators", (Generator(),))

    patch.setattr(torch, "Generator", Generator)
    patch.setattr(torch.cuda.graph, "default_capture_stream", Stream(device))
    patch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)

    def set_debug_mode(mode: int | str) -> None:
        device.refuses_waits = mode in ("error", _ERROR)

    patch.setattr(torch.cuda, "set_sync_debug_mode", set_debug_mode)
    patch.setattr(torch.cuda, "get_sync_debug_mode", lambda: _ERROR * device.refuses_waits)
    run = threading.Thread.run

    def run_with_device(thread: threading.Thread) -> None:
        with _entered(device):
            run(thread)

    patch.setattr(threading.Thread, "run", run_with_device)
    execute = interpreter.GridExecutor.__call__

    def launch(kernel: Any, *args: Any, **kwargs: Any) -> None:
        for argument in (*args, *kwargs.values()):
            if isinstance(argument, torch.Tensor) and not argument.is_cuda:
                raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
        kwargs |= dict.fromkeys(kwargs.keys() & set(_HOW_THE_INTERPRETER_COMPUTES), True)
        device.launch(lambda: execute(kernel, *args, **kwargs))

    patch.setattr(interpreter.GridExecutor, "__call__", launch)


def _answering(answer: Any) -> Any:
    return lambda *_args, **_settings: answer


def _making(kind: Any, device: PretendedDevice) -> Any:
    return lambda *_args, **_settings: kind(device)
