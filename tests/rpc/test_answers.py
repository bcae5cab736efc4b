"""Messages of an answer stay small, whatever their results carry beside arrays."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from scoring_client.proto import score_pb2
from scoring_service.engine.events import CallFinished, ScoreSlice
from scoring_service.rpc.answers.answer import AT_ONCE_BYTES, MESSAGE_BYTES, Answer
from scoring_service.rpc.answers.rendering import Rendering
from scoring_service.rpc.answers.results import score_result
from scoring_service.rpc.handling.reply_bytes import ReplyBytes
from scoring_service.rpc.parsing.processing import ProcessingTable
from scoring_service.rpc.parsing.score import ParsedScore
from scoring_service.types import RowBlock, RowWants, Usage


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
    rendering = Rendering(score_pb2.ScoreResponse, render, unused, unused, as_bytes=True)
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
    rendering: Any = Rendering(make, render, unused, lambda _info: None, as_bytes=True)
    answer = Answer(rendering, 40, 15.0, sent)
    messages: list[Any] = list(answer.opening(unused, [], []))
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
    rendering = Rendering(score_pb2.ScoreResponse, render, unused, unused, as_bytes=False)
    answer = Answer(rendering, 3, 15.0, ReplyBytes())
    asyncio.get_running_loop().call_soon(others.set)
    messages = [message async for message in answer.results(stream)]
    assert [r.completion_index for m in messages for r in m.results] == [0, 1, 2]
