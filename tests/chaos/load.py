"""Mixed load from several threads; every answer is compared with the one of a quiet server."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import grpc

from scoring_client.proto import (
    sample_pb2,
    score_pb2,
    sequence_pb2,
    service_pb2_grpc,
    tensor_pb2,
    topk_pb2,
)
from tests.e2e.calls import reason_of

RETRYABLE = {"WORKER_DIED", "LOADING", "QUEUE_FULL", "DRAINING", "CRASH_LOOP"}
"""Reasons after which the contract tells clients to send the call again."""

Answer = dict[tuple[int, int], tuple[Any, ...]]
"""(group, completion) or (prompt, sample) -> its rows or tokens, in order."""


def group(rng: random.Random, prompt: int, completions: int, length: int) -> Any:
    """A group of random ids."""
    ids = [rng.randrange(2, 2000) for _ in range(prompt)]
    return sequence_pb2.PromptGroup(
        prompt=sequence_pb2.TokenSequence(token_ids=ids),
        completions=[
            sequence_pb2.Completion(token_ids=[rng.randrange(2, 2000) for _ in range(length)])
            for _ in range(completions)
        ],
    )


def cases() -> list[tuple[str, Any]]:
    """Requests of every kind, always the same."""
    rng = random.Random(20)
    found: list[tuple[str, Any]] = []
    for size in (1, 3):
        groups = [group(rng, 90, 3, 40) for _ in range(size)]
        found.append(("Score", score_pb2.ScoreRequest(groups=groups)))
        found.append(("TopKLogprobs", topk_pb2.TopKLogprobsRequest(groups=groups, k=5)))
        prompts = [
            sample_pb2.SamplePrompt(token_ids=[rng.randrange(2, 2000) for _ in range(30)], seed=i)
            for i in range(size)
        ]
        sampling = sample_pb2.SamplingParams(max_tokens=40, ignore_eos=True)
        found.append(("Sample", sample_pb2.SampleRequest(prompts=prompts, n=3, sampling=sampling)))
    # Some rows of completions whose segments are computed in whole, all at once or in pieces.
    for spans in (((0, 4),), ((1, 2), (30, 5), (61, 1))):
        some = [group(rng, prompt, 2, 62) for prompt in (1, 33, 90)]
        for completion in (completion for one in some for completion in one.completions):
            for start, length in spans:
                completion.rows.add(start=start, length=length)
        found.append(("Score", score_pb2.ScoreRequest(groups=some)))
    # What else may be asked of a row.
    asked = score_pb2.ScoreRequest(groups=[group(rng, 70, 3, 30)], next_token=True)
    asked.processing.temperature, asked.processing.top_p, asked.processing.top_k = 0.8, 0.9, 50
    asked.outputs.processed_logprobs = asked.outputs.entropy = asked.outputs.rank = True
    asked.groups[0].completions[0].candidate_token_ids.CopyFrom(
        tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_INT32, shape=[1, 3], ints=[5, 6, 7])
    )
    found.append(("Score", asked))
    return found


def read(messages: Iterator[Any]) -> Answer:
    """An answer put together.

    Raises:
        AssertionError: rows or tokens are missing, doubled or out of order, or an item failed.
        grpc.RpcError: the call failed.
    """
    parts: dict[tuple[int, int], list[Any]] = {}
    ended: set[tuple[int, int]] = set()
    summary = None
    for message in messages:
        assert summary is None, "something came after the summary"
        for result in message.results:
            found = getattr(result, "score", result)
            assert not found.HasField("status"), found.status
            if isinstance(found, score_pb2.ScoreResult):
                key = found.group_index, found.completion_index
                rows = _scored(found)
                if hasattr(result, "top_logprobs"):
                    rows = list(zip(rows, _listed(result), strict=True))
            else:
                key = found.prompt_index, found.sample_index
                rows = list(zip(found.token_ids, found.logprobs, strict=True))
            assert key not in ended, f"{key} goes on after its end"
            so_far = parts.setdefault(key, [])
            # Behind what came before; whether something is missing the whole answer shows.
            end = so_far[-1][0] + 1 if so_far else 0
            assert found.start >= end, f"{key}: a slice at {found.start} after {end}"
            so_far.extend(enumerate(rows, found.start))
            if found.last:
                ended.add(key)
        if message.HasField("summary"):
            summary = message.summary
    assert summary is not None
    assert summary.items_ok == len(parts) == len(ended)
    return {key: tuple(rows) for key, rows in parts.items()}


def _scored(result: Any) -> list[tuple[Any, ...]]:
    """Every number that was asked of each row; the next_token row has no log-prob of its own."""
    asked = [result.logprobs, result.processed_logprobs, result.entropies, result.ranks]
    if result.candidate_logprobs.shape:
        width, values = result.candidate_logprobs.shape[1], result.candidate_logprobs.floats
        asked.append([tuple(values[i : i + width]) for i in range(0, len(values), width)])
    return list(zip_longest(*(numbers for numbers in asked if numbers)))


def _listed(result: Any) -> list[tuple[Any, ...]]:
    k = result.top_logprobs.shape[1]
    ids, values = result.top_token_ids.ints, result.top_logprobs.floats
    return [
        tuple(zip(ids[i : i + k], values[i : i + k], strict=True)) for i in range(0, len(ids), k)
    ]


class _Counted:
    """An iterator that knows how far it got."""

    def __init__(self, messages: Iterator[Any]) -> None:
        self.count = 0
        self._messages = messages

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        message = next(self._messages)
        self.count += 1
        return message


@dataclass
class Load:
    """Threads that call one after another, and what came of it."""

    target: str
    threads: int
    pause: float = 0.0
    timeout: float = 60.0
    expected: list[Answer] = field(default_factory=list)
    usage: list[Any] = field(default_factory=list)
    """Of each, as the server counted it."""
    outcomes: list[tuple[float, str]] = field(default_factory=list)
    """(when it ended, "ok" or the reason of the error)."""
    wrong: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """Reasons of calls that ended after their first message."""
    options: tuple[tuple[str, Any], ...] = ()
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def learn(self) -> None:
        """Asks the quiet server for every answer."""
        with self.channel() as channel:
            stub = service_pb2_grpc.ScoringServiceStub(channel)
            for rpc, request in cases():
                messages = list(getattr(stub, rpc)(request, timeout=120))
                self.expected.append(read(iter(messages)))
                self.usage.append(messages[-1].summary.usage)

    def channel(self) -> grpc.Channel:
        """A connection of its own, without gRPC's retries."""
        quick = (
            ("grpc.enable_retries", 0),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 500),
        )
        return grpc.insecure_channel(self.target, options=(*quick, *self.options))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Calls go on while this context is open."""
        workers = [threading.Thread(target=self._work, args=(i,)) for i in range(self.threads)]
        for worker in workers:
            worker.start()
        try:
            yield
        finally:
            self._stop.set()
            for worker in workers:
                worker.join()

    def _work(self, number: int) -> None:
        rng = random.Random(number)
        known = cases()
        with self.channel() as channel:
            stub = service_pb2_grpc.ScoringServiceStub(channel)
            while not self._stop.is_set():
                place = rng.randrange(len(known))
                rpc, request = known[place]
                outcome = self._call(getattr(stub, rpc), request, place)
                with self._lock:
                    self.outcomes.append((time.monotonic(), outcome))
                self._stop.wait(self.pause if outcome == "ok" else max(0.1, self.pause))

    def _call(self, rpc: Callable[..., Any], request: Any, place: int) -> str:
        messages = _Counted(rpc(request, timeout=self.timeout))
        try:
            answer = read(messages)
        except AssertionError as error:
            self.wrong.append(str(error))
            return "wrong"
        except grpc.RpcError as error:
            reason = reason_of(error) or error.code().name
            if messages.count:
                self.broken.append(reason)
            return reason
        if answer != self.expected[place]:
            self.wrong.append(f"another answer to case {place}")
            return "wrong"
        return "ok"

    def counted(self, since: float = 0.0, until: float = float("inf")) -> Counter[str]:
        """Outcomes of a period."""
        return Counter(what for when, what in self.outcomes if since <= when < until)
