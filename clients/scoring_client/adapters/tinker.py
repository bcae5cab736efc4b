"""Tinker's ``SamplingClient``, answered by a scoring server (tinker 0.38, tinker-cookbook 0.6).

A call asks something of its prompt (``tinker_prompt``), and it draws samples (``tinker_samples``).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tinker import types
from tinker.lib.public_interfaces.api_future import APIFuture, AwaitableConcurrentFuture

from scoring_client.adapters.tinker_prompt import answered, prompt_question
from scoring_client.adapters.tinker_samples import alternatives, draw
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
        ids, targets = prompt.to_ints(), target_prompt_logprobs
        wanted, last_n = include_prompt_logprobs, prompt_logprobs_last_n
        asked = prompt_question(ids, wanted, last_n, topk_prompt_logprobs, targets)
        if prompt_alt_tokens_k < 0:
            raise ValueError(f"prompt_alt_tokens_k must be 0 or greater, got {prompt_alt_tokens_k}")

        def answer() -> types.SampleResponse:
            fields = answered(self._client, asked, wanted, targets)
            if k := prompt_alt_tokens_k:
                fields["prompt_alt_tokens"] = alternatives(self._client, ids, k, sampling_params)
            fields |= draw(self._client, ids, num_samples, sampling_params, topk_sample_logprobs)
            return types.SampleResponse(**fields)

        return AwaitableConcurrentFuture(self._pool.submit(answer))

    async def sample_async(self, *args: Any, **kwargs: Any) -> types.SampleResponse:
        """Await ``sample``; same arguments."""
        return await self.sample(*args, **kwargs)

    def compute_logprobs(
        self, prompt: types.ModelInput, prompt_logprobs_last_n: int | None = None
    ) -> APIFuture[list[float | None]]:
        """Return a future list: entry i is the log-prob of token i, None where there is none."""
        asked = prompt_question(prompt.to_ints(), True, prompt_logprobs_last_n)
        scores = self._pool.submit(lambda: asked.ask(self._client).logprob_list())
        return AwaitableConcurrentFuture(scores)

    async def compute_logprobs_async(
        self, prompt: types.ModelInput, prompt_logprobs_last_n: int | None = None
    ) -> list[float | None]:
        """Await ``compute_logprobs``."""
        return await self.compute_logprobs(prompt, prompt_logprobs_last_n)  # type: ignore[no-any-return]
