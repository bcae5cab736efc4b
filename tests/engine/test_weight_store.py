"""What a worker holds of weights while others come."""

from __future__ import annotations

import gc
import queue
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from scoring_service.engine.events import (
    LOADED,
    ApplyWeights,
    FillWeights,
    StageWeights,
    WeightsDropped,
    WeightsStaged,
)
from scoring_service.engine.head.head import LinearHead
from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.engine.updates import filling, weight_store
from scoring_service.engine.updates.mapped_tensors import tensor_in
from scoring_service.engine.updates.staging import Staging
from scoring_service.engine.updates.weight_store import WeightStore
from scoring_service.engine.weight_memory import (
    HEADER_BYTES,
    Layout,
    WeightMemory,
    WriterState,
    lay_out,
    map_memory,
    map_writable,
)
from scoring_service.engine.weights.model_weights import Slots
from scoring_service.models import tiny_model_path
from tests.e2e.processes import until
from tests.engine.loading import load_model


def alive_at_the_next_build(
    before: list[weakref.ref[Any]], monkeypatch: pytest.MonkeyPatch
) -> list[bool]:
    """Which of them are still there, put down when a network's next weights are built."""
    alive: list[bool] = []
    build = Slots.build

    def watched(*arguments: Any) -> Any:
        gc.collect()
        alive.extend(ref() is not None for ref in before)
        return build(*arguments)

    monkeypatch.setattr(Slots, "build", watched)
    return alive


def test_nothing_is_left_of_weights_that_others_are_written_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There is no room for both: the head that was made of them goes before the next is made."""
    loaded = load_model(tiny_model_path())
    events: list[Any] = []
    store = WeightStore(loaded, events.append)
    model = loaded.model
    assert model.weights is not None
    assert isinstance(model.head, LinearHead)
    head, body = model.head.prepared, next(iter(model.weights.tensors.values()))
    assert model.head.copied_bytes
    before = [weakref.ref(head), weakref.ref(body)]
    tensors = {name: tensor.clone() for name, tensor in model.weights.tensors.items()}
    tensors["lm_head.weight"] *= 2
    states = torch.randn(3, tensors["lm_head.weight"].shape[1]).bfloat16()
    logits = model.head.logits(states)
    del head, body
    command = StageWeights(1, "", lay_out(loaded.info.tensors), version=5, beside=False)
    staging = store._staged[1] = Staging(command)
    staging.tensors, staging.digest = dict(tensors), "abc"
    alive = alive_at_the_next_build(before, monkeypatch)
    store.apply(ApplyWeights(1))
    assert alive == [False, False]
    assert [type(event) for event in events] == [WeightsStaged]
    assert model.weight_version == 5
    assert torch.equal(model.head.logits(states), 2 * logits)


def test_nothing_is_left_of_an_update_that_others_are_written_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor of its memory, of the packed layers and of the head that were made while it came."""
    loaded = load_model(tiny_model_path())
    store = WeightStore(loaded, lambda _event: None)
    model = loaded.model
    assert model.weights is not None
    first = {name: tensor.clone() for name, tensor in model.weights.tensors.items()}
    specs = lay_out(loaded.info.tensors)
    for number in (1, 2):
        command = StageWeights(number, "", specs, version=number, beside=False)
        staging = store._staged[number] = Staging(command)
        staging.tensors, staging.digest = dict(first), "abc"
    writer = WeightMemory(specs.size)
    store._staged[1].memory = map_memory(writer.path)
    writer.close()
    store.apply(ApplyWeights(1))
    assert isinstance(model.head, LinearHead)
    packed = list(model.weights.packed.values())
    memory = store._staged[1].memory
    assert memory is not None
    before = [weakref.ref(each) for each in (model.head.prepared, *packed, memory.map)]
    assert len(before) == 2 + len(packed)
    del packed, memory
    alive = alive_at_the_next_build(before, monkeypatch)
    store.apply(ApplyWeights(2))
    assert alive == [False] * len(before)
    assert model.weight_version == 2


def staged_memory(loaded: LoadedModel) -> tuple[WeightMemory, Layout]:
    """An update that came whole: the model's own tensors, the head's twice as large."""
    assert loaded.model.weights is not None
    layout = lay_out(loaded.info.tensors)
    memory = WeightMemory(layout.size)
    writable = map_writable(memory.path)
    for name, region in layout.regions.items():
        tensor = loaded.model.weights.tensors[name]
        tensor_in(writable, region).copy_(tensor * (2 if name == "lm_head.weight" else 1))
    memory.publish(layout.size - HEADER_BYTES, WriterState.COMPLETE)
    return memory, layout


def test_room_that_others_took_meanwhile_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was there when the update began. What was copied is let go, and it can go in place."""
    loaded = load_model(tiny_model_path())
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    store = WeightStore(loaded, events.put)
    memory, layout = staged_memory(loaded)
    copied: list[weakref.ref[Any]] = []

    def first_copies(_device: object, tensors: dict[str, Any], *_: object) -> Any:
        copies = [tensor.clone() for tensor in tensors.values()][:3]
        copied.extend(map(weakref.ref, copies))
        raise torch.OutOfMemoryError("CUDA out of memory")

    states = torch.randn(3, 160).bfloat16()
    logits = loaded.model.head.logits(states)
    with monkeypatch.context() as patch:
        patch.setattr(weight_store, "copies_on", first_copies)
        store.stage(StageWeights(1, memory.path, layout, version=5, beside=True))
        staged = events.get(timeout=60)
    assert isinstance(staged, WeightsStaged)
    assert not staged.usable
    store._staged[1].thread.join()
    gc.collect()
    assert [ref() for ref in copied] == [None] * 3
    assert torch.equal(loaded.model.head.logits(states), logits)
    store.apply(ApplyWeights(1))
    assert events.get(timeout=60) == replace(staged, usable=True)
    assert loaded.model.weight_version == 5
    assert torch.equal(loaded.model.head.logits(states), 2 * logits)
    memory.close()


class Blocked:
    """Work on one tensor after another, of which the first takes as long as somebody likes."""

    def __init__(self) -> None:
        self.begun, self.release = threading.Event(), threading.Event()
        self.done: list[str] = []

    def __call__(self, name: str) -> None:
        self.done.append(name)
        self.begun.set()
        assert self.release.wait(60)

    def dropped_meanwhile(self, store: WeightStore, told: Callable[[], bool]) -> list[str]:
        """What was done of it, when it was dropped during the first, which goes on until `told`."""
        assert self.begun.wait(60)
        dropping = threading.Thread(target=store.drop, args=(1,))
        dropping.start()
        until(told)
        self.release.set()
        dropping.join(60)
        assert not dropping.is_alive()
        return self.done


def test_preparing_ends_with_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps wait for it: not for tensors that nobody will use."""
    loaded = load_model(tiny_model_path())
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    store = WeightStore(loaded, events.put)
    memory, layout = staged_memory(loaded)
    blocked = Blocked()
    monkeypatch.setattr(Slots, "prepare", lambda _self, name, _tensor, _prepared: blocked(name))
    store.stage(StageWeights(1, memory.path, layout, version=5, beside=True))
    # All is read, and waits to be prepared.
    staging = store._staged[1]
    until(lambda: len(staging.making) == len(layout.regions) and bool(staging.digest))
    others = staging.making[1:]
    done = blocked.dropped_meanwhile(store, lambda: all(each.cancelled() for each in others))
    assert done == [next(iter(layout.regions))]
    assert events.get(timeout=60) == WeightsDropped(1)
    memory.close()


def test_writing_older_tensors_ends_with_the_update() -> None:
    """A part of the tensors was pushed, and the others come from a worker."""
    loaded = load_model(tiny_model_path())
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    store = WeightStore(loaded, events.put)
    memory, layout = staged_memory(loaded)
    weights = store.find(LOADED)
    blocked = Blocked()

    class Watched(dict[str, torch.Tensor]):
        def __getitem__(self, name: str) -> torch.Tensor:
            blocked(name)
            return super().__getitem__(name)

    weights.tensors = Watched(weights.tensors)
    store.fill(FillWeights(1, memory.path, layout, tuple(layout.regions), source=LOADED))
    filling = store._fills[1]
    done = blocked.dropped_meanwhile(store, lambda: not filling.wanted)
    assert done == [next(iter(layout.regions))]
    assert events.get(timeout=60) == WeightsDropped(1)
    memory.close()


def test_whatever_ends_a_thread_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An update would wait ten minutes for one that only ended."""
    loaded = load_model(tiny_model_path())
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    store = WeightStore(loaded, events.put)
    layout = lay_out(loaded.info.tensors)
    told = []
    # What the system refuses says why; what nobody foresaw is a bug, with its trace in the log.
    store.stage(StageWeights(1, str(tmp_path / "none"), layout, version=1, beside=True))
    told.append(events.get(timeout=60))
    empty = tmp_path / "empty"
    empty.touch()
    store.stage(StageWeights(2, str(empty), layout, version=2, beside=True))
    told += [events.get(timeout=60), events.get(timeout=60)]
    monkeypatch.setattr(filling, "map_writable", lambda _path: bytearray())
    store.fill(FillWeights(3, "", layout, ("no.such.weight",), source=0))
    told += [events.get(timeout=60), events.get(timeout=60)]
    assert told[0].message.startswith("FileNotFoundError: ")
    for bug, failed, kind in ((*told[1:3], "ValueError"), (*told[3:], "KeyError")):
        assert bug.request_id == ""
        assert bug.traceback.splitlines()[-1].startswith(f"{kind}: ")
        assert failed.message == f"a bug in the server: {kind}"
    assert [told[i].weights for i in (0, 2, 4)] == [1, 2, 3]
