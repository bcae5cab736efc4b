"""Score, as a trainer sees it, against plain transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scoring_client.proto import (
    processing_pb2,
    score_pb2,
    sequence_pb2,
    tensor_pb2,
)
from tests.rpc.calls import array, collect, group, reason, score_one, score_slices, violations
from tests.rpc.conftest import PlainModel, RunningServer

PROMPT = [0, 300, 17, 1200, 45]
COMPLETION = [5, 9, 700, 700, 3, 1999]


async def test_logprobs_are_those_of_plain_transformers(
    server: RunningServer, plain: PlainModel
) -> None:
    result = await score_one(
        server.stub, score_pb2.ScoreRequest(groups=[group(PROMPT, COMPLETION)])
    )
    expected = torch.log_softmax(plain.logits(PROMPT, COMPLETION)[:-1], dim=1)
    expected = expected[torch.arange(len(COMPLETION)), COMPLETION].numpy()
    np.testing.assert_allclose(result.logprobs, expected, atol=1e-4)
    assert (result.prompt_length, result.start, result.row_count) == (len(PROMPT), 0, 6)
    assert result.weight_version == 7


async def test_every_output_of_a_row(server: RunningServer, plain: PlainModel) -> None:
    outputs = score_pb2.RowOutputs(
        processed_logprobs=True,
        entropy=True,
        rank=True,
        logsumexp=True,
        log_kept_mass=True,
        token_ids=True,
        tokens=True,
    )
    likeliest = int(plain.logits(PROMPT, COMPLETION)[0].argmax())
    completion = [likeliest, *COMPLETION]
    processing = processing_pb2.LogitsProcessing(temperature=0.5, top_k=40)
    request = score_pb2.ScoreRequest(
        groups=[group(PROMPT, completion)], outputs=outputs, processing=processing
    )
    result = await score_one(server.stub, request)
    x = plain.logits(PROMPT, completion)[:-1] / 0.5
    logprobs = torch.log_softmax(x, dim=1)
    rows = torch.arange(len(completion))
    realised = logprobs[rows, completion]
    kth = x.topk(40, dim=1).values[:, -1:]
    inside = (x >= kth)[rows, completion]
    kept = torch.where(x >= kth, logprobs.exp(), 0.0).sum(dim=1).log()
    processed = torch.where(inside, realised - kept, -torch.inf)
    np.testing.assert_allclose(result.logprobs, realised, atol=1e-4)
    np.testing.assert_allclose(result.log_kept_masses, kept, atol=1e-4)
    np.testing.assert_allclose(result.processed_logprobs, processed, atol=1e-4)
    np.testing.assert_allclose(result.logsumexps, torch.logsumexp(x, dim=1), atol=1e-4)
    entropy = -(logprobs.exp() * logprobs).sum(dim=1)
    np.testing.assert_allclose(result.entropies, entropy, atol=1e-4)
    ranks = 1 + (x > x[rows, completion][:, None]).sum(dim=1)
    assert list(result.ranks) == ranks.tolist()
    assert list(result.token_ids) == completion
    assert len(result.tokens) == len(completion)
    assert inside.any(), "the case shows a token inside the support"
    assert not inside.all(), "the case shows a token outside the support"


async def test_keep_realised_makes_every_processed_logprob_finite(server: RunningServer) -> None:
    processing = processing_pb2.LogitsProcessing(top_k=1, keep_realised=True)
    request = score_pb2.ScoreRequest(
        groups=[group(PROMPT, COMPLETION)],
        processing=processing,
        outputs=score_pb2.RowOutputs(processed_logprobs=True, rank=True, log_kept_mass=True),
    )
    result = await score_one(server.stub, request)
    assert max(result.ranks) > 1, "some token is outside the support of top_k = 1"
    assert np.isfinite(result.processed_logprobs).all()
    expected = np.array(result.logprobs) - np.array(result.log_kept_masses)
    np.testing.assert_allclose(result.processed_logprobs, expected, atol=1e-5)


async def test_row_spans_answer_the_same_bits_as_all_rows(server: RunningServer) -> None:
    completion = list(range(100, 160))
    whole = await score_one(server.stub, score_pb2.ScoreRequest(groups=[group(PROMPT, completion)]))
    asked = group(PROMPT, completion)
    asked.completions[0].rows.add(start=3, length=4)
    asked.completions[0].rows.add(start=7, length=1)
    asked.completions[0].rows.add(start=50, length=10)
    request = score_pb2.ScoreRequest(groups=[asked], outputs=score_pb2.RowOutputs(token_ids=True))
    slices = score_slices(await collect(server.stub.Score(request)))[0, 0]
    assert [(s.start, s.row_count, s.last) for s in slices] == [(3, 5, False), (50, 10, True)]
    for piece in slices:
        rows = slice(piece.start, piece.start + piece.row_count)
        assert list(piece.logprobs) == list(whole.logprobs)[rows]
        assert list(piece.token_ids) == completion[rows]


async def test_next_token_row_has_no_realised_token(
    server: RunningServer, plain: PlainModel
) -> None:
    outputs = score_pb2.RowOutputs(entropy=True, rank=True, tokens=True)
    request = score_pb2.ScoreRequest(
        groups=[group(PROMPT, COMPLETION)], outputs=outputs, next_token=True
    )
    result = await score_one(server.stub, request)
    n = len(COMPLETION)
    assert result.row_count == n + 1
    assert len(result.entropies) == n + 1
    assert [len(a) for a in (result.logprobs, result.ranks, result.tokens)] == [n, n, n]
    last = torch.log_softmax(plain.logits(PROMPT, COMPLETION)[-1], dim=0)
    np.testing.assert_allclose(result.entropies[-1], -(last.exp() * last).sum(), atol=1e-4)


@pytest.mark.parametrize("encoding", [tensor_pb2.ENCODING_NUMBERS, tensor_pb2.ENCODING_BYTES])
async def test_candidates_per_row_and_for_all_rows(
    server: RunningServer, plain: PlainModel, encoding: tensor_pb2.Encoding
) -> None:
    per_row = np.array([[1, -1], [2, 3], [700, 4], [5, 5], [-1, -1], [1999, 0]], dtype=np.int32)
    asked = group(PROMPT, COMPLETION, COMPLETION)
    first, second = (c.candidate_token_ids for c in asked.completions)
    first.CopyFrom(tensor(per_row, as_bytes=True))
    second.CopyFrom(tensor(np.array([[9, 8, 7]], dtype=np.int32), as_bytes=False))
    request = score_pb2.ScoreRequest(groups=[asked], encoding=encoding)
    slices = score_slices(await collect(server.stub.Score(request)))
    logprobs = torch.log_softmax(plain.logits(PROMPT, COMPLETION)[:-1], dim=1).numpy()
    expected = np.take_along_axis(logprobs, np.maximum(per_row, 0), axis=1)
    expected[per_row < 0] = np.nan
    found = array(slices[0, 0][0].candidate_logprobs)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert bool(slices[0, 0][0].candidate_logprobs.data) == (encoding == tensor_pb2.ENCODING_BYTES)
    shared = array(slices[0, 1][0].candidate_logprobs)
    np.testing.assert_allclose(shared, logprobs[:, [9, 8, 7]], atol=1e-4)


async def test_text_is_tokenised_apart_with_special_tokens_on_the_prompt(
    server: RunningServer, plain: PlainModel
) -> None:
    request = score_pb2.ScoreRequest(
        groups=[group("import numpy as", " np", " banana")],
        outputs=score_pb2.RowOutputs(tokens=True),
    )
    slices = score_slices(await collect(server.stub.Score(request)))
    prompt = plain.tokenizer("import numpy as").input_ids
    assert prompt[0] == plain.tokenizer.bos_token_id
    totals = []
    for index, text in enumerate((" np", " banana")):
        ids = plain.tokenizer(text, add_special_tokens=False).input_ids
        (result,) = slices[0, index]
        assert list(result.token_ids) == ids
        assert "".join(result.tokens) == text
        assert result.prompt_length == len(prompt)
        assert list(result.prompt_token_ids) == prompt
        logprobs = torch.log_softmax(plain.logits(prompt, ids)[:-1], dim=1)
        expected = logprobs[torch.arange(len(ids)), ids]
        np.testing.assert_allclose(result.logprobs, expected, atol=1e-4)
        totals.append(sum(result.logprobs))
    assert totals[0] > totals[1] + 3


async def test_prompt_text_without_special_tokens(server: RunningServer, plain: PlainModel) -> None:
    asked = group("import numpy as", " np")
    asked.prompt.add_special_tokens = False
    result = await score_one(server.stub, score_pb2.ScoreRequest(groups=[asked]))
    assert result.prompt_length == len(plain.tokenizer.tokenize("import numpy as"))


async def test_a_group_overrides_the_request_field_by_field(server: RunningServer) -> None:
    own = processing_pb2.LogitsProcessing(temperature=2.0)
    request = score_pb2.ScoreRequest(
        groups=[group(PROMPT, COMPLETION), group(PROMPT, COMPLETION, processing=own)],
        processing=processing_pb2.LogitsProcessing(temperature=0.5, top_p=0.9),
    )
    messages = await collect(server.stub.Score(request))
    table = messages[0].processing
    slices = score_slices(messages)
    base, over = (table[slices[g, 0][0].processing_index] for g in (0, 1))
    source = processing_pb2
    assert base.temperature.value == 0.5
    assert base.temperature.source == source.PROCESSING_SOURCE_REQUEST
    assert over.temperature.value == 2.0
    assert over.temperature.source == source.PROCESSING_SOURCE_GROUP
    assert over.top_p.value == np.float32(0.9)
    assert over.top_p.source == source.PROCESSING_SOURCE_REQUEST
    assert over.top_k.source == source.PROCESSING_SOURCE_NEUTRAL
    alone = score_pb2.ScoreRequest(
        groups=[group(PROMPT, COMPLETION)],
        processing=processing_pb2.LogitsProcessing(temperature=2.0, top_p=0.9),
    )
    expected = await score_one(server.stub, alone)
    assert list(slices[1, 0][0].logprobs) == list(expected.logprobs)


async def test_one_bad_group_fails_alone(server: RunningServer) -> None:
    groups = [
        group(PROMPT, COMPLETION),
        group(PROMPT, COMPLETION, [1, 2048]),
        group([-1], COMPLETION),
        sequence_pb2.PromptGroup(prompt=sequence_pb2.TokenSequence(token_ids=[1])),
    ]
    messages = await collect(server.stub.Score(score_pb2.ScoreRequest(groups=groups)))
    slices = score_slices(messages)
    assert len(slices[0, 0][0].logprobs) == len(slices[1, 0][0].logprobs) == len(COMPLETION)
    status = slices[1, 1][0].status
    assert violations(status) == [
        ("groups[1].completions[1].token_ids[1]", "2048 ≥ vocabulary 2048")
    ]
    assert reason(status) == "INVALID_FIELD"
    whole = {
        r.group_index: r for m in messages for r in m.results if not r.HasField("completion_index")
    }
    assert violations(whole[2].status)[0] == ("groups[2].prompt.token_ids[0]", "-1 is negative")
    assert violations(whole[3].status)[0][0] == "groups[3].completions"
    summary = messages[-1].summary
    assert (summary.items_ok, summary.items_failed) == (2, 3)


async def test_summary_counts_what_was_computed(server: RunningServer) -> None:
    asked = group(PROMPT, COMPLETION, [1, 2])
    asked.completions[0].rows.add(start=0, length=2)
    messages = await collect(server.stub.Score(score_pb2.ScoreRequest(groups=[asked])))
    usage = messages[-1].summary.usage
    assert usage.prompt_tokens == len(PROMPT)
    assert usage.completion_tokens == len(COMPLETION) + 2
    assert usage.cached_tokens + usage.computed_tokens == len(PROMPT) + len(COMPLETION) + 2
    assert usage.head_rows == 4
    assert usage.compute_seconds > 0
    assert usage.reply_bytes == sum(m.ByteSize() for m in messages[:-1])


def tensor(values: np.ndarray, as_bytes: bool) -> tensor_pb2.Tensor:
    """An int32 tensor in either encoding."""
    made = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_INT32, shape=values.shape)
    if as_bytes:
        made.data = values.astype("<i4").tobytes()
    else:
        made.ints.extend(values.ravel().tolist())
    return made
