"""Calls that there is no room for are refused before anything of them is read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from scoring_client.proto import context_pb2, sample_pb2, score_pb2, sequence_pb2
from scoring_service.models import tiny_model_path
from scoring_service.pool.settings import PoolSettings
from scoring_service.rpc.parsing.cost_bound import token_lower_bound
from scoring_service.types import EngineInfo
from tests.pool.scripted import INFO, ScriptedExecutor
from tests.rpc.calls import failure, group, reason
from tests.rpc.conftest import RunningServer, run_server

QUEUE = 1000
INFO_WITH_TEXT = EngineInfo(
    **{name: getattr(INFO, name) for name in INFO.__slots__}
    | {
        "tokenizer_json": (tiny_model_path() / "tokenizer.json").read_text(),
        "vocab_size": 2048,
    }
)


@asynccontextmanager
async def nearly_full() -> AsyncIterator[RunningServer]:
    """Half of the queue is taken: 440 tokens are left for this client."""
    settings = PoolSettings(max_queue_tokens=QUEUE)
    async with run_server(lambda _index: ScriptedExecutor(INFO_WITH_TEXT), settings) as server:
        held = server.stub.Score(score_pb2.ScoreRequest(groups=[group([1] * 250, [2] * 250)]))
        await held.read()
        assert server.pool.taken_tokens == 500
        yield server
        held.cancel()


def scores(*completions: list[int] | str, prompt: list[int] | str) -> score_pb2.ScoreRequest:
    return score_pb2.ScoreRequest(groups=[group(prompt, *completions)])


def samples(n: int, max_tokens: int) -> sample_pb2.SampleRequest:
    sampling = sample_pb2.SamplingParams(max_tokens=max_tokens)
    return sample_pb2.SampleRequest(
        prompts=[sample_pb2.SamplePrompt(token_ids=[1])], n=n, sampling=sampling
    )


LARGE = {
    "ids": ("Score", scores([2] * 100, [3] * 100, [4] * 100, prompt=[1] * 100)),
    "many": ("Score", scores(*[[2]] * 250, prompt=[1])),
    "text": ("Score", scores("of a text " * 200, prompt=[1])),
    "prompt": ("Score", scores([1], prompt="of a text " * 200)),
    "samples": ("Sample", samples(5, 100)),
}
SMALL = {
    "ids": ("Score", scores([2] * 100, [3] * 100, prompt=[1] * 100)),
    "text": ("Score", scores("of a text " * 20, prompt=[1])),
    "samples": ("Sample", samples(4, 100)),
    # What is too long is no part of the call: it fails by itself.
    "too long": ("Score", scores([2], [3] * 20_000, prompt=[1] * 100)),
}


def broken(request: Any) -> Any:
    """The request with a fault that is found when it is read."""
    found = type(request)()
    found.CopyFrom(request)
    found.context.CopyFrom(context_pb2.RequestContext(priority=10_000))
    return found


@pytest.mark.parametrize("what", LARGE)
async def test_a_call_without_room_is_refused_before_its_faults_are_seen(what: str) -> None:
    rpc, request = LARGE[what]
    async with nearly_full() as server:
        _, status = await failure(getattr(server.stub, rpc)(broken(request)))
        assert reason(status) == "QUEUE_FULL"


@pytest.mark.parametrize("what", SMALL)
async def test_a_call_with_room_is_read_and_let_in(what: str) -> None:
    rpc, request = SMALL[what]
    async with nearly_full() as server:
        _, status = await failure(getattr(server.stub, rpc)(broken(request)))
        assert reason(status) == "INVALID_FIELD"
        call = getattr(server.stub, rpc)(request)
        await call.read()
        assert server.pool.taken_tokens > 500
        call.cancel()


async def test_a_fault_of_an_item_costs_nothing() -> None:
    """A sequence of no tokens is no more than a fault, however full the queue."""
    empty = score_pb2.ScoreRequest(
        groups=[
            sequence_pb2.PromptGroup(
                prompt=sequence_pb2.TokenSequence(token_ids=[1]),
                completions=[sequence_pb2.Completion(text="")],
            )
        ]
    )
    async with nearly_full() as server:
        call = server.stub.Score(empty)
        messages = [message async for message in call]
    assert messages[-1].summary.items_failed == 1


async def test_who_has_to_go_elsewhere_is_not_told_to_wait_for_room() -> None:
    async with nearly_full() as server:
        server.pool.pause()
        _, status = await failure(server.stub.Score(LARGE["ids"][1]))
        assert reason(status) == "DRAINING"
        server.pool.resume()
        _, status = await failure(server.stub.Score(LARGE["ids"][1]))
        assert reason(status) == "QUEUE_FULL"


class Reader:
    """A tokenizer that counts what it is given."""

    def __init__(self) -> None:
        self.texts = self.characters = 0

    def token_lower_bound(self, text: str) -> int:
        self.texts += 1
        self.characters += len(text)
        return 1


@pytest.mark.parametrize(("texts", "characters"), [(60, 1 << 20), (4000, 15 << 10), (4000, 9)])
def test_little_is_read_of_a_request_however_its_texts_are_cut(texts: int, characters: int) -> None:
    request = scores(*["x" * characters] * texts, prompt=[1] * 3)
    reader = Reader()
    limits = SimpleNamespace(max_sequence_tokens=1 << 40)
    view: Any = SimpleNamespace(limits=limits, text=reader)
    # A prompt for each of them, and a token for each text that was read.
    assert token_lower_bound(request, view, enough=1 << 40) == 3 * texts + reader.texts
    assert 0 < reader.characters <= 1 << 20
    assert reader.texts <= 512
