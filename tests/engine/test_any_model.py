"""Whatever model, whatever happens: every number is that of a plain forward.

Windows shorter than a chunk and longer, local and global layers, caps, sinks, latent attention,
experts; heads that are tied. See `random_company` for what happens to calls. What is rounded to
bfloat16 has the bits of each call alone.

`make soak ARGS=tests/engine/test_any_model.py` has many more of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch

from scoring_service.engine.events import SampleSlice, ScoreSlice
from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.engine.packed.engine import PackedEngine
from scoring_service.engine.packed.steps import head_jobs
from scoring_service.engine.weights.model_weights import ModelWeights
from scoring_service.engine.worker.service_loop import CallRunner, make_runner
from scoring_service.models import tiny_model_path
from scoring_service.types import (
    PAGE_TOKENS,
    Call,
    CompletionTask,
    GroupTask,
    SampleCall,
    ScoreCall,
)
from tests.engine import plain
from tests.engine.driving import engine_of
from tests.engine.expected import Truth
from tests.engine.loading import load_model
from tests.engine.other_weights import other_weights, plain_network
from tests.engine.poison import poison_token
from tests.engine.random_calls import RandomCalls
from tests.engine.random_company import Company, Job
from tests.engine.sampling import task
from tests.engine.small_models import ARCHITECTURES, save_model
from tests.intensity import short_or_long

_VERSIONS = 4


@dataclass(frozen=True)
class Case:
    """A small model, and how it is served."""

    model: str
    chunk: int
    kernels: str = "auto"
    settings: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    path: str = "auto"
    within: float = 2e-4

    def __str__(self) -> str:
        kernels = "" if self.kernels == "auto" else "-no kernels"
        return f"{self.model}-{self.chunk}-{self.dtype}{kernels}-{self.path}"


PACKAGED = "packaged"
_TIED = {"tie_word_embeddings": True}

CASES = [
    Case("gemma3", 32),
    Case("mistral", 16, settings={"sliding_window": 40}),
    Case("gemma2", 48, settings={"sliding_window": 20}),
    Case("gemma3", 16, "off"),
    Case("deepseek-v3", 32),
    Case("qwen3-moe", 16),
    Case("gpt-oss", 32, within=2e-3),
    Case("llama", 64, settings=_TIED),
    Case("llama", 32, "off", settings=_TIED),
    Case("gpt2", 16),
    # Keys of several blocks, rows of several tiles.
    Case("gemma3", 256, settings={"sliding_window": 300}),
    Case("gemma2", 256, "off", settings={"sliding_window": 300}),
    Case("qwen2-moe", 32, path="plain"),
    Case("gemma3", 32, path="plain"),
    Case(PACKAGED, 64),
    Case(PACKAGED, 32, dtype="bfloat16"),
    Case("gemma3", 16, dtype="bfloat16"),
]
"""The packaged model alone has a tokenizer."""


@dataclass(frozen=True)
class Served:
    """A model, and weights that it may come to have."""

    case: Case
    loaded: LoadedModel
    versions: list[ModelWeights]
    truth: Truth


@pytest.fixture(scope="module", params=CASES, ids=str)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    case: Case = request.param
    folder = tiny_model_path()
    if case.model != PACKAGED:
        (found,) = (a for a in ARCHITECTURES if a.name == case.model)
        length = "n_positions" if case.model == "gpt2" else "max_position_embeddings"
        settings = {**found.settings, length: 8 * max(64, case.chunk), **case.settings}
        folder = tmp_path_factory.mktemp(case.model)
        save_model(replace(found, settings=settings), folder)
    loaded = load_model(
        folder,
        dtype=case.dtype,
        chunk_size=case.chunk,
        cpu_kernels=case.kernels,
        path=case.path,
    )
    assert loaded.info.packed == (case.path == "auto")
    own = loaded.model.weights
    assert own is not None
    versions = [own, *(other_weights(loaded, version) for version in range(1, _VERSIONS))]
    network = plain.load(folder, torch.float32)
    networks = {weights.version: plain_network(network, weights) for weights in versions}
    return Served(case, loaded, versions, Truth(networks, case.within))


def pages_of(call: Call, chunk: int) -> int:
    """That it cannot do without, at most."""
    of_chunk = -(-chunk // PAGE_TOKENS)

    def pages(tokens: int) -> int:
        return tokens // chunk * of_chunk + -(-(tokens % chunk) // PAGE_TOKENS)

    if isinstance(call, SampleCall):
        return max(pages(len(t.prompt_ids)) + -(-t.max_tokens // PAGE_TOKENS) for t in call.prompts)
    return max(
        pages(len(g.prompt_ids)) + of_chunk + max(pages(len(c.token_ids)) for c in g.completions)
        for g in call.groups
    )


def random_calls(made: RandomCalls) -> list[Call]:
    """Some of them twice; a sample that others join comes first."""
    rng = made.rng
    long = task([4, 5], n=1, max_tokens=int(rng.integers(30, 150)), ignore_eos=True)
    calls: list[Call] = [SampleCall(1, (long,), priority=int(rng.integers(-1, 2)))]
    for call_id in range(2, int(rng.integers(8, 16))):
        again = len(calls) > 1 and rng.random() < 0.15
        calls.append(replace(calls[-1], call_id=call_id) if again else made.call(call_id))
    return calls


def make_engine(served: Served, calls: list[Call], rng: np.random.Generator) -> CallRunner:
    """Of pages that hardly suffice and steps of any size."""
    if served.loaded.packed is None:
        return make_runner(served.loaded, lambda _call, _error: None)
    needed = max(pages_of(call, served.case.chunk) for call in calls)
    return engine_of(
        served.loaded,
        pages=needed + int(rng.choice([0, 1, 4, 12, 40])),
        log_bug=lambda _call, _error: None,
        max_batch_tokens=int(rng.choice([32, 50, 100, 512])),
        max_samples=int(rng.choice([1, 2, 5, 256])),
        beside_samples=int(rng.choice([0, 8, 28, 100])),
    )


def breaks(
    group: GroupTask, completion: CompletionTask, next_token: bool, broken: int | None
) -> bool:
    """Whether a wanted row comes from the state of a token that has none."""
    before = [int(group.prompt_ids[-1]), *completion.token_ids.tolist()]
    wanted = [row for start, length in completion.spans for row in range(start, start + length)]
    wanted += [len(completion.token_ids)] * next_token
    return broken in [before[row] for row in wanted]


def check(served: Served, job: Job, rng: np.random.Generator, broken: int | None = None) -> int:
    """Numbers of one call that was answered; how many rows and faults it has."""
    call, rows = job.call, len(job.faults)
    if isinstance(call, ScoreCall):
        for group in call.groups:
            for completion in group.completions:
                fails = breaks(group, completion, call.next_token, broken)
                assert fails == ((group.index, completion.index) in job.faults)
                if fails:
                    continue
                slices = job.of(group.index, completion.index)
                rows += served.truth.check_completion(call, group, completion, slices)
        return rows
    eos_ids = served.loaded.info.eos_token_ids
    for of_one in call.prompts:
        for index in of_one.sample_indices:
            slices = job.of(of_one.index, index)
            before = [of_one.prompt_ids[-1:], *(piece.token_ids for piece in slices)]
            if (of_one.index, index) in job.faults:
                assert not any(piece.last for piece in slices)
                continue
            assert broken not in np.concatenate(before)[:-1]
            rows += served.truth.check_sample(call, of_one, index, slices, eos_ids, rng)
    return rows


def numbers(slices: list[Any]) -> dict[str, bytes]:
    """All arrays of a call's slices, by item and name."""
    found: dict[str, bytes] = {}
    for piece in slices:
        if isinstance(piece, ScoreSlice):
            item, arrays = (piece.group_index, piece.completion_index), piece.block
        else:
            item, arrays = (piece.prompt_index, piece.sample_index), piece
        for name in arrays.__slots__:
            value = getattr(arrays, name)
            more = value.encode() if name == "text" else b""
            more = value.tobytes() if isinstance(value, np.ndarray) else more
            found[f"{item} {name}"] = found.get(f"{item} {name}", b"") + more
        if isinstance(piece, SampleSlice):
            found[f"{item} end"] = f"{piece.finish_reason} {piece.matched_stop}".encode()
    return found


def alone(served: Served, job: Job) -> dict[str, bytes]:
    """What the engine says of a call when there is no other."""
    packed = served.loaded.packed is not None
    engine = engine_of(served.loaded) if packed else make_runner(served.loaded, lambda *_: None)
    engine.submit(job.call, job.weights)
    slices = []
    while engine.can_step:
        for event in engine.step():
            if isinstance(event, ScoreSlice | SampleSlice):
                engine.add_credit(event.call_id, event.size)
                slices.append(event)
    return numbers(slices)


@pytest.mark.parametrize("seed", range(int(short_or_long(1, 100))))
def test_every_number_is_that_of_a_plain_forward(
    served: Served, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = served.case
    has_texts = case.model == PACKAGED
    made = RandomCalls(
        1000 * CASES.index(case) + seed, served.loaded.info.vocab_size, case.chunk, has_texts
    )
    rng = made.rng
    if rng.random() < 0.5:
        # As of large vocabularies.
        monkeypatch.setattr(head_jobs, "tile_rows", lambda *_: 32)
        monkeypatch.setattr(head_jobs, "block_rows", lambda *_: 5)
    broken = None
    if case.path == "auto" and rng.random() < 0.3:
        # The rows that come from one token are no distributions.
        broken = int(rng.integers(served.loaded.info.vocab_size))
        poison_token(served.loaded, broken, monkeypatch)
    calls = random_calls(made)
    company = Company(rng, lambda: make_engine(served, calls, rng), served.versions)
    company.run(calls)
    assert len(company.jobs) == len(calls)
    answered = [job for job in company.jobs if job.end == "answered"]
    exact = case.dtype == "float32"
    for job in answered if exact else []:
        assert check(served, job, rng, broken), "nothing was asked"
    if served.loaded.info.deterministic:
        for job in answered:
            of_one = {piece.weight_version for piece in job.slices} == {job.weights.version}
            of_one = of_one and not job.faults
            if of_one and (has_texts or not exact or rng.random() < 0.2):
                call = replace(job.call, deadline=float("inf"))
                assert numbers(job.slices) == alone(served, replace(job, call=call))
    served.truth.forget()
    for engine in company.engines:
        if not isinstance(engine, PackedEngine):
            continue
        engine.flush_cache()
        assert engine.free_pages == engine._store.pages
        assert engine._room.free == engine._store.pages
        assert engine._room._held_by_samples == 0
        assert engine._room._longest == 0
        assert engine._room._shared == 0
