"""Weights that come beside others on a GPU: what counts as room, and which stream copies them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from scoring_service.engine.attention.step_shape import step_shape
from scoring_service.engine.events import StageWeights
from scoring_service.engine.machine.memory import cached_memory, free_memory
from scoring_service.engine.machine.page_budget import GRAPH_ROWS, graph_bytes
from scoring_service.engine.packed import setup
from scoring_service.engine.packed.setup import set_up
from scoring_service.engine.updates.staging import Staging
from scoring_service.engine.updates.weight_store import WeightStore
from scoring_service.engine.weight_memory import lay_out
from scoring_service.engine.weights import model_weights as weights
from scoring_service.engine.weights.model_weights import copies_on, room_for
from scoring_service.kernels.key_parts import KEY_PARTS, PARTIAL_BYTES
from scoring_service.models import tiny_model_path
from scoring_service.peak_memory import StepWork, body_bytes, largest_step, step_bytes
from scoring_service.types import EngineConfig
from tests.engine.loading import load_model

GPU = torch.device("cuda", 1)
MIB = 1 << 20


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU with 100 MiB that nobody has, and 60 MiB in torch's cache, 10 of them between tensors.

    To empty the cache gives back all but those 10.
    """
    state = {"free": 100 * MIB, "reserved": 560 * MIB}

    def empty_cache() -> None:
        given = state["reserved"] - 510 * MIB
        state["free"] += given
        state["reserved"] -= given

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (state["free"], 1 << 40))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: state["reserved"])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: 500 * MIB)
    between = {"inactive_split_bytes.all.current": 10 * MIB}
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda _device: between)
    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)


@pytest.mark.usefixtures("allocator")
def test_what_torch_keeps_is_room_for_weights_but_for_what_steps_take() -> None:
    """150 MiB, of which steps want 50: 80 MiB and a quarter more. A second update beside the first
    finds what was dropped, and no step finds its own memory gone."""
    assert (free_memory(GPU), cached_memory(GPU)) == (100 * MIB, 50 * MIB)
    assert room_for(80 * MIB, GPU, steps=50 * MIB)
    assert not room_for(80 * MIB + 1, GPU, steps=50 * MIB)
    assert room_for(112 * MIB, GPU, steps=10 * MIB)
    # Where nobody knows what steps take, only what nobody has.
    assert room_for(80 * MIB, GPU)
    assert not room_for(81 * MIB, GPU)
    assert cached_memory(torch.device("cpu")) == 0


@pytest.mark.usefixtures("allocator")
def test_a_store_sets_aside_what_steps_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the largest step, and of recorded ones."""
    loaded = load_model(tiny_model_path(), cpu_kernels="off")
    assert loaded.packed is not None
    limits = loaded.packed.limits
    recording = replace(loaded.packed.settings, graph_rows=GRAPH_ROWS)
    packed = replace(loaded.packed, settings=recording)
    step = step_bytes(limits.shape, largest_step(limits))
    asked: list[Any] = []
    monkeypatch.setattr(
        "scoring_service.engine.updates.weight_store.room_for",
        lambda *room: bool(asked.append(room)),
    )
    for found in (loaded, replace(loaded, packed=packed), replace(loaded, packed=None)):
        for device in (torch.device("cpu"), GPU):
            monkeypatch.setattr(loaded.model, "device", device)
            assert not WeightStore(found, lambda _event: None)._has_room()
    assert [steps for *_, steps in asked] == [0, step, 0, step + graph_bytes(limits.shape), 0, 0]


@pytest.mark.usefixtures("allocator")
def test_pages_are_sized_by_what_nobody_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """What probes left is given back first; what then lies between tensors is no room for pages."""
    loaded = load_model(tiny_model_path(), cpu_kernels="off")
    assert loaded.packed is not None
    pool, shape = loaded.packed.pool, loaded.packed.limits.shape
    made: list[int] = []

    def noting(_shapes: Any, pages: int, _dtype: Any, _device: Any) -> Any:
        made.append(pages)
        return pool

    monkeypatch.setattr(setup, "PagePool", noting)
    shapes = [
        setup.LayerShape(keys.shape[0], keys.shape[2], values.shape[2])
        for keys, values in zip(pool.keys, pool.values, strict=True)
    ]
    config = EngineConfig("", memory_utilization=1.0, max_batch_tokens=64, chunk_size=16)
    where = (config, shapes, shape, 64, torch.bfloat16, GPU)
    set_up(*where, cuts=None, records=False)
    monkeypatch.setattr(setup, "free_memory", lambda _device: 150 * MIB)
    set_up(*where, cuts=None, records=False)
    assert made[0] == made[1] > 0


class FakeStream:
    """Puts down what is asked of a stream."""

    def __init__(self, log: list[Any]) -> None:
        self.log = log

    def wait_stream(self, other: Any) -> None:
        self.log.append(("waits for", other))

    def synchronize(self) -> None:
        self.log.append("synchronised")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What happens on a GPU that is made of the CPU's memory."""
    log: list[Any] = []
    empty_like, copy = torch.empty_like, torch.Tensor.copy_

    @contextlib.contextmanager
    def entered(stream: FakeStream) -> Iterator[None]:
        log.append("entered")
        yield
        log.append("left")

    def noting(into: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        log.append("copied")
        return copy(into, source)

    def allocated(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        log.append(("allocated on", device))
        return empty_like(tensor)

    monkeypatch.setattr(torch.cuda, "Stream", lambda _device: FakeStream(log))
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: "the steps' stream")
    monkeypatch.setattr(weights.torch, "empty_like", allocated)
    monkeypatch.setattr(torch.Tensor, "copy_", noting)
    return log


def test_copies_to_a_gpu_have_a_stream_of_their_own(log: list[Any]) -> None:
    """In memory of the steps' stream, after what still reads it, and there when they count."""
    tensors = {"a": torch.arange(6).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
    copies = copies_on(GPU, tensors, lambda: None)
    assert log == [
        ("allocated on", GPU), ("allocated on", GPU), ("waits for", "the steps' stream"),
        "entered", "copied", "copied", "left", "synchronised",
    ]  # fmt: skip
    assert copies.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert copies[name] is not tensor
        assert torch.equal(copies[name], tensor)


def test_copies_that_fail_are_waited_for(log: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those before them may still be under way to memory that goes to others."""

    def fails(_into: torch.Tensor, _source: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("a page of the host could not be read")

    monkeypatch.setattr(torch.Tensor, "copy_", fails)
    with pytest.raises(RuntimeError, match="could not be read"):
        copies_on(GPU, {"a": torch.ones(3)}, lambda: None)
    assert log[-1] == "synchronised"


def test_copies_that_nobody_waits_for_end_between_tensors(log: list[Any]) -> None:
    """Steps wait for the thread that makes them, when an update is given up."""
    wanted = iter([True, True, False])

    def go_on() -> None:
        if not next(wanted):
            raise LookupError

    with pytest.raises(LookupError):
        copies_on(GPU, {name: torch.ones(3) for name in "abcd"}, go_on)
    assert log.count("copied") == 2
    assert log[-1] == "synchronised"


def test_staged_weights_are_copied_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the store, onto the model's own device."""
    loaded = load_model(tiny_model_path())
    model = loaded.model
    assert model.weights is not None
    asked: list[torch.device] = []

    def noting(
        device: torch.device, tensors: dict[str, torch.Tensor], go_on: Callable[[], None]
    ) -> dict[str, torch.Tensor]:
        asked.append(device)
        return copies_on(device, tensors, go_on)

    monkeypatch.setattr("scoring_service.engine.updates.weight_store.copies_on", noting)
    store = WeightStore(loaded, lambda _event: None)
    command = StageWeights(1, "", lay_out(loaded.info.tensors), version=5, beside=True)
    staging = Staging(command)
    staging.tensors = {name: tensor.clone() for name, tensor in model.weights.tensors.items()}
    built = store._build(staging)
    assert asked == [model.device]
    assert built.tensors.keys() == staging.tensors.keys()


@pytest.mark.parametrize(("device", "held"), [("cuda", PARTIAL_BYTES), ("cpu", 0)])
def test_what_parts_of_chains_leave_is_set_aside(device: str, held: int) -> None:
    """Where contexts are long enough to be cut."""
    shape = step_shape(
        {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 1024},
        vocab_size=1000,
        element_bytes=2,
        residual_bytes=2,
        logit_bytes=4,
        device_type=device,
        compiled_attention=True,
        compiled_head=True,
        finishes_logits=False,
    )
    short, long = (
        body_bytes(shape, StepWork(tokens=64, rows=0, context=context))
        for context in (KEY_PARTS.few, KEY_PARTS.few + 1)
    )
    assert long - short == held
