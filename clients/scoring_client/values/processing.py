"""How logits become a distribution: as asked, and as the server resolved it."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from scoring_client.errors import invalid
from scoring_client.proto import processing_pb2
from scoring_client.values.messages import set_fields

ProcessingDefaults = Literal["neutral", "model"]
"""What an unset setting means: neutral (temperature 1, nothing truncated), or what the model's
``generation_config`` sets."""

ProcessingSource = Literal["neutral", "request", "group", "model"]
"""Who set a resolved value. ``group`` is the group's own setting, or the sampling prompt's."""

_DEFAULTS: dict[str, processing_pb2.ProcessingDefaults] = {
    "neutral": processing_pb2.PROCESSING_DEFAULTS_NEUTRAL,
    "model": processing_pb2.PROCESSING_DEFAULTS_MODEL,
}
_SOURCES: dict[int, ProcessingSource] = {
    processing_pb2.PROCESSING_SOURCE_NEUTRAL: "neutral",
    processing_pb2.PROCESSING_SOURCE_REQUEST: "request",
    processing_pb2.PROCESSING_SOURCE_GROUP: "group",
    processing_pb2.PROCESSING_SOURCE_MODEL: "model",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Processing:
    """Settings that shape the distribution. None = unset, which is neutral by default."""

    temperature: float | None = None
    """Divisor of the logits, at least 1e-4. 0 = greedy, for samples only. Neutral: 1."""
    top_k: int | None = None
    """Tokens kept; 0 and -1 = all. Neutral: all."""
    top_p: float | None = None
    """Mass kept, in (0, 1]. Neutral: 1."""
    min_p: float | None = None
    """Least probability kept relative to the most likely token, in [0, 1]. Neutral: 0."""
    keep_realised: bool | None = None
    """The realised token always belongs to the support. Not for samples. Neutral: False."""
    defaults: ProcessingDefaults | None = None
    """What unset settings mean."""


@dataclass(frozen=True, slots=True)
class ProcessingSources:
    """Who set each value of a ResolvedProcessing."""

    temperature: ProcessingSource
    """Of the temperature."""
    top_k: ProcessingSource
    """Of top_k."""
    top_p: ProcessingSource
    """Of top_p."""
    min_p: ProcessingSource
    """Of min_p."""
    keep_realised: ProcessingSource
    """Of keep_realised."""


@dataclass(frozen=True, slots=True)
class ResolvedProcessing:
    """What was applied. Replaying exactly this reproduces the processed log-probs.

    Where ``min_tokens`` banned stops, before truncation, set their logits to -inf first. The server
    applies numbers of 32 bits; here each is the shortest decimal of its own, so that 0.7 reads 0.7
    and sent again is the same number. A replay of your own rounds them to float32 first, as
    ``scoring_client.replay`` does.
    """

    temperature: float
    """As applied; 0 = greedy."""
    top_k: int
    """As applied; 0 = off."""
    top_p: float
    """As applied; 1 = off."""
    min_p: float
    """As applied; 0 = off."""
    keep_realised: bool
    """As applied."""
    sources: ProcessingSources
    """Who set each."""


def processing_message(processing: Processing, path: str) -> processing_pb2.LogitsProcessing | None:
    """Return the message for settings, or None when every one of them is unset.

    Raises:
        InvalidRequestError: ``defaults`` is unknown, or a value has the wrong type.
    """
    defaults = None
    if processing.defaults is not None:
        if processing.defaults not in _DEFAULTS:
            raise invalid(
                f"{path}.defaults", f'{processing.defaults!r} is not "neutral" or "model"'
            )
        defaults = _DEFAULTS[processing.defaults]
    message = processing_pb2.LogitsProcessing()
    set_fields(
        message,
        path,
        temperature=processing.temperature,
        top_k=processing.top_k,
        top_p=processing.top_p,
        min_p=processing.min_p,
        keep_realised=processing.keep_realised,
        defaults=defaults,
    )
    return message if message.ByteSize() else None


def resolved_processing(message: processing_pb2.ResolvedProcessing) -> ResolvedProcessing:
    """Return what a message of the answer says was applied."""
    return ResolvedProcessing(
        temperature=_shortest(message.temperature.value),
        top_k=message.top_k.value,
        top_p=_shortest(message.top_p.value),
        min_p=_shortest(message.min_p.value),
        keep_realised=message.keep_realised.value,
        sources=ProcessingSources(
            temperature=_source(message.temperature.source),
            top_k=_source(message.top_k.source),
            top_p=_source(message.top_p.source),
            min_p=_source(message.min_p.source),
            keep_realised=_source(message.keep_realised.source),
        ),
    )


def _shortest(value: float) -> float:
    """Return the number with the fewest digits that is ``value`` in float32."""
    return float(str(np.float32(value)))


def _source(value: int) -> ProcessingSource:
    # A server older than a field leaves it out: then nothing was set.
    return _SOURCES.get(value, "neutral")
