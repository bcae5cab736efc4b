"""Resolves what processing applies: who set each field, and that nothing is defaulted silently."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from scoring_client.proto import processing_pb2 as pb
from scoring_service.errors import Fault, Reason, ServiceError, invalid
from scoring_service.types import Processing, ProcessingSource, ResolvedProcessing

MIN_TEMPERATURE = float(np.float32(1e-4))
"""Smallest temperature other than 0; below, logits overflow before they mean anything."""

_NEUTRAL: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "keep_realised": False,
}

_SOURCES = {
    ProcessingSource.NEUTRAL: pb.PROCESSING_SOURCE_NEUTRAL,
    ProcessingSource.REQUEST: pb.PROCESSING_SOURCE_REQUEST,
    ProcessingSource.GROUP: pb.PROCESSING_SOURCE_GROUP,
    ProcessingSource.MODEL: pb.PROCESSING_SOURCE_MODEL,
}

_NEUTRAL_SETTINGS: dict[str, tuple[Any, ...]] = {
    # Settings of generation_config that change the distribution and that this server does not
    # implement, with the values at which they change nothing.
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "typical_p": (1.0,),
    "top_h": (),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "bad_words_ids": ([],),
    "force_words_ids": ([],),
    "sequence_bias": ({}, []),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1.0,),
    "penalty_alpha": (0.0,),
    "num_beams": (1,),
    "diversity_penalty": (0.0,),
    "dola_layers": (),
    "watermarking_config": (),
}


def unsupported_settings(generation_config: dict[str, Any]) -> list[str]:
    """Settings under which PROCESSING_DEFAULTS_MODEL would promise what is not done."""
    return [
        name
        for name, neutral in _NEUTRAL_SETTINGS.items()
        if generation_config.get(name) is not None and generation_config[name] not in neutral
    ]


def resolve(
    request: pb.LogitsProcessing | None,
    group: pb.LogitsProcessing | None,
    generation_config: dict[str, Any],
    request_path: str,
    group_path: str,
    sampling: bool,
) -> ResolvedProcessing:
    """Resolves every field: the group's, else the request's, else what `defaults` says.

    Args:
        request: the request's processing, None when unset.
        group: the group's or prompt's, None when unset.
        generation_config: the model's explicit settings.
        request_path: where the request's stands, for error messages.
        group_path: where the group's stands.
        sampling: in Sample: temperature 0 is greedy, keep_realised makes no sense.

    Raises:
        ServiceError: INVALID_FIELD, UNSUPPORTED_GENERATION_CONFIG.
    """
    levels = [
        (group, group_path, ProcessingSource.GROUP),
        (request, request_path, ProcessingSource.REQUEST),
    ]
    model_settings = _model_settings(levels, generation_config)
    values: dict[str, Any] = {}
    sources: list[tuple[str, ProcessingSource]] = []
    for name, neutral in _NEUTRAL.items():
        value, source, path = neutral, ProcessingSource.NEUTRAL, name
        for message, prefix, level in levels:
            if message is not None and message.HasField(name):
                value, source, path = getattr(message, name), level, f"{prefix}.{name}"
                break
        else:
            if name in model_settings:
                value, source = model_settings[name], ProcessingSource.MODEL
                path = f"the model's generation_config.{name}"
        values[name] = _CHECKS[name](value, path, sampling)
        sources.append((name, source))
    return ResolvedProcessing(Processing(**values), tuple(sources))


def to_message(resolved: ResolvedProcessing) -> pb.ResolvedProcessing:
    """The echo of a resolved processing."""
    sources = {name: _SOURCES[source] for name, source in resolved.sources}
    p = resolved.processing
    return pb.ResolvedProcessing(
        temperature=pb.ResolvedFloat(value=p.temperature, source=sources["temperature"]),
        top_k=pb.ResolvedInt(value=p.top_k, source=sources["top_k"]),
        top_p=pb.ResolvedFloat(value=p.top_p, source=sources["top_p"]),
        min_p=pb.ResolvedFloat(value=p.min_p, source=sources["min_p"]),
        keep_realised=pb.ResolvedBool(value=p.keep_realised, source=sources["keep_realised"]),
    )


def _model_settings(
    levels: list[tuple[pb.LogitsProcessing | None, str, ProcessingSource]],
    generation_config: dict[str, Any],
) -> dict[str, Any]:
    """The model's settings when the nearest `defaults` that is set asks for them, else nothing."""
    for message, path, _ in levels:
        if message is None or message.defaults == pb.PROCESSING_DEFAULTS_UNSPECIFIED:
            continue
        if message.defaults == pb.PROCESSING_DEFAULTS_NEUTRAL:
            return {}
        if message.defaults != pb.PROCESSING_DEFAULTS_MODEL:
            raise invalid(f"{path}.defaults", f"{int(message.defaults)} is not a known value")
        unsupported = unsupported_settings(generation_config)
        if unsupported:
            text = ", ".join(f"{name} = {generation_config[name]}" for name in unsupported)
            fault = Fault(
                Reason.UNSUPPORTED_GENERATION_CONFIG,
                f"{path}.defaults: the model's generation_config sets {text}, which this server "
                "does not implement; set the processing explicitly instead",
            )
            raise ServiceError(fault)
        names = ("temperature", "top_k", "top_p", "min_p")
        found = {n: generation_config[n] for n in names if generation_config.get(n) is not None}
        # What is echoed is what is applied: a proto float.
        return {n: v if n == "top_k" else float(np.float32(v)) for n, v in found.items()}
    return {}


def _check_temperature(value: float, path: str, sampling: bool) -> float:
    if value == 0.0:
        if sampling:
            return 0.0
        raise invalid(path, "0 (greedy) has no log-probs; use a temperature above 0")
    if not math.isfinite(value) or value < 0.0:
        raise invalid(path, f"{value:g} is not a finite number above 0")
    if value < MIN_TEMPERATURE:
        raise invalid(path, f"{value:g} is below the smallest temperature, 1e-4")
    return value


def _check_top_k(value: int, path: str, _sampling: bool) -> int:
    if value < -1:
        raise invalid(path, f"{value} is neither a number of tokens nor off (0 or -1)")
    return max(value, 0)


def _check_top_p(value: float, path: str, _sampling: bool) -> float:
    if not 0.0 < value <= 1.0:
        raise invalid(path, f"{value:g} is not in (0, 1]")
    return value


def _check_min_p(value: float, path: str, _sampling: bool) -> float:
    if not 0.0 <= value <= 1.0:
        raise invalid(path, f"{value:g} is not in [0, 1]")
    return value


def _check_keep_realised(value: bool, path: str, sampling: bool) -> bool:
    if value and sampling:
        raise invalid(path, "has no meaning in Sample: nothing is realised before the draw")
    return value


_CHECKS: dict[str, Callable[[Any, str, bool], Any]] = {
    "temperature": _check_temperature,
    "top_k": _check_top_k,
    "top_p": _check_top_p,
    "min_p": _check_min_p,
    "keep_realised": _check_keep_realised,
}


MAX_PROCESSINGS = 4096
"""Distinct processings of a call: they travel in its first message, which is bounded."""


class ProcessingTable:
    """The distinct processings of a call, in the order of their first use."""

    def __init__(self) -> None:
        self._indices: dict[ResolvedProcessing, int] = {}

    def index(self, resolved: ResolvedProcessing, path: str) -> int:
        """Where it stands in the table; added when new.

        Raises:
            ServiceError: INVALID_FIELD for one too many.
        """
        if resolved not in self._indices and len(self._indices) == MAX_PROCESSINGS:
            raise invalid(path, f"more than {MAX_PROCESSINGS} different processings in one call")
        return self._indices.setdefault(resolved, len(self._indices))

    def messages(self) -> list[pb.ResolvedProcessing]:
        """The table as it is sent."""
        return [to_message(resolved) for resolved in self._indices]
