"""Random calls of every kind: what they want of which rows, how they sample, for whom."""

from __future__ import annotations

import numpy as np

from scoring_service.types import (
    Call,
    CompletionTask,
    GroupTask,
    Processing,
    RowWants,
    SampleCall,
    SamplingTask,
    ScoreCall,
)
from tests.engine.sampling import task
from tests.engine.scoring import completion, group

CHUNK = 64

_PROCESSING = (
    Processing(),
    Processing(temperature=0.8, top_k=20),
    Processing(temperature=1.2, top_p=0.9),
    Processing(min_p=0.05),
)
_STOPS = ("e", "the", " a", "in")


def _lengths(chunk: int, *beside: int) -> tuple[int, ...]:
    """Of 1 and 2, around a seam, and these, as they are for chunks of `CHUNK` tokens."""
    scaled = tuple(max(3, tokens * chunk // CHUNK) for tokens in beside)
    return (1, 2, *scaled, chunk - 2, chunk - 1, chunk, chunk + 1)


class RandomCalls:
    """Makes calls; some of their prompts begin alike.

    Args:
        seed: of all of them.
        vocab: ids are below it.
        chunk: tokens between seams.
        texts: whether samples may be given as text, and end at texts.
    """

    def __init__(self, seed: int, vocab: int, chunk: int = CHUNK, texts: bool = True) -> None:
        self.rng = np.random.default_rng(seed)
        self._vocab = vocab
        self._texts = texts
        self._prompts = _lengths(chunk, 5, 30, 100, 128, 150)
        self._completions = _lengths(chunk, 9, 20, 40, 100, 130)
        self._wants = (
            RowWants(),
            RowWants(top_k=5, processed_logprobs=True, entropy=True, rank=True),
            RowWants(top_k=min(300, vocab), support_size=True, logsumexp=True, log_kept_mass=True),
        )
        self._stem = self._ids(max(self._prompts))

    def call(self, call_id: int) -> Call:
        """One of either kind."""
        if self.rng.random() < 0.6:
            return self._score(call_id)
        return self._sample(call_id)

    def _ids(self, count: int) -> list[int]:
        found: list[int] = self.rng.integers(0, self._vocab, count).tolist()
        return found

    def _prompt(self) -> list[int]:
        length = int(self.rng.choice(self._prompts))
        return self._stem[:length] if self.rng.random() < 0.6 else self._ids(length)

    def _score(self, call_id: int) -> ScoreCall:
        rng = self.rng
        next_token = bool(rng.integers(2))
        first = self._group(0, next_token)
        others = [group(self._ids(7), [completion(self._ids(3))], first.processing, index=1)]
        if rng.random() < 0.3:
            # One that has its prompt in common with the first, whole.
            others.append(self._group(2, next_token, first.prompt_ids.tolist()))
        return ScoreCall(
            call_id,
            (first, *others),
            self._wants[rng.integers(len(self._wants))],
            next_token=next_token,
            slice_bytes=int(rng.choice([200, 1 << 20])),
            priority=int(rng.integers(-1, 2)),
            cache_salt="ab"[rng.integers(2)],
            uncached=bool(rng.random() < 0.1),
        )

    def _group(self, index: int, next_token: bool, prompt: list[int] | None = None) -> GroupTask:
        rng = self.rng
        few = [self._completion(i, next_token) for i in range(int(rng.integers(1, 4)))]
        processing = _PROCESSING[rng.integers(len(_PROCESSING))]
        return group(prompt or self._prompt(), few, processing, index)

    def _completion(self, index: int, next_token: bool) -> CompletionTask:
        rng = self.rng
        ids = self._ids(int(rng.choice(self._completions)))
        spans = self._spans(len(ids))
        rows = sum(length for _, length in spans) + next_token
        heights = (None, 1, rows)
        height = heights[rng.choice(3, p=[0.6, 0.2, 0.2])]
        candidates = None
        if height is not None:
            candidates = rng.integers(-1, self._vocab, (height, 3)).astype(np.int32)
        return completion(ids, spans, candidates, index)

    def _spans(self, tokens: int) -> tuple[tuple[int, int], ...]:
        """All rows, the first few, or one or two runs anywhere."""
        rng = self.rng
        kind = rng.random()
        if kind < 0.4:
            return ((0, tokens),)
        if kind < 0.6:
            return ((0, min(tokens, 4)),)
        count = min(tokens + 1, 2 * int(rng.integers(1, 3))) // 2 * 2
        ends = sorted(rng.choice(tokens + 1, size=count, replace=False).tolist())
        return tuple((a, b - a) for a, b in zip(ends[::2], ends[1::2], strict=True))

    def _sample(self, call_id: int) -> SampleCall:
        rng = self.rng
        count = int(rng.choice([1, 1, 2]))
        return SampleCall(
            call_id,
            tuple(self._samples(index) for index in range(count)),
            top_logprobs=int(rng.integers(0, 3)),
            return_text=self._texts and bool(rng.integers(2)),
            slice_bytes=int(rng.choice([60, 1 << 20])),
            priority=int(rng.integers(-1, 2)),
            cache_salt="ab"[rng.integers(2)],
        )

    def _samples(self, index: int) -> SamplingTask:
        rng = self.rng
        most = int(rng.integers(1, 60))
        kinds = (*_PROCESSING, Processing(temperature=0.0))
        stops = rng.choice(_STOPS, size=rng.integers(0, 3), replace=False).tolist()
        return task(
            self._prompt(),
            n=int(rng.integers(1, 4)),
            seed=int(rng.integers(1000)),
            max_tokens=most,
            index=index,
            first_sample_index=int(rng.choice([0, 5])),
            min_tokens=int(rng.integers(0, most + 1)),
            processing=kinds[rng.integers(len(kinds))],
            ignore_eos=bool(rng.integers(2)),
            stop=tuple(stops) if self._texts else (),
            stop_token_ids=frozenset(self._ids(int(rng.integers(0, 40)))),
        )
