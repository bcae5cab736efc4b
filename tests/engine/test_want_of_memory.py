"""What counts as a want of memory, and what as a GPU that is lost."""

from __future__ import annotations

import pytest
import torch

from scoring_service.engine.events import (
    CallFailed,
    CallFinished,
    ItemFailed,
    SampleSlice,
    ScoreSlice,
)
from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.engine.machine import memory
from scoring_service.engine.machine.device import prepare_device
from scoring_service.engine.machine.memory import is_lost, is_out_of_memory
from scoring_service.engine.worker.service_loop import make_runner
from scoring_service.errors import Reason
from scoring_service.types import RowWants, SampleCall, ScoreCall
from tests.engine.driving import finish
from tests.engine.sampling import task
from tests.engine.scoring import completion, group


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


def test_on_the_plain_path_it_ends_the_item_that_asked_for_too_much(
    tiny_plain: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, where torch has no exception of its own for it; the worker goes on."""
    states, last_state = tiny_plain.model.states, tiny_plain.model.last_state

    def hungry_states(ids: list[int]) -> torch.Tensor:
        if len(ids) > 10:
            torch.empty(1 << 60, dtype=torch.uint8)
        return states(ids)

    def hungry_last_state(ids: list[int], cache: object = None) -> object:
        if len(ids) > 10:
            raise MemoryError
        return last_state(ids, cache)

    monkeypatch.setattr(tiny_plain.model, "states", hungry_states)
    monkeypatch.setattr(tiny_plain.model, "last_state", hungry_last_state)
    runner = make_runner(tiny_plain, _no_bug)
    long, short = completion([6] * 20), completion([7], index=1)
    runner.submit(ScoreCall(1, (group([5], [long, short]),), RowWants()))
    runner.submit(SampleCall(2, (task([5] * 20, n=2), task([5], index=1, max_tokens=2))))
    events = list(finish(runner))
    failed = [e for e in events if isinstance(e, ItemFailed)]
    assert [(e.call_id, e.fault.reason) for e in sorted(failed, key=lambda e: e.call_id)] == [
        (1, Reason.OUT_OF_MEMORY),
        (2, Reason.OUT_OF_MEMORY),
        (2, Reason.OUT_OF_MEMORY),
    ]
    assert {e.completion_index for e in events if isinstance(e, ScoreSlice)} == {1}
    assert {e.prompt_index for e in events if isinstance(e, SampleSlice)} == {1}
    assert {e.call_id for e in events if isinstance(e, CallFinished)} == {1, 2}
    assert runner.is_sound


def test_on_the_plain_path_it_ends_the_worker_where_a_library_may_not_get_over_it(
    tiny_plain: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_primitive(_ids: list[int]) -> torch.Tensor:
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(tiny_plain.model, "states", no_primitive)
    monkeypatch.setattr(memory, "_WORKING_BYTES", 1 << 60)
    runner = make_runner(tiny_plain, _no_bug)
    runner.submit(ScoreCall(1, (group([5], [completion([6])]),), RowWants()))
    (failed,) = finish(runner)
    assert isinstance(failed, CallFailed)
    assert failed.fault.reason == Reason.OUT_OF_MEMORY
    assert not runner.is_sound


def _no_bug(_call_id: int, error: BaseException) -> None:
    raise error
