"""However an answer is cut and mixed, the caller gets every row once and in order."""

import dataclasses
import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring_client import Completion, CompletionTopK, PromptGroup, Sample, ScoringClient
from scoring_client.calls.assembly import SliceAssembler, WholeAssembler, join, without_first_rows
from scoring_client.calls.row_plan import ConsecutiveRows, ListedRows
from scoring_client.errors import ProtocolError, ResultChangedError
from tests.client.toy_server import ToyServer
from tests.client.truth import assert_sample, assert_scores


@pytest.fixture(scope="module")
def server():
    with ToyServer() as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with ScoringClient(server.target) as made:
        yield made


token_lists = st.lists(st.integers(0, 257), min_size=1, max_size=12)


@st.composite
def completions_with_rows(draw):
    tokens = draw(token_lists)
    mask = draw(st.none() | st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens)))
    return tokens, mask


groups_of_tokens = st.lists(
    st.tuples(token_lists, st.lists(completions_with_rows(), min_size=1, max_size=3)),
    min_size=1,
    max_size=3,
)


@settings(max_examples=60)
@given(
    groups=groups_of_tokens,
    seed=st.integers(0, 1 << 30),
    max_slice=st.integers(1, 6),
    numbers=st.booleans(),
    k=st.sampled_from([0, 1, 3]),
    next_token=st.booleans(),
)
def test_any_slicing_gives_the_same_answer(
    server, client, groups, seed, max_slice, numbers, k, next_token
):
    server.random, server.max_slice, server.numbers = random.Random(seed), max_slice, numbers
    asked = [
        PromptGroup(prompt, [Completion(tokens, rows=mask) for tokens, mask in completions])
        for prompt, completions in groups
    ]
    if k:
        results = client.topk_logprobs(asked, k, next_token=next_token)
    else:
        results = client.score(asked, next_token=next_token)
    assert [len(group) for group in results] == [len(completions) for _, completions in groups]
    for group, (prompt, completions) in zip(results, groups, strict=True):
        for scores, (tokens, mask) in zip(group, completions, strict=True):
            rows = None if mask is None else [i for i, wanted in enumerate(mask) if wanted]
            assert_scores(scores, prompt, tokens, rows=rows)
            assert (scores.next_token is not None) == next_token
            if scores.next_token is not None:
                assert scores.next_token.row == len(tokens)


@settings(max_examples=20)
@given(
    prompts=st.lists(token_lists, min_size=1, max_size=3),
    n=st.integers(1, 3),
    max_tokens=st.integers(1, 8),
    seed=st.integers(0, 1 << 30),
    max_slice=st.integers(1, 5),
)
def test_any_slicing_gives_the_same_samples(
    server, client, prompts, n, max_tokens, seed, max_slice
):
    server.random, server.max_slice = random.Random(seed), max_slice
    results = client.sample(prompts, n=n, max_tokens=max_tokens, return_text=True)
    assert [len(samples) for samples in results] == [n] * len(prompts)
    for prompt, samples in zip(prompts, results, strict=True):
        assert [sample.sample_index for sample in samples] == list(range(n))
        assert len({sample.seed for sample in samples}) == 1
        for sample in samples:
            assert_sample(sample, prompt, max_tokens)
            assert sample.text == "".join(chr(t) for t in sample.token_ids if t < 256)


def whole_topk(rows: int) -> CompletionTopK:
    rng = np.random.default_rng(rows)
    return CompletionTopK(
        group_index=0,
        completion_index=0,
        prompt_length=3,
        prompt_token_ids=None,
        rows=np.arange(rows, dtype=np.int32),
        token_ids=rng.integers(0, 99, rows, dtype=np.int32),
        logprobs=rng.normal(size=rows).astype(np.float32),
        tokens=tuple(f"t{i}" for i in range(rows)),
        processed_logprobs=None,
        log_kept_masses=rng.normal(size=rows).astype(np.float32),
        entropies=rng.normal(size=rows).astype(np.float32),
        ranks=None,
        logsumexps=None,
        candidate_logprobs=rng.normal(size=(rows, 2)).astype(np.float32),
        next_token=None,
        last=True,
        weight_version=5,
        processing=None,
        provenance=None,
        top_token_ids=rng.integers(0, 99, (rows, 4), dtype=np.int32),
        top_logprobs=rng.normal(size=(rows, 4)).astype(np.float32),
        log_tail_masses=rng.normal(size=rows).astype(np.float32),
        support_sizes=rng.integers(0, 99, rows, dtype=np.int32),
        top_tokens=tuple((f"a{i}", f"b{i}", f"c{i}", f"d{i}") for i in range(rows)),
    )


def whole_sample(tokens: int) -> Sample:
    rng = np.random.default_rng(tokens)
    ids = rng.integers(97, 123, tokens, dtype=np.int32)
    return Sample(
        prompt_index=0,
        sample_index=0,
        start=0,
        prompt_length=3,
        prompt_token_ids=None,
        token_ids=ids,
        logprobs=rng.normal(size=tokens).astype(np.float32),
        processed_logprobs=rng.normal(size=tokens).astype(np.float32),
        top_token_ids=None,
        top_logprobs=None,
        text="".join(map(chr, ids)),
        finish_reason="length",
        matched_stop=None,
        seed=1,
        weight_spans=(),
        last=True,
        processing=None,
        provenance=None,
    )


def cut(whole, edges):
    """Cut a whole result at row edges; the text of samples goes with its tokens."""
    parts = []
    count = len(whole.token_ids)
    bounds = [0, *sorted(edges), count]
    for start, stop in itertools.pairwise(bounds):
        part = without_first_rows(whole, start)
        values = {
            name: getattr(part, name)[: stop - start]
            for name in part.ROW_FIELDS
            if getattr(part, name) is not None
        }
        if isinstance(whole, Sample):
            values["text"] = whole.text[start:stop]
        parts.append(dataclasses.replace(part, **values, last=stop == count and start < stop))
    parts = [part for part in parts if len(part.token_ids)]
    return parts


def assert_same(a, b):
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            np.testing.assert_array_equal(x, y, err_msg=field.name)
            assert x.dtype == y.dtype, field.name
        else:
            assert x == y, field.name


wholes = st.builds(
    lambda make, n: make(n), st.sampled_from([whole_topk, whole_sample]), st.integers(1, 9)
)


@given(whole=wholes, data=st.data())
def test_join_undoes_any_cut(whole, data):
    edges = data.draw(st.lists(st.integers(0, len(whole.token_ids))))
    assert_same(join(cut(whole, edges)), whole)


def new_order(whole):
    return (
        ConsecutiveRows if isinstance(whole, Sample) else lambda: ListedRows([(0, len(whole.rows))])
    )


@given(whole=wholes, data=st.data())
def test_whole_assembler_starts_over_after_a_break(whole, data):
    edge_lists = st.lists(st.integers(0, len(whole.token_ids)))
    first, second = cut(whole, data.draw(edge_lists)), cut(whole, data.draw(edge_lists))
    assembler = WholeAssembler(new_order(whole))
    for part in first[: data.draw(st.integers(0, len(first) - 1))]:
        assert assembler.add(part) is None
    assembler.restart()
    given_out = [assembler.add(part) for part in second]
    assert given_out[:-1] == [None] * (len(second) - 1)
    assert_same(given_out[-1], whole)


@given(whole=wholes, data=st.data())
def test_slices_are_handed_on_once_however_often_the_stream_breaks(whole, data):
    edge_lists = st.lists(st.integers(0, len(whole.token_ids)))
    assembler = SliceAssembler(new_order(whole))
    given_out = []
    for _ in range(data.draw(st.integers(0, 3))):
        parts = cut(whole, data.draw(edge_lists))
        for part in parts[: data.draw(st.integers(0, len(parts) - 1))]:
            given_out.append(assembler.add(part))
        assembler.restart()
    given_out += [assembler.add(part) for part in cut(whole, data.draw(edge_lists))]
    fresh = [part for part in given_out if part is not None]
    assert [part.last for part in fresh] == [False] * (len(fresh) - 1) + [True]
    assert_same(join(fresh), whole)


def test_joined_arrays_belong_to_the_caller():
    whole = whole_topk(4)
    whole.top_logprobs.flags.writeable = False
    joined = join([whole])
    assert joined.top_logprobs.flags.writeable
    assert not np.shares_memory(joined.top_logprobs, whole.top_logprobs)


def break_after(whole, rows):
    assembler = SliceAssembler(new_order(whole))
    assembler.add(cut(whole, [rows])[0])
    assembler.restart()
    return assembler


def test_rows_of_other_weights_are_not_appended_to_rows_handed_on():
    whole = whole_topk(6)
    with pytest.raises(ResultChangedError, match="weight version 5; now it is 6"):
        break_after(whole, 2).add(dataclasses.replace(whole, weight_version=6))


def test_other_tokens_are_not_appended_to_tokens_handed_on():
    whole = whole_sample(6)
    other = whole.token_ids.copy()
    other[1] += 1
    with pytest.raises(ResultChangedError, match="2 tokens"):
        break_after(whole, 2).add(dataclasses.replace(whole, token_ids=other))


def test_a_sample_that_ends_before_what_was_handed_on_has_changed():
    whole = whole_sample(6)
    shorter = dataclasses.replace(cut(whole, [3])[0], last=True)
    with pytest.raises(ResultChangedError, match="4 tokens"):
        break_after(whole, 4).add(shorter)


@pytest.mark.parametrize(
    ("slices", "complaint"),
    [
        ([(1, 2)], "rows 1\\+2 came where 0\\+3 were due"),
        ([(0, 2), (1, 1)], "came where 2\\+1 were due"),
        ([(0, 4)], "came where 0\\+3"),
        ([(0, 3), (3, 2)], "came where 5\\+2"),
        ([(0, 3), (5, 2), (7, 1)], "after the last"),
    ],
)
def test_listed_rows_refuse_gaps_and_repeats(slices, complaint):
    order = ListedRows([(0, 3), (5, 2)])
    for start, count in slices[:-1]:
        order.take(start, count)
    with pytest.raises(ProtocolError, match=complaint):
        order.take(*slices[-1])


def test_listed_rows_refuse_an_early_end():
    order = ListedRows([(0, 3), (3, 1)])
    order.take(0, 2)
    with pytest.raises(ProtocolError, match="ended before rows 2\\+2"):
        order.finish()
    order.take(2, 2)
    order.finish()


def test_consecutive_rows_refuse_gaps_and_emptiness():
    order = ConsecutiveRows()
    with pytest.raises(ProtocolError, match="without a row"):
        order.finish()
    order.take(0, 2)
    with pytest.raises(ProtocolError, match="starts at 3 where 2"):
        order.take(3, 1)
