"""Random calls of every kind: what they want of which rows, how they sample, for whom."""

from __future__ import annotations

import numpy as np

from scoring_service.types import Call, CompletionTask, Processing, RowWants, SampleCall, ScoreCall
from tests.engine.sampling import task
from tests.engine.scoring import completion, group

PROMPTS = (1, 5, 30, 63, 64, 65, 100, 128, 150)
COMPLETIONS = (1, 2, 9, 20, 40, 62, 63, 64, 65, 100, 130)
"""Lengths around chunks of 64 and pieces of 28."""

_PROCESSING = (
    Processing(),
    Processing(temperature=0.8, top_k=20),
    Processing(temperature=1.2, top_p=0.9),
    Processing(min_p=0.05),
)
_WANTS = (
    RowWants(),
    RowWants(top_k=5, processed_logprobs=True, entropy=True, rank=True),
    RowWants(top_k=300, support_size=True, logsumexp=True),
)
_STOPS = ("e", "the", " a", "in")


class RandomCalls:
    """Makes calls; some of their prompts begin alike.

    Args:
        seed: of all of them.
        vocab: ids are below it.
    """

    def __init__(self, seed: int, vocab: int) -> None:
        self.rng = np.random.default_rng(seed)
        self._vocab = vocab
        self._stem = self._ids(max(PROMPTS))

    def call(self, call_id: int) -> Call:
        """One of either kind."""
        if self.rng.random() < 0.6:
            return self._score(call_id)
        return self._sample(call_id)

    def _ids(self, count: int) -> list[int]:
        found: list[int] = self.rng.integers(0, self._vocab, count).tolist()
        return found

    def _prompt(self) -> list[int]:
        length = int(self.rng.choice(PROMPTS))
        return self._stem[:length] if self.rng.random() < 0.6 else self._ids(length)

    def _score(self, call_id: int) -> ScoreCall:
        rng = self.rng
        next_token = bool(rng.integers(2))
        processing = _PROCESSING[rng.integers(len(_PROCESSING))]
        few = int(rng.integers(1, 4))
        groups = (
            group(
                self._prompt(), [self._completion(i, next_token) for i in range(few)], processing
            ),
            group(self._ids(7), [completion(self._ids(3))], processing, index=1),
        )
        return ScoreCall(
            call_id,
            groups,
            _WANTS[rng.integers(len(_WANTS))],
            next_token=next_token,
            slice_bytes=int(rng.choice([200, 1 << 20])),
            priority=int(rng.integers(-1, 2)),
            cache_salt="ab"[rng.integers(2)],
        )

    def _completion(self, index: int, next_token: bool) -> CompletionTask:
        rng = self.rng
        ids = self._ids(int(rng.choice(COMPLETIONS)))
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
        most = int(rng.integers(1, 60))
        kinds = (*_PROCESSING, Processing(temperature=0.0))
        of_one = task(
            self._prompt(),
            n=int(rng.integers(1, 4)),
            seed=int(rng.integers(1000)),
            max_tokens=most,
            min_tokens=int(rng.integers(0, most + 1)),
            processing=kinds[rng.integers(len(kinds))],
            ignore_eos=bool(rng.integers(2)),
            stop=tuple(rng.choice(_STOPS, size=rng.integers(0, 3), replace=False).tolist()),
            stop_token_ids=frozenset(self._ids(int(rng.integers(0, 40)))),
        )
        return SampleCall(
            call_id,
            (of_one,),
            top_logprobs=int(rng.integers(0, 3)),
            return_text=bool(rng.integers(2)),
            priority=int(rng.integers(-1, 2)),
        )
