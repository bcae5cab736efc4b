"""Steps that are recorded and replayed: what they give is what they give without.

On a GPU they are CUDA graphs. Elsewhere what was recorded is computed again from the tensors that
it reads, and raises where a GPU could not record it: where it reads a tensor's numbers, or brings
some from the host. What it has of earlier steps by any other way shows in the numbers.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AttentionMaskInterface

from scoring_service.engine.attention.attention import ATTENTION_NAME
from scoring_service.engine.attention.pages import LayerShape, PagePool, slots_of
from scoring_service.engine.attention.segments import DecodeToken
from scoring_service.engine.loading import path
from scoring_service.engine.loading.loader import LoadedModel, load
from scoring_service.engine.machine.cuda_graphs import Compute, CudaRecorder, Recorder
from scoring_service.engine.machine.page_budget import (
    GRAPH_PARTS,
    GRAPH_ROWS,
    GRAPH_SLOTS,
    graph_bytes,
    page_bytes,
)
from scoring_service.engine.model.causal_model import CausalModel
from scoring_service.engine.packed import setup
from scoring_service.engine.packed.steps.body import PackedBody, Step
from scoring_service.engine.packed.steps.decode_graphs import DecodeGraphs
from scoring_service.engine.trials.graph_trial import graphs_failure
from scoring_service.engine.weights.model_weights import copies_on
from scoring_service.engine.worker import service_loop
from scoring_service.kernels import dispatch, key_parts
from scoring_service.kernels.key_parts import KeyParts, partial_bytes
from scoring_service.types import EngineConfig, Processing
from tests.engine import plain
from tests.engine.sampling import run, task
from tests.engine.small_models import ARCHITECTURES, VOCAB, save_model
from tests.kernels.gpu.device import DEVICE
from tests.kernels.gpu.refusing import Refusing

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
FAMILIES = ["gpt-oss", "llama"]
"""Windows, sinks and experts; and what most models are. An interpreter is slow."""
if DEVICE.type == "cuda":
    # Torch sends float32 tokens to their experts by numbers that it asks the device for.
    FAMILIES = ["llama", "qwen3", "gemma3", "gpt2"]
ROWS = (2, 4)
LENGTHS = (9, 3, 16, 5)
"""Positions of samples, so that pages and blocks of keys begin anywhere."""


class Again:
    """Records by doing it again, into the same memory."""

    def __call__(self, compute: Compute) -> Compute:
        with Refusing():
            output = compute().clone()

        def replay() -> Tensor:
            with Refusing(), torch.inference_mode():
                return output.copy_(compute())

        return replay


MAKE: type[CudaRecorder] | type[Again] = CudaRecorder if DEVICE.type == "cuda" else Again


Pair = tuple[LoadedModel, Any]
"""A model, and transformers' own."""


@pytest.fixture(scope="module", params=FAMILIES)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "attends_by_triton", lambda _device: True)
        folder = save_model(BY_NAME[request.param], tmp_path_factory.mktemp("model"))
        yield load_here(folder), plain.load(folder, torch.float32)


@pytest.fixture(scope="module")
def loaded(pair: Pair) -> LoadedModel:
    return pair[0]


def load_here(folder: Path, **settings: Any) -> LoadedModel:
    config = EngineConfig(
        str(folder), device=DEVICE.type, dtype="float32", cpu_kernels="off", chunk_size=16,
        max_batch_tokens=32,
        memory_utilization=0.05 if DEVICE.type == "cuda" else None, **settings,
    )  # fmt: skip
    return load(config, lambda _stage: None)


def shapes_of(loaded: LoadedModel) -> list[LayerShape]:
    assert loaded.packed is not None
    pool = loaded.packed.pool
    return [
        LayerShape(keys.shape[0], keys.shape[2], values.shape[2])
        for keys, values in zip(pool.keys, pool.values, strict=True)
    ]


class Samples:
    """Samples of random keys and values, going on in two pools that begin alike."""

    def __init__(
        self, loaded: LoadedModel, lengths: tuple[int, ...] = LENGTHS, pages: int = 2
    ) -> None:
        shapes = shapes_of(loaded)
        self.model = loaded.model
        self.pools = [PagePool(shapes, 16, loaded.model.dtype, DEVICE) for _ in range(2)]
        generator = torch.Generator().manual_seed(0)
        for mine, other in zip(*([*p.keys, *p.values] for p in self.pools), strict=True):
            mine.copy_(torch.randn(mine.shape, generator=generator))
            other.copy_(mine)
        order = np.random.default_rng(0).permutation(16).tolist()
        self.slots = [slots_of([order.pop() for _ in range(pages)], 16 * pages) for _ in lengths]
        self.lengths = list(lengths)
        self.rng = np.random.default_rng(1)
        self.told: list[Exception] = []

    def graphs(self, make_recorder: Any = MAKE, rows: tuple[int, ...] = ROWS) -> DecodeGraphs:
        return DecodeGraphs(self.model, self.pools[0], rows, self.told.append, make_recorder)

    def step(self, samples: list[int]) -> tuple[DecodeToken, ...]:
        """One more token of each of these."""
        for sample in samples:
            self.lengths[sample] += 1
        return tuple(
            DecodeToken(int(self.rng.integers(VOCAB)), self.slots[s][: self.lengths[s]])
            for s in samples
        )

    def check(self, found_T_H: Tensor | None, tokens: tuple[DecodeToken, ...]) -> None:
        """States, and whatever is kept anywhere, are those of a step that is not recorded."""
        expected_T_H = PackedBody(self.model, self.pools[1]).run(Step((), tokens)).states_T_H
        assert found_T_H is not None
        torch.testing.assert_close(found_T_H, expected_T_H, atol=1e-4, rtol=1e-4)
        for mine, other in zip(*([*p.keys, *p.values] for p in self.pools), strict=True):
            torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)


def test_steps_of_all_sizes(loaded: LoadedModel) -> None:
    """Fewer samples than rows, others each time: computed, recorded and replayed."""
    samples = Samples(loaded)
    graphs = samples.graphs()
    for chosen in ([0, 1], [1, 0], [2], [0, 3], [3, 1, 2], [0, 1, 2, 3], [2, 0, 1], [1]):
        tokens = samples.step(chosen)
        samples.check(graphs.run(tokens), tokens)
    assert not samples.told


def test_several_tokens_of_one_sample(loaded: LoadedModel) -> None:
    """As when a sample is resumed: each attends to those before it in the same step."""
    samples = Samples(loaded)
    graphs = samples.graphs()
    for _ in range(3):
        tokens = (*samples.step([0]), *samples.step([0]), *samples.step([1]))
        samples.check(graphs.run(tokens), tokens)


def test_chains_that_grow_past_the_ends_of_parts(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded while none is cut; others are long, and short again, in the same rows."""
    monkeypatch.setattr(key_parts, "KEY_PARTS", KeyParts(few=32, many=64))
    samples = Samples(loaded, (28, 57, 31, 3), pages=4)
    graphs = samples.graphs()
    for chosen in ([0, 3], [0, 3], [0, 2], [2, 0], [0, 1], [3, 1], [1], [0, 1, 2, 3], [1, 2, 0]):
        tokens = samples.step(chosen)
        samples.check(graphs.run(tokens), tokens)
    monkeypatch.setattr("scoring_service.engine.packed.steps.decode_graphs.GRAPH_PARTS", 2)
    few = samples.graphs()
    assert few.run(samples.step([1, 3])) is not None
    assert few.run(samples.step([1, 0])) is None
    assert not samples.told


def test_what_is_too_large_goes_another_way(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = Samples(loaded)
    graphs = samples.graphs(rows=(2,))
    assert graphs.run(samples.step([0, 1, 2])) is None
    body = PackedBody(samples.model, samples.pools[0], graphs)
    tokens = samples.step([0, 1, 2])
    samples.check(body.run(Step((), tokens)).states_T_H, tokens)
    monkeypatch.setattr("scoring_service.engine.packed.steps.decode_graphs.GRAPH_SLOTS", 20)
    few = samples.graphs(rows=(2,))
    assert few.run(samples.step([3])) is not None
    assert few.run(samples.step([2, 3])) is None  # 20 and 7 of them


def test_other_weights_are_recorded_anew(loaded: LoadedModel) -> None:
    samples = Samples(loaded)
    made: list[Recorder] = []

    def make() -> Recorder:
        made.append(MAKE())
        return made[-1]

    graphs = samples.graphs(make)
    tokens = samples.step([0, 1])
    for _ in range(3):
        before = graphs.run(tokens)
    assert before is not None
    before = before.clone()
    model, own = samples.model, samples.model.weights
    assert own is not None
    other = replace(own, tensors={name: 1.3 * t for name, t in own.tensors.items()})
    try:
        model.use(other)
        for _ in range(3):
            samples.check(graphs.run(tokens), tokens)
        assert not torch.allclose(graphs.run(tokens), before, atol=1e-3)
    finally:
        model.use(own)
    samples.check(graphs.run(tokens), tokens)
    assert len(made) == 2, "two versions that answer by turns are recorded once each"
    before = weakref.ref(made[1])
    del other, made[1]
    assert before() is None, "what was recorded of weights that are dropped is held"


def test_what_cannot_be_recorded_goes_on_without(loaded: LoadedModel) -> None:
    """It is tried once, and told once."""
    samples = Samples(loaded)
    tries = []

    def refuse(_compute: Compute) -> Compute:
        tries.append(1)
        raise RuntimeError("operation not permitted when stream is capturing")

    body = PackedBody(samples.model, samples.pools[0], samples.graphs(lambda: refuse))
    for _ in range(4):
        tokens = samples.step([0, 1])
        samples.check(body.run(Step((), tokens)).states_T_H, tokens)
    assert len(tries) == len(samples.told) == 1
    assert "not permitted" in str(samples.told[0])


if DEVICE.type == "cuda":

    def test_a_recording_that_fails_leaves_the_device_as_it_was() -> None:
        """Cached memory can be given back, the next recording works, and numbers are drawn on."""
        torch.manual_seed(0)
        drawn = [torch.rand(10, device=DEVICE) for _ in range(2)]
        torch.manual_seed(0)
        assert torch.equal(torch.rand(10, device=DEVICE), drawn[0])
        total = torch.ones(1000, device=DEVICE)
        recorder = CudaRecorder()
        with pytest.raises(RuntimeError):
            recorder(lambda: total * total.sum().item())
        assert torch.equal(torch.rand(10, device=DEVICE), drawn[1])
        torch.cuda.empty_cache()
        doubled = total * 2  # done before, as what is recorded has to be
        replay = recorder(lambda: total * 2)
        assert torch.equal(replay(), doubled)

    def test_weights_are_staged_while_a_step_is_recorded() -> None:
        """Another thread takes new memory, copies and waits meanwhile: neither minds the other."""
        total, ended = torch.ones(1000, device=DEVICE), threading.Event()
        (total * 2).cumsum(0)  # done before, as what is recorded has to be

        def stage() -> list[bool]:
            arrived = []
            while len(arrived) < 5 or not ended.is_set():
                host = torch.arange((1 << 20) + (len(arrived) % 100 << 17))
                there = copies_on(DEVICE, {"weight": host}, lambda: None)["weight"]
                arrived.append(torch.equal(there.cpu(), host))
            return arrived

        with ThreadPoolExecutor(1) as pool:
            staging = pool.submit(stage)
            try:
                recorder = CudaRecorder()
                replays = [recorder(lambda n=n: (total * n).cumsum(0)) for n in range(50)]
            finally:
                ended.set()
            assert all(staging.result())
        for n, replay in enumerate(replays):
            assert replay()[-1].item() == 1000 * n


def test_no_mask_is_asked_for() -> None:
    """Transformers asks the device in each step where a function is registered that makes one."""
    assert ATTENTION_NAME not in AttentionMaskInterface._global_mapping


def test_the_trial_accepts_what_gives_the_same(loaded: LoadedModel) -> None:
    assert graphs_failure(loaded.model, shapes_of(loaded), MAKE) == ""


def test_the_trial_refuses_what_does_not_read_its_inputs(loaded: LoadedModel) -> None:
    class Stale:
        def __call__(self, compute: Compute) -> Compute:
            output = compute().clone()
            return lambda: output

    failure = graphs_failure(loaded.model, shapes_of(loaded), Stale)
    assert failure == "the states of step 3 are not what they are without"


def test_the_trial_refuses_a_model_that_asks(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As experts do that are called only where a token chose them."""
    forward = CausalModel.packed_states

    def asks(self: CausalModel, ids_T: Tensor, *rest: Any) -> Tensor:
        assert ids_T.max().item() < VOCAB
        return forward(self, ids_T, *rest)

    monkeypatch.setattr(CausalModel, "packed_states", asks)
    failure = graphs_failure(loaded.model, shapes_of(loaded), MAKE)
    assert "item cannot be recorded" in failure or "synchroniz" in failure


def test_a_load_says_what_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "attends_by_triton", lambda _device: True)
    if DEVICE.type != "cuda":
        monkeypatch.setattr(path, "_may_record", lambda _model: True)
        monkeypatch.setattr(path, "graphs_failure", partial(graphs_failure, make_recorder=MAKE))
    folder = save_model(BY_NAME["llama"], tmp_path)
    on, off = load_here(folder), load_here(folder, cuda_graphs="off")
    assert on.packed is not None
    assert off.packed is not None
    assert "; samples go on by CUDA graphs" in on.info.path_reason
    assert "; without CUDA graphs, as asked for" in off.info.path_reason
    assert on.packed.settings.graph_rows == GRAPH_ROWS
    assert not off.packed.settings.graph_rows
    assert on.info.numerics_id != off.info.numerics_id
    monkeypatch.setattr(path, "graphs_failure", lambda *_: "it asked")
    found = path._try_graphs(on.model, shapes_of(on), EngineConfig(str(folder)))
    assert found == (False, "; without CUDA graphs: it asked")


def test_pages_leave_room_for_recorded_steps(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert loaded.packed is not None
    shape, shapes = loaded.packed.limits.shape, shapes_of(loaded)
    room = 2 * graph_bytes(shape) + (256 << 20)
    monkeypatch.setattr(setup, "free_memory", lambda _device: room)
    config = EngineConfig("", memory_utilization=1.0, max_batch_tokens=64, chunk_size=16)
    where = (config, shapes, shape, 64, torch.float32, torch.device("cpu"))
    on, off = (setup.set_up(*where, cuts=None, records=records) for records in (True, False))
    page = page_bytes(sum(layer.width for layer in shapes), shape.hidden, 4)
    spared = (off.pool.pages - on.pool.pages) * page
    assert 0 <= spared - graph_bytes(shape) < page or -page < spared - graph_bytes(shape) <= 0
    # What they take at least: the inputs of attention and results of its parts, and what a row has
    # in its widest layer.
    parts = GRAPH_PARTS * partial_bytes(shape.heads, shape.heads * shapes[0].value_dim)
    least = 4 * GRAPH_SLOTS + parts + GRAPH_ROWS[-1] * shape.feed_forward_width * 4
    assert graph_bytes(shape) > least


def test_samples_through_the_engine(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples that join and leave: the tokens drawn without, with transformers' log-probs."""
    loaded, network = pair
    tasks = [
        task([3, 14, 15, 92, 65], n=2, seed=5, max_tokens=9, processing=Processing()),
        task([7, 8], seed=6, max_tokens=4, index=1, processing=Processing()),
        task(list(range(40, 60)), seed=7, max_tokens=7, index=2, processing=Processing()),
    ]
    without = run(loaded, tasks)
    assert loaded.packed is not None
    settings = replace(loaded.packed.settings, graph_rows=ROWS)
    recorders: list[Recorder] = []

    def make(*arguments: Any) -> DecodeGraphs:
        def make_recorder() -> Recorder:
            recorders.append(MAKE())
            return recorders[-1]

        return DecodeGraphs(*arguments, make_recorder=make_recorder)

    monkeypatch.setattr(service_loop, "DecodeGraphs", make)
    found = run(replace(loaded, packed=replace(loaded.packed, settings=settings)), tasks)
    assert recorders
    assert found.items.keys() == without.items.keys()
    for (prompt, _), drawn in found.items.items():
        assert drawn.token_ids == without[prompt, _].token_ids
        logits = plain.row_logits(network, tasks[prompt].prompt_ids.tolist(), drawn.token_ids)
        expected = plain.log_softmax(logits[:-1])[np.arange(len(logits) - 1), drawn.token_ids]
        np.testing.assert_allclose(drawn.logprobs, expected, atol=1e-4)
