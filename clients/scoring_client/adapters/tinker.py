"""Tinker's ``SamplingClient``, answered by a scoring server (tinker 0.38, tinker-cookbook 0.6).

List form: entry i describes token i of the prompt, entry 0 has no context and says None. Prompt
log-probs are the model's own, at temperature 1; a sample's are those of the distribution that it
was drawn from, as importance sampling wants them.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from tinker import types
from tinker.lib.public_interfaces.api_future import APIFuture, AwaitableConcurrentFuture

from scoring_client.adapters import tinker_types as convert
from scoring_client.by_token import redraw_tokens, score_tokens
from scoring_client.client import ScoringClient


class SamplingClient:
    """What trainers call on a ``tinker.SamplingClient``; methods and arguments are its own."""

    def __init__(self, client: ScoringClient, *, base_model: str = "", workers: int = 64) -> None:
        """Answer from ``client``, with up to ``workers`` requests under way; it stays open."""
        self._client, self._base_model = client, base_model
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="tinker")

    def get_base_model(self) -> str:
        """Return the name given at the start."""
        return self._base_model

    def sample(
        self,
        prompt: types.ModelInput,
        num_samples: int,
        sampling_params: types.SamplingParams,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        topk_sample_logprobs: int = 0,
        target_prompt_logprobs: types.TensorData | None = None,
        prompt_alt_tokens_k: int = 0,
        prompt_logprobs_last_n: int | None = None,
    ) -> APIFuture[types.SampleResponse]:
        """Return a future SampleResponse; see tinker's own documentation.

        Raises:
            ValueError: an argument makes no sense. Faults of the call are the future's.
        """
        ids = prompt.to_ints()
        if prompt_logprobs_last_n is not None and not include_prompt_logprobs:
            raise ValueError("prompt_logprobs_last_n needs include_prompt_logprobs")
        if prompt_alt_tokens_k < 0:
            raise ValueError(f"prompt_alt_tokens_k must be 0 or greater, got {prompt_alt_tokens_k}")
        first = convert.first_scored(len(ids), prompt_logprobs_last_n)
        asked = target_prompt_logprobs
        targets = None if asked is None else convert.targets_of(asked, len(ids))

        def answer() -> types.SampleResponse:
            fields: dict[str, Any] = {}
            if include_prompt_logprobs or topk_prompt_logprobs or targets:
                scores = score_tokens(
                    self._client, ids, first=first, k=topk_prompt_logprobs, candidates=targets
                )
                fields |= convert.prompt_fields(scores, asked)
            if not include_prompt_logprobs:
                fields["prompt_logprobs_np"] = None
            if k := prompt_alt_tokens_k:
                t, seed = sampling_params.temperature, sampling_params.seed
                draws = redraw_tokens(self._client, ids, k, temperature=t, seed=seed)
                fields["prompt_alt_tokens"] = convert.alternatives(*draws)
            options = convert.sampling_options(sampling_params)
            if options["max_tokens"] is None:
                limits = self._client.model_info().limits
                options["max_tokens"] = limits.max_sequence_tokens - len(ids)
            drawn = self._client.sample(
                [ids], n=num_samples, top_logprobs=topk_sample_logprobs, **options
            )
            sequences = [convert.sequence_of(sample) for sample in drawn[0]]
            cached = drawn.usage.cached_tokens
            return types.SampleResponse(sequences, prompt_cache_hit_tokens=cached, **fields)

        return AwaitableConcurrentFuture(self._pool.submit(answer))

    async def sample_async(self, *args: Any, **kwargs: Any) -> types.SampleResponse:
        """Await ``sample``; same arguments."""
        response: types.SampleResponse = await self.sample(*args, **kwargs)
        return response

    def compute_logprobs(
        self, prompt: types.ModelInput, prompt_logprobs_last_n: int | None = None
    ) -> APIFuture[list[float | None]]:
        """Return a future list with a log-prob for each token, None where there is none."""
        ids = prompt.to_ints()
        first = convert.first_scored(len(ids), prompt_logprobs_last_n)

        def answer() -> list[float | None]:
            values = score_tokens(self._client, ids, first=first).logprobs
            return [None if np.isnan(value) else float(value) for value in values]

        return AwaitableConcurrentFuture(self._pool.submit(answer))

    async def compute_logprobs_async(
        self, prompt: types.ModelInput, prompt_logprobs_last_n: int | None = None
    ) -> list[float | None]:
        """Await ``compute_logprobs``."""
        logprobs: list[float | None] = await self.compute_logprobs(prompt, prompt_logprobs_last_n)
        return logprobs
