"""Sample: what is drawn, what is said about it, and that it is what Score says too."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from scipy import stats

from scoring_client.proto import (
    processing_pb2,
    sample_pb2,
    score_pb2,
    tensor_pb2,
)
from tests.rpc.calls import array, collect, group, score_one, tokens
from tests.rpc.conftest import PlainModel, RunningServer

PROMPT = [0, 300, 17, 1200, 45]
TRUNCATED = processing_pb2.LogitsProcessing(temperature=0.8, top_k=50, top_p=0.95, min_p=0.01)


async def samples_of(server: RunningServer, request: sample_pb2.SampleRequest) -> dict[Any, Any]:
    """(prompt, sample) -> its slices joined."""
    joined: dict[Any, Any] = defaultdict(sample_pb2.SampleResult)
    for message in await collect(server.stub.Sample(request)):
        for result in message.results:
            assert not result.HasField("status"), result.status.message
            key = result.prompt_index, result.sample_index
            assert result.start == len(joined[key].token_ids)
            text = joined[key].text + result.text
            joined[key].MergeFrom(result)
            joined[key].text = text
    assert all(sample.last for sample in joined.values())
    return joined


def request_for(
    *prompts: list[int] | str, n: int = 1, sampling: Any = None, **fields: Any
) -> sample_pb2.SampleRequest:
    """Samples of prompts."""
    made = sampling or sample_pb2.SamplingParams(max_tokens=12, processing=TRUNCATED, seed=11)
    return sample_pb2.SampleRequest(
        prompts=[sample_pb2.SamplePrompt(**tokens(prompt)) for prompt in prompts],
        n=n,
        sampling=made,
        **fields,
    )


async def test_score_confirms_the_log_probs_of_a_sample(server: RunningServer) -> None:
    samples = await samples_of(server, request_for(PROMPT, n=4))
    assert sorted(samples) == [(0, 0), (0, 1), (0, 2), (0, 3)]
    for sample in samples.values():
        assert sample.seed == 11
        request = score_pb2.ScoreRequest(
            groups=[group(PROMPT, list(sample.token_ids))],
            processing=TRUNCATED,
            outputs=score_pb2.RowOutputs(processed_logprobs=True),
        )
        scored = await score_one(server.stub, request)
        np.testing.assert_allclose(sample.logprobs, scored.logprobs, atol=1e-4)
        np.testing.assert_allclose(sample.processed_logprobs, scored.processed_logprobs, atol=1e-3)
        assert [s.weight_version for s in sample.weight_spans] == [7]


async def test_a_seed_gives_the_same_tokens_in_any_company(server: RunningServer) -> None:
    alone = await samples_of(server, request_for(PROMPT, n=3))
    crowd = await samples_of(server, request_for([1, 2, 3], PROMPT, [9] * 40, n=3))
    later = request_for(PROMPT, n=1)
    later.prompts[0].first_sample_index = 2
    split = await samples_of(server, later)
    for index in range(3):
        assert list(alone[0, index].token_ids) == list(crowd[1, index].token_ids)
    assert list(split[0, 2].token_ids) == list(alone[0, 2].token_ids)
    assert len({tuple(s.token_ids) for s in alone.values()}) == 3


async def test_equal_prompts_without_a_seed_differ_and_their_seeds_replay(
    server: RunningServer,
) -> None:
    sampling = sample_pb2.SamplingParams(max_tokens=12, ignore_eos=True)
    drawn = await samples_of(server, request_for(*[PROMPT] * 512, sampling=sampling))
    seeds = {sample.seed for sample in drawn.values()}
    assert len(drawn) == len(seeds) == 512
    assert len({tuple(sample.token_ids) for sample in drawn.values()}) > 500
    replay = request_for(PROMPT, sampling=sampling)
    replay.prompts[0].seed = drawn[77, 0].seed
    assert list((await samples_of(server, replay))[0, 0].token_ids) == list(drawn[77, 0].token_ids)


async def test_temperature_zero_is_greedy(server: RunningServer, plain: PlainModel) -> None:
    processing = processing_pb2.LogitsProcessing(temperature=0)
    sampling = sample_pb2.SamplingParams(max_tokens=10, processing=processing, ignore_eos=True)
    sample = (await samples_of(server, request_for(PROMPT, sampling=sampling)))[0, 0]
    ids = list(PROMPT)
    for token, logprob in zip(sample.token_ids, sample.logprobs, strict=True):
        row = plain.logits(ids, [0])[0]
        assert token == int(row.argmax())
        assert logprob == pytest.approx(float(row.log_softmax(0)[token]), abs=1e-4)
        ids.append(token)
    assert list(sample.processed_logprobs) == [0.0] * 10
    assert sample.finish_reason == sample_pb2.FINISH_REASON_LENGTH


async def test_the_drawn_distribution_is_the_processed_one(
    server: RunningServer, plain: PlainModel
) -> None:
    """Chi-square of first tokens drawn through the whole service."""
    draws = 4000
    processing = processing_pb2.LogitsProcessing(temperature=1.3, top_k=12, top_p=0.9)
    sampling = sample_pb2.SamplingParams(max_tokens=1, processing=processing, seed=5)
    drawn = await samples_of(server, request_for(PROMPT, n=draws, sampling=sampling))
    counts = np.bincount([sample.token_ids[0] for sample in drawn.values()], minlength=2048)
    probability = (plain.logits(PROMPT, [0])[0] / np.float64(np.float32(1.3))).softmax(0).numpy()
    kept = np.argsort(-probability)[:12]
    mass = np.cumsum(probability[kept]) / probability[kept].sum()
    kept = kept[: int(np.searchsorted(mass, np.float64(np.float32(0.9)))) + 1]
    assert counts[kept].sum() == draws, "nothing is drawn outside the support"
    expected = draws * probability[kept] / probability[kept].sum()
    assert stats.chisquare(counts[kept], expected).pvalue > 1e-4


async def test_text_stops_where_told_and_tokens_do_not(
    server: RunningServer, plain: PlainModel
) -> None:
    processing = processing_pb2.LogitsProcessing(temperature=0)
    base = sample_pb2.SamplingParams(max_tokens=30, processing=processing, ignore_eos=True)
    whole = await samples_of(
        server, request_for("import numpy as", sampling=base, return_text=True)
    )
    text = whole[0, 0].text
    assert text == plain.tokenizer.decode(list(whole[0, 0].token_ids), skip_special_tokens=True)
    stop = text[7:10]
    base.stop.append(stop)
    cut = await samples_of(server, request_for("import numpy as", sampling=base, return_text=True))
    sample = cut[0, 0]
    assert sample.text == text[: text.index(stop)]
    assert list(sample.prompt_token_ids) == plain.tokenizer("import numpy as").input_ids
    assert sample.finish_reason == sample_pb2.FINISH_REASON_STOP
    assert sample.matched_stop.text == stop
    assert list(sample.token_ids) == list(whole[0, 0].token_ids)[: len(sample.token_ids)]
    assert stop in plain.tokenizer.decode(list(sample.token_ids))


async def test_a_prompts_own_sampling_wins_field_by_field(server: RunningServer) -> None:
    request = request_for(PROMPT, PROMPT)
    request.prompts[1].sampling.max_tokens = 3
    request.prompts[1].sampling.processing.temperature = 0
    request.prompts[1].n = 2
    messages = await collect(server.stub.Sample(request))
    samples = await samples_of(server, request)
    assert sorted(samples) == [(0, 0), (1, 0), (1, 1)]
    assert len(samples[1, 0].token_ids) == 3
    table = messages[0].processing
    own = table[samples[1, 0].processing_index]
    assert own.temperature.value == 0
    assert own.temperature.source == processing_pb2.PROCESSING_SOURCE_GROUP
    assert own.top_k.value == 50
    assert own.top_k.source == processing_pb2.PROCESSING_SOURCE_REQUEST


async def test_most_likely_tokens_of_each_draw(server: RunningServer, plain: PlainModel) -> None:
    for encoding in (tensor_pb2.ENCODING_NUMBERS, tensor_pb2.ENCODING_BYTES):
        sampling = sample_pb2.SamplingParams(max_tokens=1, processing=TRUNCATED, seed=3)
        request = request_for(PROMPT, sampling=sampling, top_logprobs=6, encoding=encoding)
        sample = (await samples_of(server, request))[0, 0]
        x = plain.logits(PROMPT, [0])[0] / np.float64(np.float32(0.8))
        expected = x.log_softmax(0).topk(6)
        np.testing.assert_allclose(array(sample.top_logprobs)[0], expected.values, atol=1e-4)
        assert array(sample.top_token_ids)[0].tolist() == expected.indices.tolist()


async def test_min_tokens_bans_the_end(server: RunningServer, plain: PlainModel) -> None:
    """The likeliest token is made a stop: banned at first, then it ends the sample."""
    processing = processing_pb2.LogitsProcessing(temperature=0)
    likeliest = int(plain.logits(PROMPT, [0])[0].argmax())
    sampling = sample_pb2.SamplingParams(
        max_tokens=5, min_tokens=2, processing=processing, stop_token_ids=[likeliest]
    )
    sample = (await samples_of(server, request_for(PROMPT, sampling=sampling)))[0, 0]
    assert likeliest not in sample.token_ids[:2]
    sampling.ClearField("min_tokens")
    sample = (await samples_of(server, request_for(PROMPT, sampling=sampling)))[0, 0]
    assert list(sample.token_ids) == [likeliest]
    assert sample.matched_stop.token_id == likeliest
