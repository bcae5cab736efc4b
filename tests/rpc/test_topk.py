"""TopKLogprobs against plain transformers: lists, tails, limits, message sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from scoring_client.proto import processing_pb2, score_pb2, tensor_pb2, topk_pb2
from tests.rpc.calls import array, collect, group
from tests.rpc.conftest import PlainModel, RunningServer

PROMPT = [0, 300, 17, 1200, 45]
COMPLETION = [5, 9, 700, 700, 3, 1999]
GRPC_DEFAULT_LIMIT = 4 << 20


async def top_k_one(server: RunningServer, **fields: Any) -> topk_pb2.TopKResult:
    """The only slice of one completion."""
    request = topk_pb2.TopKLogprobsRequest(groups=[group(PROMPT, COMPLETION)], **fields)
    messages = await collect(server.stub.TopKLogprobs(request))
    (result,) = [result for message in messages for result in message.results]
    return result


@pytest.mark.parametrize("k", [1, 7, 1024, 2048])
@pytest.mark.parametrize("encoding", [tensor_pb2.ENCODING_NUMBERS, tensor_pb2.ENCODING_BYTES])
async def test_lists_are_those_of_plain_transformers(
    server: RunningServer, plain: PlainModel, k: int, encoding: tensor_pb2.Encoding
) -> None:
    result = await top_k_one(server, k=k, encoding=encoding)
    logprobs = torch.log_softmax(plain.logits(PROMPT, COMPLETION)[:-1], dim=1)
    ids, values = array(result.top_token_ids), array(result.top_logprobs)
    assert ids.shape == values.shape == (len(COMPLETION), k)
    expected, expected_ids = logprobs.sort(dim=1, descending=True)
    np.testing.assert_allclose(values, expected[:, :k], atol=1e-4)
    gaps = (expected[:, :-1] - expected[:, 1:]).numpy()
    clear = np.pad(gaps, ((0, 0), (0, 1)), constant_values=1)[:, :k] > 1e-4
    clear &= np.pad(gaps, ((0, 0), (1, 0)), constant_values=1)[:, :k] > 1e-4
    assert (ids == expected_ids[:, :k].numpy())[clear].all()
    tail = expected[:, k:].exp().sum(dim=1)
    np.testing.assert_allclose(np.exp(result.log_tail_masses), tail, rtol=2e-4, atol=1e-12)
    assert list(result.support_sizes) == [2048] * len(COMPLETION)
    realised = logprobs[torch.arange(len(COMPLETION)), COMPLETION]
    np.testing.assert_allclose(result.score.logprobs, realised, atol=1e-4)


async def test_the_list_ignores_truncation_and_the_support_size_does_not(
    server: RunningServer, plain: PlainModel
) -> None:
    processing = processing_pb2.LogitsProcessing(temperature=0.7, top_k=5)
    result = await top_k_one(server, k=9, processing=processing)
    expected = torch.log_softmax(plain.logits(PROMPT, COMPLETION)[:-1] / 0.7, dim=1)
    values = expected.topk(9, dim=1).values
    np.testing.assert_allclose(array(result.top_logprobs), values, atol=1e-4)
    assert list(result.support_sizes) == [5] * len(COMPLETION)


async def test_ids_beyond_the_limit_are_tail(server: RunningServer, plain: PlainModel) -> None:
    outputs = score_pb2.RowOutputs(rank=True)
    result = await top_k_one(server, k=10, token_id_limit=1000, outputs=outputs)
    ids, values = array(result.top_token_ids), array(result.top_logprobs)
    logprobs = torch.log_softmax(plain.logits(PROMPT, COMPLETION)[:-1], dim=1)
    np.testing.assert_allclose(values, logprobs[:, :1000].topk(10, dim=1).values, atol=1e-4)
    assert ids.max() < 1000
    masses = np.exp(values).sum(axis=1) + np.exp(result.log_tail_masses)
    np.testing.assert_allclose(masses, 1.0, atol=1e-5)
    realised = logprobs[torch.arange(len(COMPLETION)), COMPLETION]
    expected = 1 + (logprobs[:, :1000] > realised[:, None]).sum(dim=1)
    expected[torch.tensor(COMPLETION) >= 1000] = 0
    assert list(result.score.ranks) == expected.tolist()


async def test_next_token_alone_and_strings(server: RunningServer, plain: PlainModel) -> None:
    request = topk_pb2.TopKLogprobsRequest(
        groups=[group("import numpy", " as")],
        k=3,
        next_token=True,
        outputs=score_pb2.RowOutputs(tokens=True),
    )
    messages = await collect(server.stub.TopKLogprobs(request))
    (result,) = [result for message in messages for result in message.results]
    ids = array(result.top_token_ids)
    assert ids.shape == (2, 3)
    assert list(result.score.tokens) == [" as"]
    strings = np.array(result.top_tokens).reshape(2, 3)
    assert strings[1, 0] == " np"
    assert [plain.tokenizer.decode([i]) for i in ids.ravel()] == list(result.top_tokens)


async def test_a_long_answer_comes_in_messages_of_about_a_mebibyte(server: RunningServer) -> None:
    rng = np.random.default_rng(0)
    completion = rng.integers(0, 2048, 1000).tolist()
    for encoding in (tensor_pb2.ENCODING_BYTES, tensor_pb2.ENCODING_NUMBERS):
        request = topk_pb2.TopKLogprobsRequest(
            groups=[group(PROMPT, completion)], k=1024, encoding=encoding
        )
        messages = await collect(server.stub.TopKLogprobs(request))
        sizes = [message.ByteSize() for message in messages]
        assert sum(sizes) > GRPC_DEFAULT_LIMIT, "the answer would not fit one message"
        assert max(sizes) <= 1.1 * 2**20
        slices = [result for message in messages for result in message.results]
        starts = [piece.score.start for piece in slices]
        ends = [piece.score.start + piece.score.row_count for piece in slices]
        assert starts == [0, *ends[:-1]]
        assert ends[-1] == 1000
        assert [piece.score.last for piece in slices] == [False] * (len(slices) - 1) + [True]
