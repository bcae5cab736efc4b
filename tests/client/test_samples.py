"""What sampling returns, against the toy model."""

import numpy as np
import pytest

from scoring_client import SamplePrompt
from tests.client import toy_model
from tests.client.toy_server import ToyServer
from tests.client.truth import assert_sample


@pytest.fixture(scope="module")
def server():
    with ToyServer(max_slice=3) as running:
        yield running


def test_samples_of_several_prompts(ask, server):
    results = ask(server.target, "sample", [[1, 2], "ab"], n=2, max_tokens=5, top_logprobs=3)
    assert [len(samples) for samples in results] == [2, 2]
    for samples, prompt in zip(results, ([1, 2], [toy_model.BOS, 97, 98]), strict=True):
        for index, sample in enumerate(samples):
            assert sample.sample_index == index
            assert sample.prompt_length == len(prompt)
            assert_sample(sample, prompt, 5)
            assert sample.top_token_ids.shape == (len(sample.token_ids), 3)
            ids, values = toy_model.row(prompt).top(3)
            np.testing.assert_array_equal(sample.top_token_ids[0], ids)
            np.testing.assert_array_equal(sample.top_logprobs[0], values)
            assert sample.text is None
    assert results[0][0].seed == results[0][1].seed != results[1][0].seed
    assert results.provenance.model == "toy"
    assert len(results.processing) == 1


def test_a_sample_knows_its_version(ask):
    with ToyServer(version=7, max_slice=1) as server:
        ((sample,), (failed,)) = ask(
            server.target, "sample", [[1], [999]], max_tokens=3, on_error="return"
        )
        parts = ask(server.target, "sample_slices", [[1]], max_tokens=3, seed=1)
    assert (sample.weight_version, failed.weight_version) == (7, None)
    assert [part.weight_version for part in parts] == [7 if part.last else None for part in parts]


def test_max_tokens_of_every_prompt_are_enough(ask, server):
    prompts = (SamplePrompt([token], max_tokens=1 + token) for token in (1, 2))
    results = ask(server.target, "sample", prompts, ignore_eos=True)
    assert [len(sample.token_ids) for sample in results.samples()] == [2, 3]


def test_the_same_seed_draws_the_same(ask, server):
    first = ask(server.target, "sample", [[1, 2]], n=3, max_tokens=5)
    again = ask(server.target, "sample", [[1, 2]], n=3, max_tokens=5, seed=first[0][0].seed)
    for a, b in zip(first.samples(), again.samples(), strict=True):
        assert a.token_ids.tolist() == b.token_ids.tolist()


def test_a_sample_that_stops(ask, server):
    # Long enough for the end-of-sequence token to come up among 258.
    results = ask(server.target, "sample", [[7]], n=8, max_tokens=400, seed=5, return_text=True)
    stopped = [sample for sample in results.samples() if sample.finish_reason == "stop"]
    assert stopped
    for sample in stopped:
        assert sample.matched_stop == toy_model.EOS
        assert sample.token_ids[-1] == toy_model.EOS
        assert len(sample.text) == sum(sample.token_ids < toy_model.BOS)
    for sample in results.samples():
        assert_sample(sample, [7], 400)
        assert sample.weight_spans[0].first_token == 0


def test_prompts_with_their_own_settings(ask, server):
    prompts = [
        SamplePrompt([1], n=3, seed=11, first_sample_index=4, max_tokens=2, temperature=0.5),
        SamplePrompt("ab", stop="xyz", stop_token_ids=[9], min_tokens=1, ignore_eos=True),
        [5],
    ]
    results = ask(
        server.target, "sample", prompts, max_tokens=6, top_p=0.9, stop=["yy", "z"], seed=3
    )
    assert [len(samples) for samples in results] == [3, 1, 1]
    assert [sample.sample_index for sample in results[0]] == [4, 5, 6]
    assert_sample(results[0][2], [1], 2)
    assert [samples[0].seed for samples in results] == [11, 3, 3]
    request = server.requests[-1]
    first, second, third = request.prompts
    assert first.sampling.processing.temperature == 0.5
    assert first.sampling.max_tokens == 2
    assert not first.sampling.HasField("min_tokens")
    assert list(second.sampling.stop) == ["xyz"]
    assert list(second.sampling.stop_token_ids) == [9]
    assert second.sampling.min_tokens == 1
    assert second.sampling.ignore_eos
    assert not third.HasField("sampling")
    assert list(request.sampling.stop) == ["yy", "z"]
    assert request.sampling.seed == 3
    assert request.sampling.processing.top_p == pytest.approx(0.9)
    assert not request.sampling.processing.HasField("temperature")
    assert not request.sampling.HasField("ignore_eos")


def test_samples_as_they_finish_and_as_they_are_drawn(ask, server):
    wholes = ask(server.target, "sample_iter", [[1], [2]], n=2, max_tokens=7)
    assert len(wholes) == 4
    for sample in wholes:
        assert_sample(sample, [[1], [2]][sample.prompt_index], 7)
    slices = ask(server.target, "sample_slices", [[1]], max_tokens=7, return_text=True)
    assert len(slices) > 1
    assert [part.last for part in slices] == [False] * (len(slices) - 1) + [True]
    assert [part.finish_reason is None for part in slices[:-1]] == [True] * (len(slices) - 1)
