"""What was drawn of a sample and not yet sent: its tokens, and the slices they become."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from scoring_service.engine.events import SampleSlice
from scoring_service.engine.text.stops import Stop
from scoring_service.types import SampleCall, SamplingTask

_FLUSH_SECONDS = 0.1
"""A slice is sent at least this often while a sample is drawn."""


@dataclass(frozen=True, slots=True)
class DrawnToken:
    """One token of a sample."""

    token_id: int
    logprob: float
    processed_logprob: float
    top_ids: npt.ArrayLike
    """int32 [K]."""
    top_logprobs: npt.ArrayLike
    """float32 [K]."""


@dataclass(slots=True)
class PendingTokens:
    """Tokens drawn since the last slice."""

    start: int = 0
    """Tokens of the sample before them."""
    tokens: list[DrawnToken] = field(default_factory=list)
    text: str = ""
    since: float = field(default_factory=time.monotonic)


def is_due(pending: PendingTokens, call: SampleCall) -> bool:
    """Whether the pending tokens should be sent now."""
    if time.monotonic() - pending.since >= _FLUSH_SECONDS:
        return True
    return len(pending.tokens) * call.token_bytes >= call.slice_bytes


def sample_slice(
    call: SampleCall,
    task: SamplingTask,
    sample_index: int,
    pending: PendingTokens,
    stop: Stop | None,
    weight_version: int,
) -> SampleSlice:
    """The pending tokens as a slice, the last one with `stop`."""
    tokens = pending.tokens
    listed = call.top_logprobs > 0
    top_ids = np.array([t.top_ids for t in tokens], dtype=np.int32) if listed else None
    top_values = np.array([t.top_logprobs for t in tokens], dtype=np.float32) if listed else None
    return SampleSlice(
        call_id=call.call_id,
        prompt_index=task.index,
        sample_index=sample_index,
        processing_index=task.processing_index,
        prompt_length=len(task.prompt_ids),
        seed=task.seed,
        start=pending.start,
        last=stop is not None,
        token_ids=np.array([t.token_id for t in tokens], dtype=np.int32),
        logprobs=np.array([t.logprob for t in tokens], dtype=np.float32),
        processed_logprobs=np.array([t.processed_logprob for t in tokens], dtype=np.float32),
        top_token_ids=top_ids,
        top_logprobs=top_values,
        text=pending.text,
        finish_reason=None if stop is None else stop.finish_reason,
        matched_stop=None if stop is None else stop.matched,
        weight_version=weight_version,
        size=len(tokens) * call.token_bytes + len(pending.text),
    )
