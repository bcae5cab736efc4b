"""What it takes to read weights from files, and what is said where that is not there."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from scoring_service.engine.files.network import load_network
from scoring_service.engine.updates import checkpoint
from scoring_service.engine.updates.checkpoint_memory import loading_bytes
from scoring_service.engine.weight_memory import (
    HEADER_BYTES,
    Layout,
    WeightMemory,
    lay_out,
    map_writable,
    publish_ready,
)
from scoring_service.engine.weights.tensor_specs import tensor_specs
from scoring_service.errors import Reason, ServiceError
from scoring_service.models import tiny_model_path
from scoring_service.pool.weights.checkpoint import READER_MODULE, read_checkpoint
from scoring_service.pool.weights.filling import WeightFilling
from scoring_service.pool.weights.sets import WeightSet, WeightSets
from scoring_service.pool.weights.status import UpdateOptions, UpdateStatus
from scoring_service.types import TensorSpec
from tests.e2e.processes import alive, until
from tests.pool.scripted import INFO, settled
from tests.weights.conftest import ENGINE

SPECS = (
    TensorSpec("head", "bfloat16", (30, 4)),
    TensorSpec("layer", "bfloat16", (10, 4)),
    TensorSpec("tokens", "bfloat16", (30, 4), tied_to="head"),
)


def test_what_stays_in_the_files_takes_nothing(tmp_path: Path) -> None:
    layout = lay_out(SPECS)
    tensors = {"tokens": torch.zeros(30, 4), "layer": torch.zeros(10, 4)}
    assert loading_bytes(str(tmp_path / "me" / "policy"), SPECS, layout) == 0, "on the Hub"
    save_file(
        {name: tensor.bfloat16() for name, tensor in tensors.items()}, tmp_path / "a.safetensors"
    )
    assert loading_bytes(str(tmp_path), SPECS, layout) == 0
    # Of another type, or under another name: with a tensor to convert, in float32 twice.
    save_file(
        {"tokens": tensors["tokens"].bfloat16(), "layer": tensors["layer"]},
        tmp_path / "a.safetensors",
    )
    assert loading_bytes(str(tmp_path), SPECS, layout) == 2 * 40 + 8 * 40
    save_file({"other": tensors["tokens"]}, tmp_path / "a.safetensors")
    assert loading_bytes(str(tmp_path), SPECS, layout) == 2 * 160 + 8 * 120
    (tmp_path / "b.gguf").touch()
    assert loading_bytes(str(tmp_path / "b.gguf"), SPECS, layout) == 2 * 160 + 8 * 120


def test_a_model_is_loaded_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is there once: what was moved to the update's memory is let go."""
    path = str(tiny_model_path())
    config = replace(ENGINE, model=path, dtype="float32")
    network = load_network(config, torch.device("cpu"))
    expected = network.state_dict()
    specs = tensor_specs(expected)
    layout = lay_out(specs)
    memory = WeightMemory(layout.size)
    needed = loading_bytes(path, specs, layout)
    assert needed > layout.tensor_bytes, "the files are in bfloat16"
    monkeypatch.setattr(checkpoint, "free_host_memory", lambda: needed)
    fault = checkpoint.fill(config, specs, {}, layout, memory.path)
    assert fault is not None
    assert fault.reason is Reason.OUT_OF_MEMORY
    monkeypatch.undo()
    monkeypatch.setattr(checkpoint, "load_network", lambda _config, _device: network)
    whole = {name: tensor.clone() for name, tensor in expected.items()}
    assert checkpoint.fill(config, specs, {}, layout, memory.path) is None
    for name, region in layout.regions.items():
        view = memory.view[region.offset : region.offset + region.size]
        assert bytes(view) == whole[name].flatten().view(torch.uint8).numpy().tobytes()
        view.release()
    assert not any(parameter.numel() for parameter in network.parameters())
    assert memory.ready == layout.size - HEADER_BYTES
    memory.close()


async def test_how_far_files_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by the process that reads them, tensor by tensor."""
    release = asyncio.Event()

    async def read(_config: object, _info: object, layout: Layout, path: str) -> None:
        memory = map_writable(path)
        first, *_ = layout.regions.values()
        publish_ready(memory, first.offset + first.size - HEADER_BYTES)
        await release.wait()

    monkeypatch.setattr("scoring_service.pool.weights.filling.read_checkpoint", read)
    base = WeightSet(0, replace(INFO, tensors=SPECS))
    status = UpdateStatus("id", 1)
    filling = WeightFilling(1, UpdateOptions(1), status, base, WeightSets([]))
    reading = asyncio.create_task(filling.read_files(ENGINE, asyncio.Event(), lambda: None))
    await settled()
    filling.look()
    assert (status.bytes_received, status.tensors_received) == (240, 1)
    assert (status.bytes_total, status.tensors_total) == (320, 2)
    release.set()
    await reading
    filling.look()
    assert (status.bytes_received, status.tensors_received) == (320, 2)
    filling.memory.close()


async def test_a_reader_that_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel does where memory runs out."""
    monkeypatch.setattr(
        "scoring_service.pool.weights.checkpoint.READER_MODULE", "tests.weights.killed_reader"
    )
    with pytest.raises(ServiceError) as caught:
        await read_checkpoint(ENGINE, replace(INFO, tensors=SPECS), lay_out(SPECS), "")
    assert caught.value.fault.reason is Reason.OUT_OF_MEMORY


def test_a_reader_ends_with_its_server() -> None:
    """Which is killed; standard input is held open, as if the reader were far beyond it."""
    held, kept = os.pipe()
    start = f"subprocess.Popen([sys.executable, '-m', {READER_MODULE!r}], stdin=0)"
    code = f"import subprocess, sys, time; print({start}.pid, flush=True); time.sleep(1000)"
    with subprocess.Popen([sys.executable, "-c", code], stdin=held, stdout=-1) as server:
        os.close(held)
        assert server.stdout is not None
        reader = int(server.stdout.readline())
        until(lambda: Path(f"/proc/{reader}/oom_score_adj").read_text() == "1000\n")
        server.kill()
    try:
        until(lambda: not alive(reader))
    finally:
        os.close(kept)
