"""What Tinker's ``sample`` says of the prompt itself: scores, lists, targets and draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from tinker import types
from tinker.types.prompt_alt_tokens import PromptAltTokens
from tinker.types.topk_logprobs import MASK_LOGPROB, TopkLogprobs

from scoring_client.client import ScoringClient
from scoring_client.inputs import Completion, SamplePrompt
from scoring_client.results import CompletionScores


class Targets:
    """Token ids [len(prompt) - 1, K], dense or CSR, whose row i is scored at token i + 1."""

    def __init__(self, asked: types.TensorData, ids: list[int]) -> None:
        """Check them as Tinker's server does."""
        if asked.dtype != "int64" or asked.shape is None or len(asked.shape) != 2:
            raise ValueError("target_prompt_logprobs must be int64 ids [len(prompt) - 1, K]")
        if asked.shape[0] != len(ids) - 1:
            raise ValueError(f"target_prompt_logprobs needs {len(ids) - 1} rows, got {asked.shape}")
        self._asked = asked
        values = np.array(asked.data, dtype=np.int64)
        if asked.sparse_crow_indices is None:
            counts = np.full(asked.shape[0], asked.shape[1])
        else:
            counts = np.diff(asked.sparse_crow_indices)
        # Entry e of the flat data stands at candidate [row[e], column[e]], without CSR's gaps.
        self._rows = np.repeat(np.arange(len(counts)), counts)
        self._columns = np.arange(len(values)) - np.repeat(np.cumsum(counts) - counts, counts)
        self.candidates = np.full((len(counts), max(counts.max(initial=0), 1)), -1, np.int32)
        self.candidates[self._rows, self._columns] = values
        if not (values >= 0).any():
            raise ValueError("target_prompt_logprobs names no id")
        self.first = 1 + int(self._rows[values >= 0].min())

    def answer(self, logprobs_T_C: npt.NDArray[np.float32], start: int) -> types.TensorData:
        """Return log-probs in the layout of the ids, 0 where there was -1."""
        whole = np.full(self.candidates.shape, np.nan, dtype=np.float32)
        whole[start - 1 :] = logprobs_T_C
        return types.TensorData(
            data=np.nan_to_num(whole[self._rows, self._columns], nan=0.0),
            dtype="float32",
            shape=self._asked.shape,
            sparse_crow_indices=self._asked.sparse_crow_indices,
            sparse_col_indices=self._asked.sparse_col_indices,
        )


def prompt_fields(
    client: ScoringClient, ids: list[int], first: int, k: int, targets: Targets | None
) -> dict[str, Any]:
    """Return fields of a SampleResponse: tokens from ``first`` on, targets wherever they stand."""
    values = np.full(len(ids), np.nan, dtype=np.float32)
    fields: dict[str, Any] = {"prompt_logprobs_np": values}
    lists = np.zeros((len(ids), k), np.int32), np.full((len(ids), k), MASK_LOGPROB, np.float32)
    if k:
        fields["topk_prompt_logprobs_np"] = TopkLogprobs(*lists)
    if len(ids) < 2:
        return fields
    start = first if targets is None else min(first, targets.first)
    candidates = None if targets is None else targets.candidates[start - 1 :]
    group = (
        ids[:1],
        [Completion(ids[1:], rows=[(start - 1, len(ids) - start)], candidates=candidates)],
    )
    scores: CompletionScores
    if k:
        top = client.topk_logprobs([group], k)[0][0]
        scores = top
        lists[0][first:] = top.top_token_ids[first - start :]
        lists[1][first:] = top.top_logprobs[first - start :]
    else:
        scores = client.score([group])[0][0]
    values[first:] = scores.logprobs[first - start :]
    if targets is not None and scores.candidate_logprobs is not None:
        fields["target_prompt_logprobs"] = targets.answer(scores.candidate_logprobs, start)
    return fields


def alternatives(
    client: ScoringClient, ids: list[int], k: int, params: types.SamplingParams
) -> PromptAltTokens:
    """Return k draws for every token but the first, with the model's log-probs of them."""
    # Equal seeds are no harm here: random numbers depend on the position, and all differ in it.
    prompts = [SamplePrompt(ids[:end], n=k, seed=params.seed) for end in range(1, len(ids))]
    drawn = client.sample(prompts, max_tokens=1, temperature=params.temperature, ignore_eos=True)
    tokens_T_K = np.array([[s.token_ids[0] for s in row] for row in drawn], dtype=np.int32)
    scores = client.score([(ids[:1], [Completion(ids[1:], candidates=tokens_T_K)])])[0][0]
    return PromptAltTokens(
        tokens=types.TensorData.from_numpy(tokens_T_K.astype(np.int64)),
        logprobs=types.TensorData.from_numpy(np.asarray(scores.candidate_logprobs)),
    )


def top_k(
    ids: npt.NDArray[np.int32] | None, logprobs: npt.NDArray[np.float32] | None
) -> TopkLogprobs | None:
    """Return a sample's lists as Tinker has them."""
    return None if ids is None or logprobs is None else TopkLogprobs(ids, logprobs)
