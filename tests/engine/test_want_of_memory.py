"""What counts as a want of memory, and what as a GPU that is lost."""

from __future__ import annotations

import pytest
import torch

from scoring_service.engine import memory
from scoring_service.engine.device import prepare_device
from scoring_service.engine.memory import is_lost, is_out_of_memory


def test_it_is_told_from_bugs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("could not create a primitive"))
    assert not is_out_of_memory(KeyError("a bug"))
    # With nothing left to allocate, an error that a library words in its own way is one of memory.
    monkeypatch.setattr(memory, "_WORKING_BYTES", 1 << 60)
    assert is_out_of_memory(RuntimeError("could not create a primitive"))
    assert not is_out_of_memory(KeyError("a bug"))


def test_a_gpu_is_made_the_threads_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches there; and torch attends without cuDNN's plans."""
    chosen, cudnn = [], []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", cudnn.append)
    for name in ("cpu", "cuda", "cuda:1"):
        prepare_device(torch.device(name))
    assert chosen == [torch.device("cuda:1")]
    assert cudnn == [False, False]


def test_a_gpu_that_no_longer_answers_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_device: torch.device) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    assert is_lost(torch.device("cuda:1"))
    assert not is_lost(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: None)
    assert not is_lost(torch.device("cuda:1"))
