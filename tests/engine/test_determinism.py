"""Equal requests get equal bits: again, in other company, in another order."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers.activations import GELUTanh
from transformers.pytorch_utils import Conv1D

from scoring_service.engine.fused import prepacked
from scoring_service.engine.head.head import WholeLogits
from scoring_service.engine.head.tiles import ROW_MULTIPLE, tile_rows
from scoring_service.engine.loading import path
from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.engine.machine import processor
from scoring_service.engine.model import numerics
from scoring_service.engine.model.code import code_digest, digest_of
from scoring_service.engine.model.numerics import body_row_multiple, numerics_id, rows_are_invariant
from scoring_service.models import tiny_model_path
from scoring_service.types import Processing
from tests.engine.loading import load_model
from tests.engine.random_groups import random_groups
from tests.engine.sampling import run, task
from tests.engine.scoring import EVERYTHING, assert_same_bits, completion, group, score
from tests.engine.small_models import ARCHITECTURES, save_model
from tests.torch_threads import torch_threads

PROCESSING = Processing(temperature=0.9, top_k=60, top_p=0.95, min_p=0.001)
PAIRS = random_groups(np.random.default_rng(4), 8, 2048, 40, 120, 3)


@pytest.fixture(scope="module", params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Rows are shared out among threads, so their number may decide bits."""
    with torch_threads(request.param):
        yield request.param


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def loaded(request: pytest.FixtureRequest, threads: int) -> LoadedModel:
    loaded = load_model(tiny_model_path(), dtype=request.param, threads=threads)
    assert loaded.info.deterministic
    return loaded


def tasks_of(order: list[tuple[int, list[int]]]) -> list:
    """The groups and completions named, in this order."""
    return [
        group(
            PAIRS[g][0],
            [completion(PAIRS[g][1][c], index=c) for c in parts],
            PROCESSING,
            index=g,
        )
        for g, parts in order
    ]


EVERY = [(g, list(range(len(completions)))) for g, (_, completions) in enumerate(PAIRS)]


def test_twice_the_same(loaded: LoadedModel, threads: int) -> None:
    assert torch.get_num_threads() == threads
    first, second = (score(loaded, tasks_of(EVERY), EVERYTHING, next_token=True) for _ in range(2))
    for key in first.items:
        assert_same_bits(first[key], second[key])


def test_in_another_order(loaded: LoadedModel) -> None:
    straight = score(loaded, tasks_of(EVERY), EVERYTHING, next_token=True)
    shuffled = [(g, random.Random(g).sample(parts, len(parts))) for g, parts in EVERY]
    random.Random(1).shuffle(shuffled)
    turned = score(loaded, tasks_of(shuffled), EVERYTHING, next_token=True)
    assert set(turned.items) == set(straight.items)
    for key in straight.items:
        assert_same_bits(straight[key], turned[key])


def test_alone_as_in_company(loaded: LoadedModel) -> None:
    together = score(loaded, tasks_of(EVERY), EVERYTHING, next_token=True)
    for g, parts in EVERY[:6]:
        for c in parts:
            alone = score(loaded, tasks_of([(g, [c])]), EVERYTHING, next_token=True)
            assert_same_bits(alone[g, c], together[g, c])


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 9, 10, 11, 15, 17, 31, 255, 257])
def test_awkward_numbers_of_rows(loaded: LoadedModel, rows: int) -> None:
    """The counts at which the bits of a product's last rows were seen to differ."""
    prompt, ids = [1, 2, 3], np.random.default_rng(rows).integers(0, 2048, size=280).tolist()
    whole = score(loaded, [group(prompt, [completion(ids)])], EVERYTHING)[0, 0]
    for start in (0, 280 - rows):
        tasks = [group(prompt, [completion(ids, ((start, rows),))])]
        part = score(loaded, tasks, EVERYTHING)[0, 0]
        assert_same_bits(part, whole, range(start, start + rows))


def test_samples(loaded: LoadedModel) -> None:
    prompts = [
        task(
            PAIRS[g][0],
            n=2,
            seed=g,
            index=g,
            max_tokens=6,
            processing=Processing(),
            ignore_eos=True,
        )
        for g in range(4)
    ]
    straight, turned = run(loaded, prompts), run(loaded, prompts[::-1])
    assert {key: drawn.bits for key, drawn in straight.items.items()} == {
        key: drawn.bits for key, drawn in turned.items.items()
    }


class UnevenHead:
    """Logits that depend on how many rows are asked for at once."""

    vocab_size = 97
    dtype = torch.float32

    def __init__(self, differs: bool) -> None:
        self.differs = differs

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        return states + (1e-7 * (len(states) % ROW_MULTIPLE) if self.differs else 0)


@pytest.mark.parametrize("differs", [False, True])
def test_the_probe_notices(differs: bool) -> None:
    states = torch.rand(24, 97) * 1e-3
    assert rows_are_invariant(UnevenHead(differs), states) == (not differs)


FULL = tile_rows(97, 4)


@pytest.mark.parametrize("height", [1, 16, 17, 32, FULL - 16, FULL])
def test_the_probe_covers_tiles_of_every_kind(height: int) -> None:
    """The least, ragged ones, and the tallest, each off alone."""

    class OneHeight(UnevenHead):
        def logits(self, states: torch.Tensor) -> torch.Tensor:
            return states + (1e-7 if len(states) == height else 0)

    assert not rows_are_invariant(OneHeight(True), torch.rand(24, 97) * 1e-3)


class Body(nn.Module):
    """Two linear layers; the second may depend on how many rows it gets."""

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, differs_at: int = 0, extra: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8)
        self.extra = extra
        product = self.second.forward

        def uneven(rows: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = product(rows) + (1e-6 if len(rows) == differs_at else 0)
            return found

        self.second.__dict__["forward"] = uneven
        # The smallest fp32 products do depend on their height; exact numbers hide it.
        for layer in (self.first, self.second):
            nn.init.constant_(layer.weight, 0.0)
            nn.init.constant_(layer.bias, 0.5)

    def get_output_embeddings(self) -> None:
        return None


STEP = 1087


@pytest.mark.parametrize("height", [1, 2, 7, 16, 17, 33, 64, 128, 256, 512, STEP])
def test_steps_are_padded_where_one_height_differs(height: int) -> None:
    assert body_row_multiple(Body(), STEP) == 1
    assert body_row_multiple(Body(differs_at=height), STEP) == ROW_MULTIPLE


def test_products_of_another_kind_are_padded() -> None:
    assert body_row_multiple(Body(extra=Conv1D(8, 8)), STEP) == ROW_MULTIPLE
    assert body_row_multiple(Body(extra=nn.Embedding(8, 8)), STEP) == 1
    assert body_row_multiple(Body(extra=nn.LayerNorm(8)), STEP) == 1


@pytest.mark.parametrize(
    ("differs", "deterministic"),
    [
        (lambda rows: False, True),
        (lambda rows: rows == 128, False),
        (lambda rows: rows >= 1024, False),
        (lambda rows: rows % 16 == 15, True),
    ],
    ids=["nowhere", "at 128", "in full steps", "in ragged steps"],
)
def test_what_is_no_product_is_tried_in_tall_steps_too(
    differs: Callable[[int], bool],
    deterministic: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Up to the third of four layers, the first of its kind; what padding helps is padded."""
    gate = nn.GELU(approximate="tanh")

    def uneven(_: nn.Module, rows_T: torch.Tensor) -> torch.Tensor:
        return gate(rows_T) + (1e-3 if differs(rows_T.shape[-2]) else 0)

    gemma3 = next(a for a in ARCHITECTURES if a.name == "gemma3")
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    settings = {**gemma3.settings, "layer_types": kinds, "num_hidden_layers": len(kinds)}
    folder = save_model(replace(gemma3, settings=settings), tmp_path)
    monkeypatch.setattr(GELUTanh, "forward", uneven)
    monkeypatch.setattr(path, "body_row_multiple", lambda *_: 1)
    loaded = load_model(folder, dtype="float32")
    assert loaded.info.packed
    assert loaded.info.deterministic == deterministic


def test_whole_logits_promise_nothing() -> None:
    """Elsewhere tested to be used for odd heads; here only that rows come through as they are."""
    head = WholeLogits(5, torch.bfloat16)
    states = torch.arange(10, dtype=torch.bfloat16).reshape(2, 5)
    assert head.logits(states).dtype == torch.float32
    assert (head.logits(states) == states.float()).all()


def test_numerics_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything named decides, and not the thread that asks."""
    facts = {"digest": "d", "dtype": "float32", "device": "cpu", "threads": 2}
    same = numerics_id(**facts)
    assert numerics_id(**dict(reversed(facts.items()))) == same
    assert all(numerics_id(**{**facts, name: "other"}) != same for name in facts)
    gpu = {**facts, "device": "NVIDIA H200"}
    on_gpu = numerics_id(**gpu)
    with monkeypatch.context() as patch:
        patch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
        assert numerics_id(**facts) != same
        assert numerics_id(**gpu) == on_gpu
    with monkeypatch.context() as patch:
        patch.setattr(processor, "_cpuinfo", lambda: "model name : another\nflags : avx2 amx_bf16")
        assert numerics_id(**facts) != same
    with monkeypatch.context() as patch:
        # What stands between products is this package's own.
        patch.setattr(numerics, "code_digest", lambda: "another")
        assert numerics_id(**facts) != same
    with torch_threads(torch.get_num_threads() + 1):
        assert numerics_id(**facts) == same


def test_every_source_of_the_engine_and_its_kernels_is_code_that_computes(tmp_path: Path) -> None:
    folder = tmp_path / "code"
    (folder / "cpu").mkdir(parents=True)
    sources = [folder / "a.py", folder / "b.py", folder / "cpu" / "c.h", folder / "cpu" / "d.cpp"]
    for source in sources:
        source.write_text("one")
    same = digest_of([folder])
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "a.pyc").write_text("compiled")
    (folder / "notes.md").write_text("about it")
    assert digest_of([folder]) == same
    for source in sources:
        source.write_text("another")
        assert digest_of([folder]) != same
        source.write_text("one")
    sources[0].rename(folder / "z.py")
    assert digest_of([folder]) != same
    room = Path(numerics.__file__).parents[1]
    assert code_digest() == digest_of([room, room.parent / "kernels"])


def test_another_config_is_another_numerics_id(tmp_path: Path) -> None:
    """The same tensors say something else under it; in another folder they do not."""
    llama = next(a for a in ARCHITECTURES if a.name == "llama")
    turned = replace(llama, settings={**llama.settings, "rope_theta": 100.0})
    one, copy, other = (
        load_model(save_model(architecture, tmp_path / name)).info
        for name, architecture in (("one", llama), ("copy", llama), ("other", turned))
    )
    assert one.weights_digest == copy.weights_digest == other.weights_digest
    assert one.numerics_id == copy.numerics_id != other.numerics_id


def test_memory_that_was_scarce_at_the_start_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without room for a second copy of its weights, in the kernels' layout."""
    roomy = load_model(tiny_model_path(), head_dtype="bfloat16")
    monkeypatch.setattr(prepacked, "free_memory", lambda _device: 0)
    scarce = load_model(tiny_model_path(), head_dtype="bfloat16")
    assert roomy.info.numerics_id == scarce.info.numerics_id
    tasks = tasks_of(EVERY)
    found, expected = (score(model, tasks, EVERYTHING, True) for model in (scarce, roomy))
    for key, scored in found.items.items():
        assert_same_bits(scored, expected[key])
