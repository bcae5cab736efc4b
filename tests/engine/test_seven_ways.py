"""The same bits in any company: random trees, lengths and budgets on small models, and SmolLM2.

`make soak ARGS=tests/engine/test_seven_ways.py` tries other trees each time, and many more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring_service.engine.loading.loader import LoadedModel
from tests.engine.loading import load_model
from tests.engine.scoring import Group
from tests.engine.seven_ways import SAME_BITS, WITHIN_ROUNDING, load_small, seven_ways
from tests.intensity import SOAK, short_or_long
from tests.torch_threads import torch_threads


@dataclass(frozen=True)
class Case:
    """A small model, and how it is run."""

    model: str
    dtype: str
    head_dtype: str = "float32"
    cpu_kernels: str = "auto"
    threads: int = 1

    def __str__(self) -> str:
        kernels = "" if self.cpu_kernels == "auto" else ", no kernels"
        return f"{self.model}, {self.dtype}, {self.head_dtype} head, {self.threads} thr{kernels}"


_THREADS = 2 if SOAK else 1
"""Of models so small that on busy cores threads do little but wait for each other."""

CASES = [
    Case("packaged", "float32", threads=_THREADS),
    Case("packaged", "bfloat16", "bfloat16", threads=_THREADS),
    Case("packaged", "bfloat16", "float32", "off"),
    Case("llama", "float32"),
    Case("llama", "bfloat16"),
    Case("gemma3", "float32"),
    Case("gemma3", "bfloat16", "bfloat16"),
    Case("gemma3", "float32", "float32", "off"),
]


def trees(vocab: int) -> st.SearchStrategy[list[Group]]:
    """Prompts with completions, lengths of 1 included; some prompts begin as others do."""

    def build(drawn: tuple[int, list[tuple[int, list[int], bool]]]) -> list[Group]:
        seed, shapes = drawn
        rng = np.random.default_rng(seed)
        found: list[Group] = []
        for length, completions, shares in shapes:
            prompt = rng.integers(0, vocab, length).tolist()
            if shares and found:
                prompt = (found[-1][0] + prompt)[:40]
            parts = [rng.integers(0, vocab, n).tolist() for n in completions]
            found.append((prompt, parts))
        return found

    lengths = st.integers(1, 40)
    completions = st.lists(st.integers(1, 22), min_size=1, max_size=4)
    group = st.tuples(lengths, completions, st.booleans())
    return st.tuples(st.integers(0, 999), st.lists(group, min_size=1, max_size=5)).map(build)


BUDGETS = st.tuples(st.just(32), st.just(100), st.integers(33, 600))


@pytest.fixture(scope="module", params=CASES, ids=str)
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LoadedModel]:
    case: Case = request.param
    found = load_small(
        case.model,
        tmp_path_factory.mktemp(case.model),
        case.dtype,
        case.cpu_kernels,
        head_dtype=case.head_dtype,
        threads=case.threads,
    )
    assert found.info.packed
    assert found.info.deterministic
    with torch_threads(case.threads):
        yield found


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_small("qwen3-moe", tmp_path_factory.mktemp("moe"), "float32")


@settings(max_examples=int(short_or_long(6, 200)))
@given(data=st.data())
def test_seven_ways_give_the_same_bits(loaded: LoadedModel, data: st.DataObject) -> None:
    pairs = data.draw(trees(loaded.info.vocab_size))
    seven_ways(loaded, pairs, SAME_BITS, data.draw(BUDGETS))


@settings(max_examples=int(short_or_long(4, 200)))
@given(data=st.data())
def test_experts_see_the_step_and_differ_by_rounding(
    experts: LoadedModel, data: st.DataObject
) -> None:
    pairs = data.draw(trees(experts.info.vocab_size))
    seven_ways(experts, pairs, WITHIN_ROUNDING, data.draw(BUDGETS))


@pytest.mark.smollm2
@pytest.mark.parametrize(
    ("dtype", "threads", "layers"),
    [("float32", 1, 2), ("float32", 2, 2), ("bfloat16", 1, 4), ("bfloat16", 2, 2)],
)
def test_seven_ways_on_a_real_model(
    smollm2_folder: Path, tmp_path: Path, dtype: str, threads: int, layers: int
) -> None:
    """More tokens than a full step has, whose products are taller than any of a small model.

    Each layer has products of the same shapes, so that the first ones of SmolLM2 say what all of
    its thirty do; `make soak` asks all of them every time.
    """
    folder = smollm2_folder if SOAK else first_layers(smollm2_folder, layers, tmp_path)
    loaded = load_model(folder, threads, dtype=dtype, head_dtype=dtype)
    assert loaded.info.deterministic
    rng = np.random.default_rng(3)

    def ids(n: int) -> list[int]:
        return rng.integers(0, 49152, n).tolist()

    shared = ids(330)
    pairs: list[Group] = [
        (shared, [ids(1), ids(20), ids(33)]),
        (shared + ids(150), [ids(12)]),
        (ids(1), [ids(40)]),
        (ids(300), [ids(60)]),
        (ids(257), [ids(5)]),
    ]
    with torch_threads(threads):
        seven_ways(loaded, pairs, SAME_BITS, (32, 100, 512) if threads == 1 or SOAK else (512,))


def first_layers(source: Path, layers: int, folder: Path) -> Path:
    """The same weights under a config that names fewer layers, whose others stay unread."""
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
    (folder / "model.safetensors").symlink_to(source / "model.safetensors")
    return folder
