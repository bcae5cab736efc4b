"""What a Tinker call draws, in Tinker's types.

The log-probs of samples are those of the distribution that they were drawn from, as importance
sampling wants them; those of alternatives to the prompt's tokens are at temperature 1.
"""

import uuid
from typing import Any

import numpy as np
from tinker import types
from tinker.types.prompt_alt_tokens import PromptAltTokens
from tinker.types.topk_logprobs import TopkLogprobs

from scoring_client.client import ScoringClient
from scoring_client.redraws import redraw_tokens
from scoring_client.values.samples import Sample


def draw(
    client: ScoringClient, ids: list[int], n: int, params: types.SamplingParams, topk: int
) -> dict[str, Any]:
    """Return the fields of a SampleResponse that are about n samples of a prompt.

    With each drawn token ``topk`` are listed. Without max_tokens as many are drawn as fit.

    Raises:
        ScoringError: see ``scoring_client.errors``.
    """
    options = sampling_options(params)
    if options["max_tokens"] is None:
        options["max_tokens"] = client.model_info().limits.max_sequence_tokens - len(ids)
    drawn = client.sample([ids], n=n, top_logprobs=topk, **options)
    return {
        "sequences": [sequence_of(sample) for sample in drawn[0]],
        "prompt_cache_hit_tokens": drawn.usage.cached_tokens,
    }


def sampling_options(params: types.SamplingParams) -> dict[str, Any]:
    """Return options of ``client.sample``."""
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


def sequence_of(sample: Sample) -> types.SampledSequence:
    """Return a sample as Tinker has it."""
    ids, logprobs = sample.top_token_ids, sample.top_logprobs
    return types.SampledSequence(
        stop_reason=sample.finish_reason or "length",
        sequence_id=uuid.uuid4().hex,
        tokens_np=sample.token_ids,
        logprobs_np=sample.processed_logprobs,
        topk_logprobs_np=None if ids is None or logprobs is None else TopkLogprobs(ids, logprobs),
    )


def alternatives(
    client: ScoringClient, ids: list[int], k: int, params: types.SamplingParams
) -> PromptAltTokens:
    """Return k draws in the place of each of a prompt's tokens but the first.

    Raises:
        ScoringError: see ``scoring_client.errors``.
    """
    t, seed = params.temperature, params.seed
    drawn, logprobs = redraw_tokens(client, ids, k, temperature=t, seed=seed)
    tokens = types.TensorData.from_numpy(drawn.astype(np.int64))
    return PromptAltTokens(tokens, types.TensorData.from_numpy(logprobs))
