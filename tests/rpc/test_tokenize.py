"""Token ids of texts: those that prompts get, and nothing computed for them."""

from __future__ import annotations

import asyncio
import threading

import grpc
import pytest
from transformers import AutoTokenizer

from scoring_client.proto import model_info_pb2, score_pb2, tokenize_pb2
from scoring_service.engine.text.tokenizer import TextCodec
from scoring_service.models import tiny_model_path
from tests.rpc.calls import collect, failure, group, violations
from tests.rpc.conftest import RunningServer

TEXTS = ["import numpy as np", " np", "", "\x00 ü 漢 🙂", "for i in range(10):\n    pass\n" * 2000]


@pytest.mark.parametrize("special", [None, True, False])
async def test_ids_are_the_tokenizers_own(server: RunningServer, special: bool | None) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path())
    request = tokenize_pb2.TokenizeRequest(texts=TEXTS, add_special_tokens=special)
    response = await server.stub.Tokenize(request)
    expected = [tokenizer.encode(text, add_special_tokens=special is not False) for text in TEXTS]
    assert [list(text.token_ids) for text in response.texts] == expected
    info = await server.stub.GetModelInfo(model_info_pb2.GetModelInfoRequest())
    assert response.tokenizer_digest == info.tokenizer_digest
    assert len(expected[-1]) > info.limits.max_sequence_tokens, "a text of any length"


async def test_a_prompts_ids_are_the_same(server: RunningServer) -> None:
    request = group([1], [4, 5])
    request.prompt.Clear()
    request.prompt.text = TEXTS[0]
    messages = await collect(server.stub.Score(score_pb2.ScoreRequest(groups=[request])))
    (result,) = [result for message in messages for result in message.results]
    response = await server.stub.Tokenize(tokenize_pb2.TokenizeRequest(texts=TEXTS[:1]))
    assert list(response.texts[0].token_ids) == list(result.prompt_token_ids)


async def test_what_is_refused(server: RunningServer) -> None:
    for texts, said in (([], "is empty"), (["a"] * 65_537, "65537 texts in one call")):
        code, status = await failure(
            server.stub.Tokenize(tokenize_pb2.TokenizeRequest(texts=texts))
        )
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        ((path, description),) = violations(status)
        assert path == "texts"
        assert said in description
    request = tokenize_pb2.TokenizeRequest(texts=["a"], model="other")
    code, _ = await failure(server.stub.Tokenize(request))
    assert code is grpc.StatusCode.NOT_FOUND


async def test_long_texts_keep_nobody_from_scoring(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many of them come at once."""
    go_on = threading.Event()
    encode = TextCodec.encode

    def long(codec: TextCodec, text: str, *, add_special_tokens: bool) -> list[int]:
        go_on.wait(30)
        return encode(codec, text, add_special_tokens=add_special_tokens)

    monkeypatch.setattr(TextCodec, "encode", long)
    request = tokenize_pb2.TokenizeRequest(texts=["a"])
    tokenizing = [server.stub.Tokenize(request) for _ in range(64)]
    try:
        ids = score_pb2.ScoreRequest(groups=[group([1], [4, 5])])
        assert await asyncio.wait_for(collect(server.stub.Score(ids)), 20)
        assert not any(call.done() for call in tokenizing)
    finally:
        go_on.set()
    assert all([(await call).texts for call in tokenizing])
