"""The attention of packed steps against float64; eager fp32's own error is the bound."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from scoring_service.engine.attention import attention as packed_attention
from scoring_service.engine.loading.loader import LoadedModel, load
from scoring_service.kernels import dispatch, key_parts
from scoring_service.kernels.gpu import attention as triton_attention
from scoring_service.kernels.gpu.attention import Scores, attend
from scoring_service.kernels.gpu.attention_work import MANY_QUERIES, Heads, Room, Work, work_of
from scoring_service.kernels.key_parts import KeyParts
from scoring_service.types import EngineConfig, Processing
from tests.engine import plain
from tests.engine.sampling import sample
from tests.engine.scoring import groups, score
from tests.engine.small_models import ARCHITECTURES, VOCAB, save_model
from tests.kernels.gpu.device import DEVICE
from tests.kernels.gpu.variants import Variant, recorded

SLACK = 1e-5
BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}


@dataclass(frozen=True)
class Layer:
    """Widths of a layer, and what it asks for."""

    heads: int = 4
    kv_heads: int = 2
    width: int = 16
    value_width: int = 16
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False

    def of(self, dtype: torch.dtype) -> Heads:
        """As work items see it."""
        return Heads(self.heads // self.kv_heads, self.kv_heads, self.value_width, dtype)


LAYERS = {
    "grouped": Layer(),
    "one head of keys": Layer(heads=6, kv_heads=1),
    "odd widths": Layer(width=24, value_width=20),
    "window": Layer(window=5),
    "window as wide as a block": Layer(window=64),
    "soft-cap": Layer(softcap=2.0),
    "sinks": Layer(sinks=True),
    "everything": Layer(5, 1, 40, 8, window=33, softcap=3.0, sinks=True),
}

SEGMENTS = [(0, 7, 0), (7, 70, 90), (77, 1, 3), (78, 33, 64), (111, 1, 200), (112, 1, 0)]
"""First row, tokens, position of the first: beginnings, middles and sampled tokens."""
ROWS = 116


@dataclass(frozen=True)
class Step:
    queries: Tensor
    keys: Tensor
    values: Tensor
    kept: tuple[Tensor, Tensor]
    places: list[tuple[int, int, int, np.ndarray]]
    sinks: Tensor


Segments = list[tuple[int, int, int]]


def random_step(
    layer: Layer, dtype: torch.dtype, segments: Segments = SEGMENTS, rows: int = ROWS
) -> Step:
    kept_slots = max(512, *(first for *_, first in segments))
    generator = torch.Generator().manual_seed(1)
    rng = np.random.default_rng(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(DEVICE, dtype)

    # As a model has them: rows first, and heads side by side.
    queries = normal(rows, layer.heads, layer.width).transpose(0, 1)
    keys = normal(rows, layer.kv_heads, layer.width).transpose(0, 1)
    values = normal(rows, layer.kv_heads, layer.value_width).transpose(0, 1)
    widths = layer.width, layer.value_width
    kept_keys, kept_values = (normal(layer.kv_heads, kept_slots, width) for width in widths)
    places = [(a, n, first, rng.permutation(kept_slots)[:first]) for a, n, first in segments]
    sinks = normal(layer.heads).float()
    return Step(queries, keys, values, (kept_keys, kept_values), places, sinks)


def run(layer: Layer, step: Step, places: list[tuple[int, int, int, np.ndarray]]) -> Tensor:
    return run_work(layer, step, work_of(places, layer.of(step.queries.dtype), DEVICE))


def run_work(layer: Layer, step: Step, work: Work) -> Tensor:
    rows = step.queries.shape[1]
    output = torch.full((rows, layer.heads, layer.value_width), 7.0, device=DEVICE)
    output = output.to(step.queries.dtype)
    scores = Scores(
        layer.width**-0.5, layer.window, layer.softcap, step.sinks if layer.sinks else None
    )
    attend(step.queries, step.keys, step.values, step.kept, work, scores, output)
    return output


def plainly(layer: Layer, step: Step, kind: torch.dtype) -> Tensor:
    """The definition: every query by itself."""
    rows = step.queries.shape[1]
    output = torch.zeros(rows, layer.heads, layer.value_width, dtype=kind, device=DEVICE)
    for start, tokens, first, slots in step.places:
        before = torch.from_numpy(slots).to(DEVICE)
        for token in range(tokens):
            own = slice(start, start + token + 1)
            begin = 0 if layer.window is None else max(0, first + token + 1 - layer.window)
            for head in range(layer.heads):
                kv = head * layer.kv_heads // layer.heads
                keys = torch.cat([step.kept[0][kv, before], step.keys[kv, own]])[begin:].to(kind)
                values = torch.cat([step.kept[1][kv, before], step.values[kv, own]])[begin:]
                scores = keys @ step.queries[head, start + token].to(kind) * layer.width**-0.5
                if layer.softcap is not None:
                    scores = torch.tanh(scores / layer.softcap) * layer.softcap
                if layer.sinks:
                    scores = torch.cat([scores, step.sinks[head : head + 1].to(kind)])
                weights = torch.softmax(scores, dim=0)[: len(keys)]
                output[start + token, head] = weights @ values.to(kind)
    return output


@pytest.mark.parametrize("name", LAYERS)
def test_every_kind_of_layer(name: str) -> None:
    layer = LAYERS[name]
    step = random_step(layer, torch.float32)
    found = run(layer, step, step.places)
    truth = plainly(layer, step, torch.float64)
    eager_error = (plainly(layer, step, torch.float32).double() - truth)[:113].abs().max()
    assert (found.double() - truth)[:113].abs().max() <= eager_error + SLACK
    assert (found[113:] == 7.0).all(), "padding is nobody's to write"


HALVES = [
    (name, dtype)
    for name in (LAYERS if DEVICE.type == "cuda" else ["grouped"])
    for dtype in (torch.bfloat16, torch.float16)
    if DEVICE.type == "cuda" or dtype == torch.bfloat16
]


@pytest.mark.parametrize(("name", "dtype"), HALVES)
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    """Within what rounding weights and results costs: half an eps each, of the largest value."""
    layer = LAYERS[name]
    step = random_step(layer, dtype)
    truth = plainly(layer, step, torch.float64)
    error = (run(layer, step, step.places).double() - truth)[:113].abs().max()
    assert error <= torch.finfo(dtype).eps * step.values.abs().max().double()


def test_bits_do_not_depend_on_company() -> None:
    layer = LAYERS["window"]
    step = random_step(layer, torch.float32)
    together = run(layer, step, step.places[::-1])
    for place in step.places:
        rows = slice(place[0], place[0] + place[1])
        assert torch.equal(run(layer, step, [place])[rows], together[rows])


def test_another_step_in_the_same_place() -> None:
    """Blocks and slots of a step are written over those of another: the same bits as anew."""
    layer, dtype = LAYERS["window"], torch.float32
    first, other = random_step(layer, dtype), random_step(layer, dtype)
    moved = [(a, n, first // 2, slots[: first // 2]) for a, n, first, slots in other.places]
    room = Room(torch.full((1000,), 511, dtype=torch.int32, device=DEVICE), parts=4)
    work = work_of(first.places, layer.of(dtype), DEVICE, room)
    assert work.slots is room.slots
    for places in (moved, first.places):
        work.refill(places)
        assert torch.equal(run_work(layer, first, work), run(layer, first, places))
    with pytest.raises(ValueError, match="the same blocks"):
        work.refill(moved[1:])
    with pytest.raises(ValueError, match="slots in room for 10"):
        work_of(first.places, layer.of(dtype), DEVICE, Room(room.slots[:10], parts=4))
    with pytest.raises(ValueError, match="without room"):
        work_of(first.places, layer.of(dtype), DEVICE).refill(first.places)


PACKED = [architecture.name for architecture in ARCHITECTURES if architecture.packs]
WIDE, HALF, OTHER_HALF = "float32", "bfloat16", "float16"
FAMILIES = [("gpt-oss", WIDE)]
"""Windows, sinks and grouped queries: an interpreter is slow."""
if DEVICE.type == "cuda":
    FAMILIES = [(name, WIDE) for name in PACKED]
    FAMILIES += [(name, HALF) for name in ("llama", "gemma2", "gpt-oss", "deepseek-v3", "gpt2")]
    FAMILIES += [("qwen3-moe", HALF), ("llama", OTHER_HALF)]


@dataclass(frozen=True)
class Pair:
    loaded: LoadedModel
    network: Any
    """transformers' own, in the same type."""
    exact: Any
    """The same weights in float32 arithmetic."""

    def check(self, prompt: list[int], part: list[int], found: npt.ArrayLike) -> None:
        """Log-probs of a completion: float32's to 1e-4; in half precision as good as transformers'.

        Twice its mean error, since where experts are chosen a rounding decides who errs most.
        """
        mine = np.asarray(found, dtype=np.float64)
        theirs, exact = (
            plain.log_softmax(plain.row_logits(network, prompt, part)[:-1])[
                np.arange(len(part)), part
            ]
            for network in (self.network, self.exact)
        )
        if self.loaded.info.dtype == WIDE:
            np.testing.assert_allclose(mine, exact, atol=1e-4)
        else:
            assert abs(mine - exact).mean() <= 2 * abs(theirs - exact).mean() + 0.01


@pytest.fixture(scope="module", params=FAMILIES)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    name, dtype = request.param
    folder = save_model(BY_NAME[name], tmp_path_factory.mktemp(name))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "attends_by_triton", lambda _device: True)
        network = plain.load(folder, getattr(torch, dtype))
        exact = network if dtype == WIDE else copy.deepcopy(network).float()
        yield Pair(load_here(folder, dtype), network, exact)


def load_here(folder: Path, dtype: str = WIDE) -> LoadedModel:
    config = EngineConfig(
        str(folder), device=DEVICE.type, dtype=dtype, cpu_kernels="off", chunk_size=16,
        memory_utilization=0.05 if DEVICE.type == "cuda" else None,
    )  # fmt: skip
    return load(config, lambda _stage: None)


def test_the_probe_accepts_it(pair: Pair) -> None:
    """It compares the kernel with the model's own attention, in every layer."""
    assert pair.loaded.info.packed
    assert pair.loaded.model.attends_by_triton, pair.loaded.info.path_reason


def test_scores(pair: Pair) -> None:
    """Two completions of one prompt, across seams: plain transformers' numbers."""
    ids = np.random.default_rng(0).integers(0, VOCAB, size=40).tolist()
    prompt, parts = ids[:20], [ids[20:], ids[5:25]]
    launched = set[Variant]()
    with recorded(launched):
        found = score(pair.loaded, groups([(prompt, parts)]))
    assert {name for name, _ in launched} >= {"write_kv_rows", "packed_attention"}
    for index, part in enumerate(parts):
        pair.check(prompt, part, found[0, index].logprobs)


def test_scores_and_samples_after_chains_that_are_cut(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments, a completion's single tokens, and samples, after parts of 32 tokens."""
    monkeypatch.setattr(key_parts, "KEY_PARTS", KeyParts(few=32, many=32))
    ids = np.random.default_rng(1).integers(0, VOCAB, size=60).tolist()
    prompt, parts = ids[:41], [ids[41:], ids[7:8]]
    launched = set[Variant]()
    with recorded(launched):
        found = score(pair.loaded, groups([(prompt, parts)]))
        answer = sample(
            pair.loaded, prompt, seed=5, max_tokens=9, ignore_eos=True, processing=Processing()
        )
    assert "join_parts" in {name for name, _ in launched}
    for index, part in enumerate(parts):
        pair.check(prompt, part, found[0, index].logprobs)
    pair.check(prompt, answer[0, 0].token_ids, answer[0, 0].logprobs)


def test_samples(pair: Pair) -> None:
    """Past windows and seams, token by token."""
    prompt = [3, 14, 15, 92, 65]
    answer = sample(
        pair.loaded, prompt, seed=5, max_tokens=13, ignore_eos=True, processing=Processing()
    )
    drawn = answer[0, 0]
    pair.check(prompt, drawn.token_ids, drawn.logprobs)


def test_the_probe_looks_at_the_models_own_type(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A kernel that is right in float32 and errs in bfloat16, in a segment's second block only."""
    monkeypatch.setattr(dispatch, "attends_by_triton", lambda _device: True)

    def errs(queries: Tensor, *arguments: Any) -> None:
        output_T = arguments[-1]
        if queries.dtype == torch.float32:
            attend(queries, *arguments)
            return
        _attend_in_float32(queries, *arguments)
        if len(output_T) > 2 * MANY_QUERIES:
            output_T[MANY_QUERIES : MANY_QUERIES + 2] *= 1.05

    monkeypatch.setattr(triton_attention, "attend", errs)
    llama = BY_NAME["llama"]
    longer = replace(llama, settings={**llama.settings, "max_position_embeddings": 256})
    loaded = load_here(save_model(longer, tmp_path), HALF)
    assert not loaded.model.attends_by_triton
    reason = "without the Triton kernel: the attention of its layer 0"
    assert reason in loaded.info.path_reason


def _attend_in_float32(queries: Tensor, keys: Tensor, values: Tensor, *rest: Any) -> None:
    """One chain as one sequence, by torch: an interpreter is slow."""
    *_, output_T = rest
    group = queries.shape[0] // keys.shape[0]
    wide = [t.float() for t in (queries, *(t.repeat_interleave(group, 0) for t in (keys, values)))]
    attended = torch.nn.functional.scaled_dot_product_attention(*wide, is_causal=True)
    output_T.copy_(attended.transpose(0, 1))


def test_without_it_where_it_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A device that refuses the kernel still packs, and says why it does so without."""
    monkeypatch.setattr(dispatch, "attends_by_triton", lambda _device: True)

    def refuse(*_args: object) -> None:
        raise RuntimeError("out of resource: shared memory")

    monkeypatch.setattr(packed_attention, "_attend_by_triton", refuse)
    loaded = load_here(save_model(BY_NAME["llama"], tmp_path))
    assert loaded.info.packed
    assert not loaded.model.attends_by_triton
    assert "out of resource: shared memory" in loaded.info.path_reason
