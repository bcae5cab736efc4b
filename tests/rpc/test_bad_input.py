"""Every bad input of the issue: the right code, the field's path, and the server goes on."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from scoring_client.proto import (
    context_pb2,
    model_info_pb2,
    processing_pb2,
    sample_pb2,
    score_pb2,
    sequence_pb2,
    tensor_pb2,
    topk_pb2,
)
from scoring_service.errors import ServiceError
from scoring_service.rpc.parsing import unknown_fields
from tests.rpc.calls import collect, failure, group, reason, violations
from tests.rpc.conftest import RunningServer

INVALID = grpc.StatusCode.INVALID_ARGUMENT
GOOD = ([1, 2, 3], [4, 5, 6, 7])


def score(**fields: Any) -> score_pb2.ScoreRequest:
    """A good request, but for the fields given."""
    return score_pb2.ScoreRequest(**{"groups": [group(*GOOD)], **fields})


def top_k(**fields: Any) -> topk_pb2.TopKLogprobsRequest:
    """A good request, but for the fields given."""
    return topk_pb2.TopKLogprobsRequest(**{"groups": [group(*GOOD)], "k": 3, **fields})


def sample(**fields: Any) -> sample_pb2.SampleRequest:
    """A good request, but for the fields given."""
    prompts = [sample_pb2.SamplePrompt(token_ids=[1, 2, 3])]
    good = {"prompts": prompts, "sampling": sample_pb2.SamplingParams(max_tokens=2)}
    return sample_pb2.SampleRequest(**{**good, **fields})


def processed(**fields: Any) -> processing_pb2.LogitsProcessing:
    return processing_pb2.LogitsProcessing(**fields)


def sampling(**fields: Any) -> sample_pb2.SamplingParams:
    return sample_pb2.SamplingParams(**{"max_tokens": 2, **fields})


WHOLE_CALL: dict[str, tuple[Any, str]] = {
    "no groups": (score(groups=[]), "groups"),
    "temperature negative": (score(processing=processed(temperature=-1)), "processing.temperature"),
    "temperature 0": (score(processing=processed(temperature=0)), "processing.temperature"),
    "temperature tiny": (score(processing=processed(temperature=1e-6)), "processing.temperature"),
    "temperature nan": (
        score(processing=processed(temperature=math.nan)),
        "processing.temperature",
    ),
    "temperature inf": (
        score(processing=processed(temperature=math.inf)),
        "processing.temperature",
    ),
    "top_p 0": (score(processing=processed(top_p=0)), "processing.top_p"),
    "top_p 1.5": (score(processing=processed(top_p=1.5)), "processing.top_p"),
    "top_p nan": (score(processing=processed(top_p=math.nan)), "processing.top_p"),
    "min_p 2": (score(processing=processed(min_p=2)), "processing.min_p"),
    "min_p negative": (score(processing=processed(min_p=-0.1)), "processing.min_p"),
    "top_k -2": (score(processing=processed(top_k=-2)), "processing.top_k"),
    "defaults unknown": (score(processing=processed(defaults=9)), "processing.defaults"),
    "encoding unknown": (score(encoding=9), "encoding"),
    "priority": (score(context=context_pb2.RequestContext(priority=101)), "context.priority"),
    "request id": (
        score(context=context_pb2.RequestContext(request_id="x" * 129)),
        "context.request_id",
    ),
    "k 0": (top_k(k=0), "k"),
    "k negative": (top_k(k=-1), "k"),
    "k above the vocabulary": (top_k(k=2049), "k"),
    "k above the limit of ids": (top_k(k=11, token_id_limit=10), "k"),
    "token_id_limit 0": (top_k(token_id_limit=0), "token_id_limit"),
    "token_id_limit large": (top_k(token_id_limit=2049), "token_id_limit"),
    "strings of a large k": (
        top_k(k=1025, outputs=score_pb2.RowOutputs(tokens=True)),
        "outputs.tokens",
    ),
    "too many completions": (
        score(
            groups=[
                sequence_pb2.PromptGroup(
                    prompt=sequence_pb2.TokenSequence(token_ids=[1]),
                    completions=[sequence_pb2.Completion(token_ids=[4])] * 65_537,
                )
            ]
        ),
        "groups",
    ),
    "no prompts": (sample(prompts=[]), "prompts"),
    "too many samples": (
        sample(prompts=[sample_pb2.SamplePrompt(token_ids=[1])] * 2, n=40_000),
        "prompts",
    ),
    "max_tokens missing": (sample(sampling=sample_pb2.SamplingParams()), "sampling.max_tokens"),
    "max_tokens negative": (sample(sampling=sampling(max_tokens=-1)), "sampling.max_tokens"),
    "max_tokens 0": (sample(sampling=sampling(max_tokens=0)), "sampling.max_tokens"),
    "n 0": (sample(n=0), "n"),
    "top_logprobs": (sample(top_logprobs=2049), "top_logprobs"),
    "keep_realised": (
        sample(sampling=sampling(processing=processed(keep_realised=True))),
        "sampling.processing.keep_realised",
    ),
    "sampling temperature": (
        sample(sampling=sampling(processing=processed(temperature=-1))),
        "sampling.processing.temperature",
    ),
    "empty stop": (sample(sampling=sampling(stop=[""])), "sampling.stop[0]"),
    "stop id": (sample(sampling=sampling(stop_token_ids=[5, 4000])), "sampling.stop_token_ids[1]"),
}


@pytest.mark.parametrize("case", WHOLE_CALL)
async def test_a_fault_of_the_request_ends_the_call(server: RunningServer, case: str) -> None:
    request, path = WHOLE_CALL[case]
    code, status = await failure(method(server.stub, request)(request))
    assert code is INVALID
    assert reason(status) == "INVALID_FIELD"
    assert [field for field, _ in violations(status)] == [path]
    assert await answers(server)


def with_completion(**fields: Any) -> score_pb2.ScoreRequest:
    """A request with one completion of these fields."""
    prompt = sequence_pb2.TokenSequence(token_ids=[1, 2, 3])
    completion = sequence_pb2.Completion(**fields)
    return score(groups=[sequence_pb2.PromptGroup(prompt=prompt, completions=[completion])])


def with_prompt(**fields: Any) -> score_pb2.ScoreRequest:
    """A request whose prompt has these fields."""
    prompt = sequence_pb2.TokenSequence(**fields)
    completions = [sequence_pb2.Completion(token_ids=[4, 5])]
    return score(groups=[sequence_pb2.PromptGroup(prompt=prompt, completions=completions)])


def with_rows(*spans: tuple[int, int]) -> score_pb2.ScoreRequest:
    """A completion of four tokens with these row spans."""
    rows = [sequence_pb2.RowSpan(start=start, length=length) for start, length in spans]
    return with_completion(token_ids=[4, 5, 6, 7], rows=rows)


def with_candidates(shape: list[int], ints: list[int], **fields: Any) -> score_pb2.ScoreRequest:
    """A completion of two tokens with these candidates."""
    made = {"dtype": tensor_pb2.DATA_TYPE_INT32, "shape": shape, "ints": ints, **fields}
    return with_completion(token_ids=[4, 5], candidate_token_ids=tensor_pb2.Tensor(**made))


def with_sampled(**fields: Any) -> sample_pb2.SampleRequest:
    """A sample request whose prompt has these fields."""
    return sample(prompts=[sample_pb2.SamplePrompt(**{"token_ids": [1, 2], **fields})])


COMPLETION = "groups[0].completions[0]"
CANDIDATES = f"{COMPLETION}.candidate_token_ids"

ONE_ITEM: dict[str, tuple[Any, str]] = {
    "token ≥ vocabulary": (with_completion(token_ids=[4, 2048]), f"{COMPLETION}.token_ids[1]"),
    "token negative": (with_completion(token_ids=[-4]), f"{COMPLETION}.token_ids[0]"),
    "completion empty": (with_completion(), COMPLETION),
    "completion text empty": (with_completion(text=""), f"{COMPLETION}.text"),
    "completion both": (with_completion(token_ids=[4], text=" np"), COMPLETION),
    "prompt empty": (with_prompt(), "groups[0].prompt"),
    "prompt both": (with_prompt(token_ids=[4], text=" np"), "groups[0].prompt"),
    "prompt token": (with_prompt(token_ids=[4, 99999]), "groups[0].prompt.token_ids[1]"),
    "special tokens of ids": (
        with_prompt(token_ids=[4], add_special_tokens=True),
        "groups[0].prompt.add_special_tokens",
    ),
    "prompt text without tokens": (
        with_prompt(text="", add_special_tokens=False),
        "groups[0].prompt.text",
    ),
    "text too long": (with_prompt(text="x" * 500_000), "groups[0].prompt.text"),
    "sequence too long": (with_completion(token_ids=[4] * 4096), COMPLETION),
    "rows past the end": (with_rows((2, 3)), f"{COMPLETION}.rows[0]"),
    "rows overlap": (with_rows((0, 2), (1, 2)), f"{COMPLETION}.rows[1]"),
    "rows out of order": (with_rows((2, 1), (0, 1)), f"{COMPLETION}.rows[1]"),
    "rows empty": (with_rows((2, 0)), f"{COMPLETION}.rows[0].length"),
    "rows negative": (with_rows((-1, 2)), f"{COMPLETION}.rows[0].start"),
    "candidates of a wrong shape": (with_candidates([3, 1], [1, 2, 3]), f"{CANDIDATES}.shape"),
    "candidates of 65 dimensions": (with_candidates([1] * 65, [1]), f"{CANDIDATES}.shape"),
    "candidates of no array's shape": (
        with_candidates([0, *[2**31 - 1] * 3], []),
        f"{CANDIDATES}.shape",
    ),
    "candidates of one dimension": (with_candidates([2], [1, 2]), f"{CANDIDATES}.shape"),
    "candidates that do not fill": (with_candidates([2, 2], [1, 2, 3]), f"{CANDIDATES}.ints"),
    "candidates without dtype": (with_candidates([1, 1], [1], dtype=0), f"{CANDIDATES}.dtype"),
    "candidate ≥ vocabulary": (with_candidates([2, 1], [5, 2048]), f"{CANDIDATES}[1][0]"),
    "candidate < -1": (with_candidates([1, 2], [5, -2]), f"{CANDIDATES}[0][1]"),
    "huge candidate shape": (with_candidates([2**31 - 1, 2**31 - 1], [1]), f"{CANDIDATES}.ints"),
    "processing of a group": (
        score(groups=[group(*GOOD, processing=processed(temperature=0))]),
        "groups[0].processing.temperature",
    ),
    "sample prompt empty": (with_sampled(token_ids=[]), "prompts[0]"),
    "sample prompt token": (with_sampled(token_ids=[1, 9999]), "prompts[0].token_ids[1]"),
    "sample too long": (with_sampled(token_ids=[1] * 4095), "prompts[0]"),
    "sample n": (with_sampled(n=0), "prompts[0].n"),
    "sample index": (with_sampled(first_sample_index=-1), "prompts[0].first_sample_index"),
    "sample min_tokens": (
        with_sampled(sampling=sampling(min_tokens=3)),
        "prompts[0].sampling.min_tokens",
    ),
    "sample max_tokens": (
        with_sampled(sampling=sampling(max_tokens=-5)),
        "prompts[0].sampling.max_tokens",
    ),
    "sample top_p": (
        with_sampled(sampling=sampling(processing=processed(top_p=0))),
        "prompts[0].sampling.processing.top_p",
    ),
}


@pytest.mark.parametrize("case", ONE_ITEM)
async def test_a_fault_of_an_item_ends_that_item(server: RunningServer, case: str) -> None:
    request, path = ONE_ITEM[case]
    messages = await collect(method(server.stub, request)(request))
    (result,) = [result for message in messages for result in message.results]
    assert result.status.code == INVALID.value[0]
    assert [field for field, _ in violations(result.status)] == [path]
    assert messages[-1].summary.items_failed == 1
    assert messages[-1].summary.items_ok == 0
    assert await answers(server)


async def test_an_unknown_model_is_not_found_with_the_list(server: RunningServer) -> None:
    requests = (score(model="gpt-9"), sample(model="gpt-9"), top_k(model="gpt-9"))
    for request in requests:
        code, status = await failure(method(server.stub, request)(request))
        assert code is grpc.StatusCode.NOT_FOUND
        assert reason(status) == "MODEL_NOT_FOUND"
        assert "'tiny'" in status.message
    with pytest.raises(grpc.aio.AioRpcError, match="'tiny'"):
        await server.stub.GetModelInfo(model_info_pb2.GetModelInfoRequest(model="gpt-9"))


async def test_a_long_text_of_the_caller_is_quoted_in_part(server: RunningServer) -> None:
    """A status travels in headers, which gRPC bounds."""
    code, status = await failure(server.stub.Score(score(model="é" * 1_000_000)))
    assert code is grpc.StatusCode.NOT_FOUND
    assert reason(status) == "MODEL_NOT_FOUND"
    context = context_pb2.RequestContext(request_id="x" * 1_000_000)
    code, status = await failure(server.stub.Score(score(context=context)))
    assert code is INVALID
    assert violations(status)[0][0] == "context.request_id"
    expect = context_pb2.Expect(weights_digest="0" * 1_000_000)
    code, status = await failure(server.stub.Score(score(expect=expect)))
    assert code is grpc.StatusCode.FAILED_PRECONDITION


def with_unknown_field(message: Any) -> Any:
    """The message with field number 1000 added, as a newer client would send it."""
    return type(message).FromString(message.SerializeToString() + b"\xc0\x3e\x01")


UNKNOWN: dict[str, tuple[Callable[[], Any], str]] = {
    "request": (lambda: with_unknown_field(score()), "request"),
    "expect": (
        lambda: score(expect=with_unknown_field(context_pb2.Expect())),
        "expect",
    ),
    "row span of a completion": (
        lambda: score(
            groups=[
                group(*GOOD),
                sequence_pb2.PromptGroup(
                    prompt=sequence_pb2.TokenSequence(token_ids=[1]),
                    completions=[
                        sequence_pb2.Completion(
                            token_ids=[1],
                            rows=[with_unknown_field(sequence_pb2.RowSpan(start=0, length=1))],
                        )
                    ],
                ),
            ]
        ),
        "groups[1].completions[0].rows[0]",
    ),
    "sampling": (lambda: sample(sampling=with_unknown_field(sampling())), "sampling"),
}


@pytest.mark.parametrize("case", UNKNOWN)
async def test_unknown_fields_are_refused(server: RunningServer, case: str) -> None:
    make, path = UNKNOWN[case]
    request = make()
    code, status = await failure(method(server.stub, request)(request))
    assert code is INVALID
    assert reason(status) == "UNKNOWN_FIELD"
    ((field, description),) = violations(status)
    assert field == path
    assert "1000" in description


FLOOD = b"\xc0\x3e\x01" * 400_000
"""Of field number 1000; an object for each would take 60 MB."""

FLOODED: dict[str, Callable[[], Any]] = {
    "request": lambda: score_pb2.ScoreRequest.FromString(score().SerializeToString() + FLOOD),
    "expect": lambda: score(expect=context_pb2.Expect.FromString(FLOOD)),
    "completion": lambda: score(
        groups=[
            sequence_pb2.PromptGroup(
                prompt=sequence_pb2.TokenSequence(token_ids=[1]),
                completions=[sequence_pb2.Completion.FromString(FLOOD)],
            )
        ]
    ),
}


@pytest.mark.parametrize("where", FLOODED)
async def test_unknown_fields_without_number_are_not_taken_apart(
    server: RunningServer, where: str
) -> None:
    request = FLOODED[where]()
    _, status = await failure(server.stub.Score(request))
    assert reason(status) == "UNKNOWN_FIELD"
    assert f"{len(FLOOD)} bytes" in status.message
    tracemalloc.start()
    with pytest.raises(ServiceError, match="bytes in one message"):
        unknown_fields.refuse_unknown_fields(request)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The bytes are looked at as they are.
    assert peak < 2 * len(FLOOD)


def test_a_large_message_is_no_unknown_field_and_hides_none() -> None:
    completion = sequence_pb2.Completion(token_ids=[40_000] * 300_000)
    request = score(groups=[sequence_pb2.PromptGroup(completions=[completion] * 2)])
    unknown_fields.refuse_unknown_fields(request)
    request.groups[0].completions[1].CopyFrom(with_unknown_field(completion))
    with pytest.raises(ServiceError, match=r"groups\[0\]\.completions\[1\]: field number 1000"):
        unknown_fields.refuse_unknown_fields(request)


def test_looking_for_unknown_fields_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request of 64 MiB may hold millions of empty messages."""
    completion = sequence_pb2.Completion(rows=[sequence_pb2.RowSpan()] * 50)
    group = sequence_pb2.PromptGroup(completions=[completion])
    request = score_pb2.ScoreRequest(groups=[group])
    messages = 1 + 1 + 1 + 50
    monkeypatch.setattr(unknown_fields, "MAX_MESSAGES", messages)
    unknown_fields.refuse_unknown_fields(request)
    monkeypatch.setattr(unknown_fields, "MAX_MESSAGES", messages - 1)
    with pytest.raises(ServiceError, match="more than 52 messages in one"):
        unknown_fields.refuse_unknown_fields(request)


async def test_a_map_is_no_unknown_field(server: RunningServer) -> None:
    request = score(context=context_pb2.RequestContext(tags={"run": "a", "step": "12"}))
    assert (await collect(server.stub.Score(request)))[-1].summary.items_ok == 1


async def test_a_message_beyond_the_limit_is_refused_without_retry_info(
    server: RunningServer,
) -> None:
    huge = score(groups=[group([1], [2] * (5 << 20))])
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(server.target, options=options) as channel:
        method_ = channel.unary_stream(
            "/scoring.v1.ScoringService/Score",
            request_serializer=score_pb2.ScoreRequest.SerializeToString,
            response_deserializer=score_pb2.ScoreResponse.FromString,
        )
        code, status = await failure(method_(huge))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not status.details
    assert await answers(server)


def method(stub: Any, request: Any) -> Any:
    """The RPC that takes this request."""
    name = type(request).__name__.removesuffix("Request")
    return getattr(stub, name)


async def answers(server: RunningServer) -> bool:
    """Whether a good request is still answered."""
    messages = await collect(server.stub.Score(score()))
    return bool(messages[-1].summary.items_ok == 1)
