"""Messages of an answer stay small, whatever their results carry beside arrays."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from google.rpc import status_pb2

from scoring_client.proto import score_pb2
from scoring_service.engine.events import CallFinished, ItemFailed, ScoreSlice
from scoring_service.errors import Fault, Reason
from scoring_service.rpc.answers.answer import (
    AT_ONCE_BYTES,
    MESSAGE_BYTES,
    RESULT_BYTES,
    Answer,
)
from scoring_service.rpc.answers.rendering import Rendering
from scoring_service.rpc.answers.results import failed_score, score_result, written_bytes
from scoring_service.rpc.handling.reply_bytes import ReplyBytes
from scoring_service.rpc.parsing.processing import ProcessingTable
from scoring_service.rpc.parsing.score import ItemFault, ParsedScore
from scoring_service.types import RowBlock, RowWants, Usage
from tests.rpc.calls import collect, group
from tests.rpc.conftest import RunningServer

AS_BYTES = partial(written_bytes, as_bytes=True)
AS_NUMBERS = partial(written_bytes, as_bytes=False)


class _Stream:
    """Events that are there already."""

    tokens_ahead = 0

    def __init__(self, events: list[Any]) -> None:
        self._events = events
        self.read = 0

    async def next(self, _patience: float) -> Any:
        return self._events.pop(0)

    def next_nowait(self) -> Any:
        return self._events.pop(0) if self._events else None

    def taken(self, size: int) -> None:
        self.read += size


async def test_a_long_prompt_that_is_sent_back_with_each_completion_fills_messages_too() -> None:
    """4,000 ids of a text prompt under each of 300 completions of 8 rows."""
    prompt = np.full(4000, 40_000, dtype=np.int32)
    parsed = ParsedScore(ProcessingTable(), 300, RowWants(), prompts={0: prompt})
    events: list[Any] = [
        ScoreSlice(1, 0, i, 0, 4000, 0, RowBlock(8, np.zeros(8, np.float32)), True, 1, 32)
        for i in range(300)
    ]
    stream: Any = _Stream([*events, CallFinished(1, Usage())])
    render = partial(score_result, parsed=parsed, codec=None, as_bytes=True)
    unused: Any = None
    rendering = Rendering(score_pb2.ScoreResponse, render, unused, unused, AS_BYTES)
    answer = Answer(rendering, 300, 15.0, ReplyBytes())
    messages = [message async for message in answer.results(stream)]
    assert [r.completion_index for m in messages for r in m.results] == list(range(300))
    assert all(list(r.prompt_token_ids) == prompt.tolist() for m in messages for r in m.results)
    assert all(m.ByteSize() < 2 * MESSAGE_BYTES for m in messages)
    assert stream.read == 300 * 32


async def test_messages_are_serialised_by_grpc_alone_which_counts_them() -> None:
    """Asked for its size, a message would be serialised once more: these have none."""
    parsed = ParsedScore(ProcessingTable(), 40, RowWants())
    block = RowBlock(1 << 14, np.zeros(1 << 14, np.float32))
    events: list[Any] = [
        *(ScoreSlice(1, 0, i, 0, 1, 0, block, True, 1, 1 << 16) for i in range(40)),
        CallFinished(1, Usage()),
    ]
    stream: Any = _Stream(events)
    render = partial(score_result, parsed=parsed, codec=None, as_bytes=True)
    unused: Any = None
    make: Any = SimpleNamespace
    sent = ReplyBytes(17)
    rendering: Any = Rendering(make, render, unused, lambda _info: None, AS_BYTES)
    answer = Answer(rendering, 40, 15.0, sent)
    messages: list[Any] = [message async for message in answer.opening(unused, [], [])]
    messages += [message async for message in answer.results(stream)]
    assert sum(len(m.results) for m in messages[1:]) == 40
    assert len(messages) == 1 + 5
    sent.total = 4711
    assert answer.summary().summary.usage.reply_bytes == answer.sent_bytes == 4711


async def test_others_are_served_while_a_large_slice_is_written_as_numbers() -> None:
    """Which takes a tenth of a second with the strings of its tokens."""
    others = threading.Event()

    def render(piece: ScoreSlice) -> score_pb2.ScoreResult:
        assert piece.size <= AT_ONCE_BYTES or others.wait(5)
        return score_pb2.ScoreResult(completion_index=piece.completion_index)

    block = RowBlock(1, np.zeros(1, np.float32))
    sizes = [4, AT_ONCE_BYTES + 1, 4]
    events: list[Any] = [
        *(ScoreSlice(1, 0, i, 0, 1, 0, block, True, 1, size) for i, size in enumerate(sizes)),
        CallFinished(1, Usage()),
    ]
    stream: Any = _Stream(events)
    unused: Any = None
    rendering = Rendering(score_pb2.ScoreResponse, render, unused, unused, AS_NUMBERS)
    answer = Answer(rendering, 3, 15.0, ReplyBytes())
    asyncio.get_running_loop().call_soon(others.set)
    messages = [message async for message in answer.results(stream)]
    assert [r.completion_index for m in messages for r in m.results] == [0, 1, 2]


@contextmanager
def turns_of_others() -> Iterator[list[int]]:
    """A list of one number: how often another task had its turn meanwhile."""
    turns = [0]

    async def other() -> None:
        while True:
            turns[0] += 1
            await asyncio.sleep(0)

    task = asyncio.ensure_future(other())
    try:
        yield turns
    finally:
        task.cancel()


@pytest.mark.parametrize("what", ["slices", "faults", "faults of the request"])
async def test_others_have_turns_while_thousands_of_results_are_written(what: str) -> None:
    """A message holds as many as fit, which is 40 ms of writing where the event loop stands."""
    made: list[int] = []
    fault = Fault(Reason.INVALID_FIELD, "is empty")
    block = RowBlock(1, np.zeros(1, np.float32))
    count = 5000
    with turns_of_others() as turns:

        def render(piece: ScoreSlice) -> score_pb2.ScoreResult:
            made.append(turns[0])
            return score_pb2.ScoreResult(completion_index=piece.completion_index, last=True)

        def failed(group: int, completion: int | None, _fault: Fault) -> score_pb2.ScoreResult:
            made.append(turns[0])
            status = status_pb2.Status(code=3)
            return failed_score(group, completion, status)

        rendering: Any = Rendering(
            score_pb2.ScoreResponse, render, failed, lambda _info: None, AS_BYTES
        )
        answer = Answer(rendering, count, 15.0, ReplyBytes())
        unused: Any = None
        if what == "faults of the request":
            faults = [ItemFault(0, i, fault) for i in range(count)]
            messages = [m async for m in answer.opening(unused, [], faults)]
        else:
            events: list[Any] = [
                ScoreSlice(1, 0, i, 0, 1, 0, block, True, 1, 4)
                if what == "slices"
                else ItemFailed(1, 0, i, fault)
                for i in range(count)
            ]
            stream: Any = _Stream([*events, CallFinished(1, Usage())])
            messages = [m async for m in answer.results(stream)]
    assert [r.completion_index for m in messages for r in m.results] == list(range(count))
    assert len(messages) < 10, "turns do not make messages smaller"
    assert max(Counter(made).values()) <= AT_ONCE_BYTES // RESULT_BYTES


async def test_log_probs_are_written_beside_the_event_loop_where_lists_are_bytes() -> None:
    """There is no encoding of them as bytes."""
    loops_own = threading.get_ident()
    threads: dict[int, int] = {}

    def render(piece: ScoreSlice) -> score_pb2.ScoreResult:
        threads[piece.completion_index] = threading.get_ident()
        return score_pb2.ScoreResult(completion_index=piece.completion_index, last=True)

    few = AT_ONCE_BYTES // 4
    blocks = [
        RowBlock(few, np.zeros(few, np.float32)),
        RowBlock(few + 1, np.zeros(few + 1, np.float32)),
        # Its lists are bytes, of which there may be as many as there are.
        RowBlock(
            2,
            np.zeros(2, np.float32),
            top_token_ids=np.zeros((2, 9000), np.int32),
            top_logprobs=np.zeros((2, 9000), np.float32),
            candidate_logprobs=np.zeros((2, 9000), np.float32),
        ),
    ]
    sizes = [4 * few, 4 * (few + 1), 4 * 2 * (1 + 3 * 9000)]
    events: list[Any] = [
        ScoreSlice(1, 0, i, 0, 1, 0, block, True, 1, size)
        for i, (block, size) in enumerate(zip(blocks, sizes, strict=True))
    ]
    stream: Any = _Stream([*events, CallFinished(1, Usage())])
    unused: Any = None
    rendering = Rendering(score_pb2.ScoreResponse, render, unused, unused, AS_BYTES)
    answer = Answer(rendering, 3, 15.0, ReplyBytes())
    messages = [message async for message in answer.results(stream)]
    assert [r.completion_index for m in messages for r in m.results] == [0, 1, 2]
    assert [threads[i] == loops_own for i in range(3)] == [True, False, True]


async def test_processings_are_written_beside_the_event_loop(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4,096 different ones, as many as a call may have, take 30 ms."""
    threads = []
    messages = ProcessingTable.messages

    def watched(table: ProcessingTable) -> Any:
        threads.append(threading.get_ident())
        return messages(table)

    monkeypatch.setattr(ProcessingTable, "messages", watched)
    request = score_pb2.ScoreRequest(groups=[group([1], [4, 5])])
    first, *_ = await collect(server.stub.Score(request))
    assert len(first.processing) == 1
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()
