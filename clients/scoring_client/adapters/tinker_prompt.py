"""What a Tinker call asks of its prompt, answered in Tinker's types.

Entry i describes token i; entry 0, without context, is NaN, or None in lists. Temperature is 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tinker import types
from tinker.types.topk_logprobs import MASK_LOGPROB, TopkLogprobs

from scoring_client.by_token import TokenQuestion
from scoring_client.client import ScoringClient
from scoring_client.ragged import RaggedCandidates
from scoring_client.values.arrays import Float32Array


def prompt_question(
    ids: list[int],
    logprobs: bool,
    last_n: int | None,
    k: int = 0,
    targets: types.TensorData | None = None,
) -> TokenQuestion:
    """Return what is asked of a prompt's tokens: all but the first, or the last n, k listed.

    Args:
        ids: The prompt, L tokens.
        logprobs: Whether Tinker's ``prompt_logprobs`` are wanted.
        last_n: Only those of so many last tokens; None = all.
        k: Tokens listed at each position; 0 = none.
        targets: Ids int64 [L - 1, C], dense or CSR, row i in the place of token i + 1.

    Raises:
        ValueError: an argument makes no sense.
    """
    if last_n is not None and not logprobs:
        raise ValueError("prompt_logprobs_last_n needs include_prompt_logprobs")
    if last_n is not None and not 1 <= last_n < len(ids):
        raise ValueError(f"prompt_logprobs_last_n must be in [1, {len(ids) - 1}], got {last_n}")
    first = 1 if last_n is None else len(ids) - last_n
    candidates = None if targets is None else candidates_of(targets, len(ids) - 1)
    return TokenQuestion(token_ids=ids, first=first, k=k, candidates=candidates)


def candidates_of(targets: types.TensorData, rows: int) -> RaggedCandidates:
    """Return ids int64 [rows, C], dense or CSR, row i in the place of token i + 1.

    Raises:
        ValueError: another type or shape, or no id at all.
    """
    if targets.dtype != "int64" or targets.shape is None or list(targets.shape[:-1]) != [rows]:
        given = f"{targets.dtype} {targets.shape}"
        raise ValueError(f"target_prompt_logprobs must be int64 [{rows}, C], got {given}")
    pointers = targets.sparse_crow_indices
    counts = np.full(rows, targets.shape[1]) if pointers is None else np.diff(pointers)
    found = RaggedCandidates(targets.data, [0, *counts])
    if found.first_row is None:
        raise ValueError("target_prompt_logprobs names no id")
    return found


def answered(
    client: ScoringClient, asked: TokenQuestion, logprobs: bool, targets: types.TensorData | None
) -> dict[str, Any]:
    """Return the fields of a SampleResponse that answer a ``prompt_question``, if it asks any."""
    if not (logprobs or asked.k or targets is not None):
        return {}
    scores = asked.ask(client)
    fields: dict[str, Any] = {"prompt_logprobs_np": scores.logprobs if logprobs else None}
    if asked.k:
        listed = _filled(scores.top_logprobs, MASK_LOGPROB)
        fields["topk_prompt_logprobs_np"] = TopkLogprobs(scores.top_token_ids.clip(0), listed)
    if targets is not None and scores.candidate_logprobs is not None:
        found = _filled(scores.candidate_logprobs, 0.0)  # where -1 stood
        layout = targets.shape, targets.sparse_crow_indices, targets.sparse_col_indices
        fields["target_prompt_logprobs"] = types.TensorData(found, "float32", *layout)
    return fields


def _filled(logprobs: Float32Array, nothing: float) -> Float32Array:
    """The numbers, with one where there is none. The -inf of an impossible token is a number."""
    return np.where(np.isnan(logprobs), np.float32(nothing), logprobs)
