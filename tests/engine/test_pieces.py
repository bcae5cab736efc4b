"""Segments that are computed in pieces beside samples: the same bits, fewer rows a step."""

from __future__ import annotations

import numpy as np
import pytest

from scoring_service.engine.events import SampleSlice, ScoreSlice
from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.engine.machine.page_budget import BESIDE_SAMPLES
from scoring_service.engine.packed.engine import PackedEngine
from scoring_service.engine.packed.planning.scheduler import PIECE_MULTIPLE
from scoring_service.engine.packed.steps.body import PackedBody, Step, StepStates
from scoring_service.models import tiny_model_path
from scoring_service.types import Processing, RowWants, SampleCall, ScoreCall
from tests.engine.driving import engine_of
from tests.engine.loading import load_model
from tests.engine.sampling import task
from tests.engine.scoring import Group, completion, group, groups
from tests.engine.small_models import ARCHITECTURES, save_model

BESIDE = BESIDE_SAMPLES["cpu"]

BY_NAME = {a.name: a for a in ARCHITECTURES}

Rows = dict[tuple[int, ...], bytes]
"""What was answered, by call, item, sample and which number it is."""


@pytest.fixture(
    scope="module",
    params=[(m, d) for m in ("packaged", "llama", "gemma3") for d in ("float32", "bfloat16")],
    ids="-".join,
)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    name, dtype = request.param
    folder = tmp_path_factory.mktemp(name)
    source = tiny_model_path() if name == "packaged" else save_model(BY_NAME[name], folder)
    return load_model(source, dtype=dtype)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """Those that engines run."""
    seen: list[Step] = []
    run = PackedBody.run

    def watched(body: PackedBody, step: Step) -> StepStates:
        seen.append(step)
        return run(body, step)

    monkeypatch.setattr(PackedBody, "run", watched)
    return seen


def cut(steps: list[Step]) -> int:
    """Pieces that are not whole segments."""
    pieces = [piece for step in steps for piece in step.pieces]
    return sum(piece.tokens < len(piece.segment.token_ids) for piece in pieces)


def score_call(call_id: int, pairs: list[Group]) -> ScoreCall:
    wants = RowWants(processed_logprobs=True, entropy=True, logsumexp=True, top_k=5)
    return ScoreCall(call_id, tuple(groups(pairs)), wants, next_token=True)


def sample_call(call_id: int, prompt: list[int], n: int, max_tokens: int) -> SampleCall:
    hot = Processing(temperature=1.3)
    of_one = task(prompt, n=n, seed=3, max_tokens=max_tokens, processing=hot, ignore_eos=True)
    return SampleCall(call_id, (of_one,), top_logprobs=3)


def rows_of(engine: PackedEngine, steps: int = 10_000, found: Rows | None = None) -> Rows:
    """What is answered within so many steps, after what was found before."""
    found = {} if found is None else found
    for _ in range(steps):
        if not engine.can_step:
            break
        for event in engine.step():
            if isinstance(event, ScoreSlice):
                key = event.call_id, event.group_index, event.completion_index
                block = event.block
                numbers = [block.logprobs, block.processed_logprobs, block.top_logprobs]
            elif isinstance(event, SampleSlice):
                key = event.call_id, event.prompt_index, event.sample_index
                numbers = [event.token_ids, event.logprobs, event.top_logprobs]
            else:
                continue
            engine.add_credit(event.call_id, event.size)
            for place, number in enumerate(numbers):
                assert number is not None
                found[*key, place] = found.get((*key, place), b"") + number.tobytes()
    return found


def ids(loaded: LoadedModel, seed: int, count: int) -> list[int]:
    found: list[int] = (
        np.random.default_rng(seed).integers(0, loaded.info.vocab_size, count).tolist()
    )
    return found


def test_the_same_bits_in_fewer_rows_a_step(loaded: LoadedModel, steps: list[Step]) -> None:
    assert loaded.packed is not None
    settings = loaded.packed.settings
    assert settings.cuts is not None
    assert settings.beside_samples == BESIDE
    shared = ids(loaded, 1, 70)
    first = score_call(1, [(shared, [ids(loaded, 2, 70), ids(loaded, 3, 1)])])
    second = score_call(2, [([*shared, 5], [ids(loaded, 4, 25)]), ([7], [ids(loaded, 5, 90)])])
    third = sample_call(3, shared + ids(loaded, 6, 40), n=2, max_tokens=8)
    alone = {}
    for call in (first, second, third):
        engine = engine_of(loaded)
        engine.submit(call)
        alone |= rows_of(engine)
    assert not cut(steps)

    engine = engine_of(loaded)
    engine.submit(sample_call(9, [4, 5], n=2, max_tokens=60))
    rows_of(engine, steps=3)
    steps.clear()
    for call in (first, second, third):
        engine.submit(call)
    beside = rows_of(engine)
    assert {key: found for key, found in beside.items() if key[0] != 9} == alone
    assert cut(steps) > 8
    assert max(sum(p.tokens for p in step.pieces) for step in steps) <= BESIDE
    engine.flush_cache()
    assert engine.free_pages == 400


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    return load_model(tiny_model_path(), dtype="float32")


@pytest.mark.parametrize("seed", range(4))
def test_any_trees_in_any_company(tiny: LoadedModel, steps: list[Step], seed: int) -> None:
    """Prompts that calls share, lengths around those that are not cut, calls that are left."""
    rng = np.random.default_rng(seed)
    stem = ids(tiny, seed, 130)
    calls = []
    for call_id in range(1, 9):
        prompt = stem[: rng.integers(1, 130)] + ids(tiny, call_id, rng.integers(0, 9))
        lengths = rng.choice([1, 2, 9, 25, 26, 63, 64, 65, 130], size=3)
        calls.append(score_call(call_id, [(prompt, [ids(tiny, n, n) for n in lengths])]))
    alone = {}
    for call in calls:
        engine = engine_of(tiny)
        engine.submit(call)
        alone |= rows_of(engine)

    engine = engine_of(tiny, pages=120)
    engine.submit(sample_call(90, [4, 5], n=3, max_tokens=300))
    beside = rows_of(engine, steps=2)
    steps.clear()
    for call in calls:
        left = score_call(call.call_id + 50, [(stem, [stem])])
        engine.submit(left)
        engine.submit(call)
        rows_of(engine, steps=int(rng.integers(1, 4)), found=beside)
        engine.cancel(left.call_id)
    rows_of(engine, found=beside)
    assert cut(steps) > 20
    assert {key: found for key, found in beside.items() if key[0] < 9} == alone
    engine.flush_cache()
    assert engine.free_pages == 120


FIRST_ROWS = ((0, 4),)


def few_rows(call_id: int, prompt: list[int], completion_ids: list[int]) -> ScoreCall:
    """The first rows of a completion, whose segment is computed in whole."""
    of_one = group(prompt, [completion(completion_ids, FIRST_ROWS)])
    wants = RowWants(processed_logprobs=True, entropy=True, logsumexp=True, top_k=5)
    return ScoreCall(call_id, (of_one,), wants)


def test_a_completion_that_is_answered_early_writes_nothing_into_others_pages(
    tiny: LoadedModel,
) -> None:
    """Its rows come from the first piece; the pages of its segment go to whoever comes next."""
    prompt = ids(tiny, 77, 32)
    engine = engine_of(tiny, pages=60)
    engine.submit(sample_call(2, prompt, n=1, max_tokens=12))
    alone = rows_of(engine)

    engine = engine_of(tiny, pages=60)
    engine.submit(sample_call(9, [4, 5], n=1, max_tokens=100))
    found = rows_of(engine, steps=3)
    engine.submit(few_rows(1, ids(tiny, 5, 1), ids(tiny, 6, 62)))
    rows_of(engine, 1, found)
    assert any(key[0] == 1 for key in found)
    engine.submit(sample_call(2, prompt, n=1, max_tokens=12))
    rows_of(engine, found=found)
    assert {key: value for key, value in found.items() if key[0] == 2} == alone
    # And what stays in the cache is right, too.
    engine.submit(sample_call(3, prompt, n=1, max_tokens=12))
    later = rows_of(engine)
    assert {(2, *key[1:]): value for key, value in later.items()} == alone
    engine.flush_cache()
    assert engine.free_pages == 60


@pytest.mark.parametrize("seed", range(4))
def test_those_that_are_answered_early_in_any_company(
    tiny: LoadedModel, steps: list[Step], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    calls: list[ScoreCall | SampleCall] = []
    for call_id in range(1, 41):
        prompt = ids(tiny, call_id, int(rng.integers(1, 90)))
        if call_id % 2:
            calls.append(few_rows(call_id, prompt[:2], ids(tiny, 100 + call_id, 62)))
        elif call_id % 4:
            calls.append(sample_call(call_id, prompt, n=1, max_tokens=6))
        else:
            calls.append(score_call(call_id, [(prompt, [ids(tiny, 200 + call_id, 20)])]))
    alone = {}
    for call in calls:
        engine = engine_of(tiny)
        engine.submit(call)
        alone |= rows_of(engine)

    engine = engine_of(tiny, pages=60)
    engine.submit(sample_call(90, [4, 5], n=2, max_tokens=400))
    beside = rows_of(engine, steps=3)
    steps.clear()
    for call in calls:
        engine.submit(call)
        rows_of(engine, steps=int(rng.integers(1, 3)), found=beside)
    rows_of(engine, found=beside)
    assert cut(steps) > 20
    assert {key: found for key, found in beside.items() if key[0] < 90} == alone
    engine.flush_cache()
    assert engine.free_pages == 60


def test_a_leaf_is_cut_only_where_pages_are_free(tiny: LoadedModel, steps: list[Step]) -> None:
    def largest(pages: int) -> int:
        engine = engine_of(tiny, pages=pages)
        engine.submit(sample_call(9, [4, 5], n=1, max_tokens=40))
        rows_of(engine, steps=3)
        steps.clear()
        engine.submit(score_call(1, [([7], [ids(tiny, 5, 62)])]))
        assert any(key[0] == 1 for key in rows_of(engine))
        return max(sum(piece.tokens for piece in step.pieces) for step in steps)

    of_leaf = (BESIDE - 1) // PIECE_MULTIPLE * PIECE_MULTIPLE
    assert largest(pages=40) == 1 + of_leaf  # behind the prompt
    assert largest(pages=6) == 62


def test_where_bits_would_differ_nothing_is_cut(
    monkeypatch: pytest.MonkeyPatch, steps: list[Step]
) -> None:
    monkeypatch.setattr(
        "scoring_service.engine.loading.path.is_chunk_split_invariant", lambda *_: False
    )
    loaded = load_model(tiny_model_path(), dtype="float32")
    assert loaded.packed is not None
    assert not loaded.packed.settings.cuts
    engine = engine_of(loaded)
    engine.submit(sample_call(9, [4, 5], n=1, max_tokens=20))
    rows_of(engine, steps=3)
    steps.clear()
    engine.submit(score_call(1, [([7], [ids(loaded, 5, 100)])]))
    rows_of(engine)
    assert not cut(steps)


def test_more_beside_samples_if_asked_for(steps: list[Step]) -> None:
    loaded = load_model(tiny_model_path(), dtype="float32", tokens_beside_samples=100)
    engine = engine_of(loaded)
    engine.submit(sample_call(9, [4, 5], n=1, max_tokens=20))
    rows_of(engine, steps=3)
    steps.clear()
    engine.submit(score_call(1, [([7], [ids(loaded, 5, 300)])]))
    rows_of(engine)
    assert 90 < max(sum(piece.tokens for piece in step.pieces) for step in steps) <= 100
