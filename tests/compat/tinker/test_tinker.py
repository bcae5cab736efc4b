"""tinker's types and signatures on our server."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import math
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import tinker
import torch
from tinker import types

from scoring_client import ScoringClient
from scoring_client.adapters.tinker import SamplingClient
from scoring_client.proto import topk_pb2
from tests.client.toy_server import ToyServer
from tests.compat.conftest import Plain, texts
from tests.compat.hooks import described, recorded

ONE = types.SamplingParams(max_tokens=1)


@pytest.fixture(scope="module")
def sampler(client: ScoringClient) -> SamplingClient:
    return SamplingClient(client, base_model="tiny")


def prompt_of(ids: list[int]) -> types.ModelInput:
    return types.ModelInput.from_ints(ids)


def test_the_hooks_are_those_recorded() -> None:
    for name, parameters in recorded("tinker").items():
        theirs = getattr(tinker.SamplingClient, name)
        assert described(theirs) == parameters, name
        ours = getattr(SamplingClient, name)
        if name != "sample_async":  # passes on whatever `sample` takes
            assert [p for p in described(ours) if p != "async"] == parameters, name
        if name.endswith("_async"):
            assert inspect.iscoroutinefunction(ours)


def test_the_fields_are_those_that_are_filled_and_read() -> None:
    """A new one would be ignored, or left empty, without a word."""
    asked = {"max_tokens", "seed", "temperature", "top_k", "top_p", "stop"}
    assert types.SamplingParams.model_fields.keys() == asked
    answered = {
        types.SampleResponse: {
            "sequences",
            "prompt_logprobs_np",
            "topk_prompt_logprobs_np",
            "target_prompt_logprobs",
            "prompt_alt_tokens",
            "prompt_cache_hit_tokens",
        },
        types.SampledSequence: {
            "stop_reason",
            "sequence_id",
            "tokens_np",
            "logprobs_np",
            "topk_logprobs_np",
        },
    }
    for made, expected in answered.items():
        names = {field.name for field in dataclasses.fields(made)}
        # The others are lists that the arrays are turned into when they are asked for.
        assert {name for name in names if not name.startswith("_")} == expected


def test_compute_logprobs(sampler: SamplingClient, plain: Plain) -> None:
    (ids,) = texts(1, 40)
    future = sampler.compute_logprobs(prompt_of(ids))
    assert isinstance(future, tinker.APIFuture)
    assert isinstance(future.future(), Future)
    logprobs = future.result()
    assert logprobs[0] is None
    np.testing.assert_allclose(logprobs[1:], plain.realised(ids), atol=1e-4)
    last = sampler.compute_logprobs(prompt_of(ids), prompt_logprobs_last_n=3).result()
    assert last[:-3] == [None] * 37
    np.testing.assert_allclose(last[-3:], logprobs[-3:], atol=1e-6)
    assert sampler.compute_logprobs(prompt_of(ids[:1])).result() == [None]

    async def awaited() -> list[Any]:
        return await asyncio.gather(
            sampler.compute_logprobs(prompt_of(ids)).coroutine(),
            sampler.compute_logprobs_async(prompt_of(ids)),
            sampler.compute_logprobs(prompt_of(ids)).result_async(),
        )

    assert asyncio.run(awaited()) == [logprobs] * 3


def test_everything_of_one_sample_call(sampler: SamplingClient, plain: Plain) -> None:
    (ids,) = texts(1, 20, seed=1)
    targets = torch.full((19, 3), -1, dtype=torch.int64)
    targets[4:, 0] = torch.arange(100, 115)
    targets[9, 2] = 7
    response = sampler.sample(
        prompt=prompt_of(ids),
        num_samples=3,
        sampling_params=types.SamplingParams(max_tokens=6, seed=5, temperature=0.7, top_k=30),
        include_prompt_logprobs=True,
        topk_prompt_logprobs=25,
        topk_sample_logprobs=4,
        target_prompt_logprobs=types.TensorData.from_torch(targets),
        prompt_alt_tokens_k=5,
        prompt_logprobs_last_n=8,
    ).result()
    assert isinstance(response, types.SampleResponse)
    truth = plain.logprobs(ids)
    prompt_logprobs = response.prompt_logprobs
    assert prompt_logprobs[:12] == [None] * 12
    np.testing.assert_allclose(prompt_logprobs[12:], plain.realised(ids)[11:], atol=1e-4)
    lists = response.topk_prompt_logprobs
    assert lists[:12] == [None] * 12
    for position in range(12, 20):
        expected = truth[position - 1].topk(25)
        assert [token for token, _ in lists[position]] == expected.indices.tolist()
        np.testing.assert_allclose(
            [logprob for _, logprob in lists[position]], expected.values, atol=1e-4
        )
    answered = response.target_prompt_logprobs.to_torch()
    assert answered.shape == targets.shape
    wanted = truth[:-1].gather(1, targets.clamp(min=0)).masked_fill(targets < 0, 0.0)
    np.testing.assert_allclose(answered, wanted, atol=1e-4)
    draws = response.prompt_alt_tokens
    drawn = draws.tokens.to_torch()
    assert drawn.shape == (19, 5)
    np.testing.assert_allclose(draws.logprobs.to_torch(), truth[:-1].gather(1, drawn), atol=1e-4)
    assert len({s.sequence_id for s in response.sequences}) == 3
    for sequence in response.sequences:
        rows = plain.logprobs(ids + sequence.tokens, temperature=0.7)[19:-1]
        kept = rows.masked_fill(rows < rows.topk(30).values[:, -1:], -math.inf).log_softmax(1)
        expected = kept.gather(1, torch.tensor(sequence.tokens)[:, None])[:, 0]
        np.testing.assert_allclose(sequence.logprobs, expected, atol=1e-4)
        assert len(sequence.topk_logprobs) == len(sequence.tokens)
        assert sequence.stop_reason in ("stop", "length")
    again = sampler.sample(
        prompt_of(ids), 3, types.SamplingParams(max_tokens=6, seed=5, temperature=0.7, top_k=30)
    ).result()
    assert [s.tokens for s in again.sequences] == [s.tokens for s in response.sequences]
    assert again.prompt_logprobs is again.topk_prompt_logprobs is None


def test_what_is_impossible_is_minus_infinity() -> None:
    """Not the least float32, which would be a number to weigh."""
    targets = torch.tensor([[7, -1], [9, 30], [-1, -1], [31, 32]])

    def without_the_last(messages: Iterator[Any]) -> Iterator[Any]:
        for message in messages:
            for result in getattr(message, "results", ()):
                if isinstance(result, topk_pb2.TopKResult):
                    result.top_logprobs.floats[-1] = -math.inf
                    result.score.candidate_logprobs.floats[0] = -math.inf
            yield message

    toy = ToyServer(numbers=True, max_slice=10, tamper=without_the_last)
    with toy as server, ScoringClient(server.target) as client:
        response = (
            SamplingClient(client)
            .sample(
                prompt_of([5, 17, 9, 200, 31]),
                1,
                ONE,
                include_prompt_logprobs=True,
                topk_prompt_logprobs=3,
                target_prompt_logprobs=types.TensorData.from_torch(targets),
            )
            .result()
        )
    lists = [[logprob for _, logprob in entries] for entries in response.topk_prompt_logprobs[1:]]
    assert lists[-1][-1] == -math.inf
    assert np.isfinite([*lists[0], *lists[1], *lists[2], *lists[3][:2]]).all()
    answered = response.target_prompt_logprobs.to_torch()
    assert answered[0, 0] == -math.inf
    assert (answered.flatten()[1:] > -100).all()
    assert torch.equal(answered == 0, targets < 0)


def test_sparse_targets(sampler: SamplingClient, plain: Plain) -> None:
    (ids,) = texts(1, 30, seed=2)
    targets = torch.full((29, 200), -1, dtype=torch.int64)
    targets[20, 150] = 11
    targets[20, 3] = 12
    targets[27, 199] = 13
    asked = types.TensorData.from_torch_sparse(targets, pad_value=-1)
    assert asked.sparse_crow_indices is not None
    response = sampler.sample(prompt_of(ids), 1, ONE, target_prompt_logprobs=asked).result()
    answered = response.target_prompt_logprobs
    assert answered.sparse_crow_indices == asked.sparse_crow_indices
    assert answered.sparse_col_indices == asked.sparse_col_indices
    truth = plain.logprobs(ids)
    dense = answered.to_torch()
    for row, column, token in ((20, 150, 11), (20, 3, 12), (27, 199, 13)):
        assert dense[row, column].item() == pytest.approx(truth[row, token].item(), abs=1e-4)
    assert response.prompt_logprobs is None


def test_the_draws_follow_the_temperature(sampler: SamplingClient, plain: Plain) -> None:
    (ids,) = texts(1, 3, seed=3)
    cold = types.SamplingParams(max_tokens=1, temperature=0.05, seed=1)
    draws = sampler.sample(prompt_of(ids), 1, cold, prompt_alt_tokens_k=8).result()
    best = plain.logprobs(ids)[:-1].argmax(1)
    tokens = draws.prompt_alt_tokens.tokens.to_torch()
    assert (tokens == best[:, None]).float().mean() > 0.6
    hot = types.SamplingParams(max_tokens=1, temperature=3.0, seed=1)
    draws = sampler.sample(prompt_of(ids), 1, hot, prompt_alt_tokens_k=8).result()
    rows = draws.prompt_alt_tokens.tokens.to_torch().tolist()
    assert all(len(set(row)) > 4 for row in rows)


def test_a_prompt_of_one_token(sampler: SamplingClient) -> None:
    """Nothing stands after it in whose place something could be drawn."""
    drawn = sampler.sample(prompt_of([5]), 2, ONE, prompt_alt_tokens_k=3).result()
    assert drawn.prompt_alt_tokens.tokens.to_torch().shape == (0, 3)
    assert drawn.prompt_alt_tokens.logprobs.to_torch().shape == (0, 3)
    assert len(drawn.sequences) == 2


def test_stops(sampler: SamplingClient) -> None:
    (ids,) = texts(1, 5, seed=4)
    free = types.SamplingParams(max_tokens=30, seed=3, stop=[])
    (whole,) = sampler.sample(prompt_of(ids), 1, free).result().sequences
    assert len(whole.tokens) == 30
    assert whole.stop_reason == "length"
    at = types.SamplingParams(max_tokens=30, seed=3, stop=[whole.tokens[1]])
    (stopped,) = sampler.sample(prompt_of(ids), 1, at).result().sequences
    assert stopped.stop_reason == "stop"
    assert stopped.tokens == whole.tokens[: whole.tokens.index(whole.tokens[1]) + 1]


def test_what_makes_no_sense_is_refused(sampler: SamplingClient) -> None:
    prompt = prompt_of([5, 6, 7])
    for last_n in (0, 3):
        with pytest.raises(ValueError, match="prompt_logprobs_last_n must be in"):
            sampler.compute_logprobs(prompt, last_n)
    with pytest.raises(ValueError, match="needs include_prompt_logprobs"):
        sampler.sample(prompt, 1, ONE, prompt_logprobs_last_n=1)
    with pytest.raises(ValueError, match="prompt_alt_tokens_k"):
        sampler.sample(prompt, 1, ONE, prompt_alt_tokens_k=-1)
    for bad in (
        torch.zeros(3, 1, dtype=torch.int64),
        torch.zeros(2, 1),
        torch.full((2, 1), -1, dtype=torch.int64),
    ):
        with pytest.raises(ValueError, match="target_prompt_logprobs"):
            sampler.sample(prompt, 1, ONE, target_prompt_logprobs=types.TensorData.from_torch(bad))
    with pytest.raises(ValueError, match="vocabulary"):
        sampler.compute_logprobs(prompt_of([5, 10**6])).result()
