"""Other clients' calls while weights change, each answer checked against the versions it names."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scoring_client.proto import sample_pb2, score_pb2, topk_pb2
from tests.rpc.calls import collect, group
from tests.weights.trainer import TOLERANCE, Trainer

_K = 4


@dataclass
class Traffic:
    """Answers so far: (kind, request, messages)."""

    stub: Any
    answers: list[tuple[str, Any, list[Any]]] = field(default_factory=list)
    sample_tokens: int = 24

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Three clients call one after another while this context is open; none may fail."""
        stop = asyncio.Event()
        kinds = (self._score, self._top_k, self._sample)
        clients = [asyncio.create_task(self._client(kind, stop)) for kind in kinds]
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(*clients)

    async def _client(self, kind: Any, stop: asyncio.Event) -> None:
        rng = random.Random(kind.__name__)
        while not stop.is_set():
            await kind(rng)

    async def _score(self, rng: random.Random) -> None:
        groups = [group(_ids(rng, 70), _ids(rng, 40), _ids(rng, 9)) for _ in range(2)]
        request = score_pb2.ScoreRequest(groups=groups)
        self.answers.append(("score", request, await collect(self.stub.Score(request))))

    async def _top_k(self, rng: random.Random) -> None:
        request = topk_pb2.TopKLogprobsRequest(groups=[group(_ids(rng, 5), _ids(rng, 20))], k=_K)
        self.answers.append(("top_k", request, await collect(self.stub.TopKLogprobs(request))))

    async def _sample(self, rng: random.Random) -> None:
        prompts = [sample_pb2.SamplePrompt(token_ids=_ids(rng, 40), seed=rng.randrange(1 << 60))]
        tokens = self.sample_tokens
        sampling = sample_pb2.SamplingParams(max_tokens=tokens, ignore_eos=True)
        request = sample_pb2.SampleRequest(prompts=prompts, n=2, sampling=sampling)
        self.answers.append(("sample", request, await collect(self.stub.Sample(request))))

    def fewest(self) -> int:
        """Answers so far of the kind that has fewest."""
        seen = Counter(kind for kind, _, _ in self.answers)
        return min(seen[kind] for kind in ("score", "top_k", "sample"))

    def check(self, trainer: Trainer) -> Counter[str]:
        """Compares every answer with plain torch; what there was of each kind, and of versions."""
        seen: Counter[str] = Counter()
        for kind, request, messages in self.answers:
            seen[kind] += 1
            versions = _told(messages)
            assert messages[-1].summary.items_failed == 0
            if kind == "sample":
                versions |= self._check_samples(trainer, request, messages, seen)
            else:
                versions |= _check_scores(trainer, request, messages)
            seen.update(f"version {version}" for version in versions)
            seen["calls of several versions"] += len(versions) > 1
        return seen

    def _check_samples(
        self, trainer: Trainer, request: Any, messages: list[Any], seen: Counter[str]
    ) -> set[int]:
        tokens: dict[int, list[int]] = {}
        logprobs: dict[int, list[float]] = {}
        spans: dict[int, Any] = {}
        for result in (r for message in messages for r in message.results):
            assert result.start == len(tokens.setdefault(result.sample_index, []))
            tokens[result.sample_index] += result.token_ids
            logprobs.setdefault(result.sample_index, []).extend(result.logprobs)
            if result.last:
                spans[result.sample_index] = result.weight_spans
        prompt = list(request.prompts[0].token_ids)
        versions = set()
        for index, ids in tokens.items():
            assert len(ids) == self.sample_tokens
            starts = [span.first_token for span in spans[index]]
            assert starts[0] == 0
            seen["samples of several versions"] += len(starts) > 1
            for span, stop in zip(spans[index], [*starts[1:], len(ids)], strict=True):
                expected = trainer.logprobs(span.weight_version, prompt, ids).numpy()
                found = np.array(logprobs[index])
                between = slice(span.first_token, stop)
                assert np.abs(found[between] - expected[between]).max() < TOLERANCE
                versions.add(span.weight_version)
        return versions


def _told(messages: list[Any]) -> set[int]:
    """Versions of scored results, each of which provenance has told before."""
    told = None
    found = set()
    for message in messages:
        if message.HasField("provenance"):
            told = message.provenance.weight_version
        for result in message.results:
            scored = getattr(result, "score", result)
            if isinstance(scored, score_pb2.ScoreResult):
                assert scored.weight_version == told
                found.add(told)
    return found


def _check_scores(trainer: Trainer, request: Any, messages: list[Any]) -> set[int]:
    slices: dict[tuple[int, int], list[Any]] = {}
    for result in (r for message in messages for r in message.results):
        scored = getattr(result, "score", result)
        assert not scored.HasField("status"), scored.status
        slices.setdefault((scored.group_index, scored.completion_index), []).append(result)
    expected_items = {(g, c) for g, one in enumerate(request.groups)
                      for c in range(len(one.completions))}  # fmt: skip
    assert set(slices) == expected_items
    found = set()
    for (place, index), results in slices.items():
        scored = [getattr(result, "score", result) for result in results]
        (version,) = {one.weight_version for one in scored}  # a sequence never mixes
        found.add(version)
        prompt = list(request.groups[place].prompt.token_ids)
        completion = list(request.groups[place].completions[index].token_ids)
        rows = trainer.rows(version, prompt, completion).numpy()
        logprobs = np.concatenate([one.logprobs for one in scored])
        realised = rows[np.arange(len(completion)), completion]
        assert np.abs(logprobs - realised).max() < TOLERANCE
        if isinstance(results[0], topk_pb2.TopKResult):
            values = np.concatenate([r.top_logprobs.floats for r in results]).reshape(-1, _K)
            best = np.sort(rows, axis=1)[:, : -_K - 1 : -1]
            assert np.abs(values - best).max() < TOLERANCE
    return found


def _ids(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(2, 2000) for _ in range(count)]
