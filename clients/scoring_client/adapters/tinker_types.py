"""Tinker's types as ours, and our answers as Tinker's."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import numpy.typing as npt
from tinker import types
from tinker.types.prompt_alt_tokens import PromptAltTokens
from tinker.types.topk_logprobs import MASK_LOGPROB, TopkLogprobs

from scoring_client.by_token import TokenScores
from scoring_client.ragged import RaggedCandidates
from scoring_client.samples import Sample


def sampling_options(params: types.SamplingParams) -> dict[str, Any]:
    """Return options of ``client.sample``, max_tokens None where Tinker draws as many as fit."""
    stop = [params.stop] if isinstance(params.stop, str) else list(params.stop or [])
    return {
        "max_tokens": params.max_tokens,
        "seed": params.seed,
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "stop": [text for text in stop if isinstance(text, str)],
        "stop_token_ids": [token for token in stop if isinstance(token, int)],
        "ignore_eos": params.stop is not None and not stop,  # stop=[] switches EOS off as well
    }


def first_scored(length: int, last_n: int | None) -> int:
    """Return the first token that ``prompt_logprobs_last_n`` wants."""
    if last_n is None:
        return 1
    if not 1 <= last_n < length:
        raise ValueError(f"prompt_logprobs_last_n must be in [1, {length - 1}], got {last_n}")
    return length - last_n


def targets_of(asked: types.TensorData, length: int) -> RaggedCandidates:
    """Return ids int64 [length - 1, K], dense or CSR, by the token that each row is scored at."""
    if asked.dtype != "int64" or asked.shape is None or len(asked.shape) != 2:
        raise ValueError("target_prompt_logprobs must be int64 ids [len(prompt) - 1, K]")
    if asked.shape[0] != length - 1:
        raise ValueError(f"target_prompt_logprobs needs {length - 1} rows, got {asked.shape}")
    dense = asked.sparse_crow_indices is None
    counts = np.full(length - 1, asked.shape[1]) if dense else np.diff(asked.sparse_crow_indices)
    targets = RaggedCandidates(asked.data, [0, *counts])
    if targets.first_row is None:
        raise ValueError("target_prompt_logprobs names no id")
    return targets


def prompt_fields(scores: TokenScores, asked: types.TensorData | None) -> dict[str, Any]:
    """Return fields of a SampleResponse; ``asked`` are the ids that ``targets_of`` read."""
    fields: dict[str, Any] = {"prompt_logprobs_np": scores.logprobs}
    if scores.top_logprobs.shape[1]:
        fields["topk_prompt_logprobs_np"] = TopkLogprobs(
            np.maximum(scores.top_token_ids, 0),
            np.nan_to_num(scores.top_logprobs, nan=MASK_LOGPROB),
        )
    if asked is not None and scores.candidate_logprobs is not None:
        fields["target_prompt_logprobs"] = types.TensorData(
            data=np.nan_to_num(scores.candidate_logprobs, nan=0.0),  # where -1 stood
            dtype="float32",
            shape=asked.shape,
            sparse_crow_indices=asked.sparse_crow_indices,
            sparse_col_indices=asked.sparse_col_indices,
        )
    return fields


def alternatives(ids: npt.NDArray[np.int32], logprobs: npt.NDArray[np.float32]) -> PromptAltTokens:
    """Return draws in the place of the prompt's tokens."""
    return PromptAltTokens(
        tokens=types.TensorData.from_numpy(ids.astype(np.int64)),
        logprobs=types.TensorData.from_numpy(logprobs),
    )


def sequence_of(sample: Sample) -> types.SampledSequence:
    """Return a sample, with the log-probs of the distribution that it was drawn from."""
    ids, logprobs = sample.top_token_ids, sample.top_logprobs
    return types.SampledSequence(
        stop_reason=sample.finish_reason or "length",
        sequence_id=uuid.uuid4().hex,
        tokens_np=sample.token_ids,
        logprobs_np=sample.processed_logprobs,
        topk_logprobs_np=None if ids is None or logprobs is None else TopkLogprobs(ids, logprobs),
    )
