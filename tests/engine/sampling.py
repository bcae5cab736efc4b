"""Builds Sample calls, runs them, and puts the slices of each sample together again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scoring_service.engine.events import CallFinished, ItemFailed, SampleSlice
from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.types import Processing, SampleCall, SamplingTask, Usage
from tests.engine.driving import drive

GREEDY = Processing(temperature=0.0)


@dataclass(frozen=True)
class Sampled:
    """One sample's answer."""

    slices: list[SampleSlice]

    @property
    def token_ids(self) -> list[int]:
        return np.concatenate([s.token_ids for s in self.slices]).tolist()

    @property
    def logprobs(self) -> np.ndarray:
        return np.concatenate([s.logprobs for s in self.slices])

    @property
    def processed_logprobs(self) -> np.ndarray:
        return np.concatenate([s.processed_logprobs for s in self.slices])

    @property
    def top_token_ids(self) -> np.ndarray:
        return np.concatenate([s.top_token_ids for s in self.slices])

    @property
    def top_logprobs(self) -> np.ndarray:
        return np.concatenate([s.top_logprobs for s in self.slices])

    @property
    def text(self) -> str:
        return "".join(s.text for s in self.slices)

    @property
    def finish_reason(self) -> str | None:
        return self.slices[-1].finish_reason

    @property
    def matched_stop(self) -> str | int | None:
        return self.slices[-1].matched_stop

    @property
    def bits(self) -> tuple[list[int], bytes, bytes]:
        """What has to be equal when the same sample is drawn again."""
        return self.token_ids, self.logprobs.tobytes(), self.processed_logprobs.tobytes()


@dataclass(frozen=True)
class SampleAnswer:
    """A call's answer, by (prompt, sample index)."""

    items: dict[tuple[int, int], Sampled]
    failures: list[ItemFailed]
    usage: list[Usage]

    def __getitem__(self, key: tuple[int, int]) -> Sampled:
        return self.items[key]


def task(
    prompt: Sequence[int],
    n: int = 1,
    seed: int = 0,
    max_tokens: int = 16,
    index: int = 0,
    first_sample_index: int = 0,
    processing: Processing = GREEDY,
    **settings: Any,
) -> SamplingTask:
    return SamplingTask(
        index=index,
        prompt_ids=np.array(prompt, dtype=np.int32),
        n=n,
        seed=seed,
        first_sample_index=first_sample_index,
        processing=processing,
        processing_index=index,
        max_tokens=max_tokens,
        **settings,
    )


def run(
    loaded: LoadedModel,
    tasks: Sequence[SamplingTask],
    top_logprobs: int = 0,
    return_text: bool = False,
    slice_bytes: int = 1 << 20,
) -> SampleAnswer:
    """Runs a call alone."""
    call = SampleCall(1, tuple(tasks), top_logprobs, return_text, slice_bytes)
    items: dict[tuple[int, int], Sampled] = {}
    failures, usage = [], []
    for event in drive(loaded, call):
        if isinstance(event, SampleSlice):
            key = event.prompt_index, event.sample_index
            items.setdefault(key, Sampled([])).slices.append(event)
        elif isinstance(event, ItemFailed):
            failures.append(event)
        else:
            assert isinstance(event, CallFinished)
            usage.append(event.usage)
    return SampleAnswer(items, failures, usage)


def sample(
    loaded: LoadedModel,
    prompt: Sequence[int],
    top_logprobs: int = 0,
    return_text: bool = False,
    slice_bytes: int = 1 << 20,
    **settings: Any,
) -> SampleAnswer:
    """Samples of one prompt."""
    return run(loaded, [task(prompt, **settings)], top_logprobs, return_text, slice_bytes)
