"""Tinker's ``SamplingClient``, answered by a scoring server (tinker 0.38, tinker-cookbook 0.6).

List form: entry i describes token i of the prompt, entry 0 has no context and says None. Prompt
log-probs are the model's own, at temperature 1; a sample's are those of the distribution that it
was drawn from, as importance sampling wants them.
"""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from tinker import types
from tinker.lib.public_interfaces.api_future import APIFuture, AwaitableConcurrentFuture

from scoring_client.adapters.tinker_prompt import Targets, alternatives, prompt_fields, top_k
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
        first = _first_position(ids, prompt_logprobs_last_n)
        targets = None if target_prompt_logprobs is None else Targets(target_prompt_logprobs, ids)

        def answer() -> types.SampleResponse:
            fields: dict[str, Any] = {}
            if include_prompt_logprobs or topk_prompt_logprobs or targets:
                fields |= prompt_fields(self._client, ids, first, topk_prompt_logprobs, targets)
            if not include_prompt_logprobs:
                fields["prompt_logprobs_np"] = None
            if prompt_alt_tokens_k:
                fields["prompt_alt_tokens"] = alternatives(
                    self._client, ids, prompt_alt_tokens_k, sampling_params
                )
            options = self._options(sampling_params, len(ids))
            drawn = self._client.sample(
                [ids], n=num_samples, top_logprobs=topk_sample_logprobs, **options
            )
            sequences = [
                types.SampledSequence(
                    stop_reason=sample.finish_reason or "length",
                    sequence_id=uuid.uuid4().hex,
                    tokens_np=sample.token_ids,
                    logprobs_np=sample.processed_logprobs,
                    topk_logprobs_np=top_k(sample.top_token_ids, sample.top_logprobs),
                )
                for sample in drawn[0]
            ]
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
        first = _first_position(ids, prompt_logprobs_last_n)

        def answer() -> list[float | None]:
            values = prompt_fields(self._client, ids, first, 0, None)["prompt_logprobs_np"]
            return [None if np.isnan(value) else float(value) for value in values]

        return AwaitableConcurrentFuture(self._pool.submit(answer))

    async def compute_logprobs_async(
        self, prompt: types.ModelInput, prompt_logprobs_last_n: int | None = None
    ) -> list[float | None]:
        """Await ``compute_logprobs``."""
        logprobs: list[float | None] = await self.compute_logprobs(prompt, prompt_logprobs_last_n)
        return logprobs

    def _options(self, params: types.SamplingParams, prompt_length: int) -> dict[str, Any]:
        """Tinker's sampling parameters as ours: stop=[] there switches EOS off as well."""
        stop = [params.stop] if isinstance(params.stop, str) else list(params.stop or [])
        most = params.max_tokens
        if most is None:
            most = self._client.model_info().limits.max_sequence_tokens - prompt_length
        return {
            "max_tokens": most,
            "seed": params.seed,
            "temperature": params.temperature,
            "top_k": params.top_k,
            "top_p": params.top_p,
            "stop": [text for text in stop if isinstance(text, str)],
            "stop_token_ids": [token for token in stop if isinstance(token, int)],
            "ignore_eos": params.stop is not None and not stop,
        }


def _first_position(ids: list[int], last_n: int | None) -> int:
    """The first token that is scored."""
    if last_n is None:
        return 1
    if not 1 <= last_n < len(ids):
        raise ValueError(f"prompt_logprobs_last_n must be in [1, {len(ids) - 1}], got {last_n}")
    return len(ids) - last_n
