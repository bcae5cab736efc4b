"""Calls through the generated stubs alone, and what came of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from scoring_client.proto import (
    sample_pb2,
    score_pb2,
    sequence_pb2,
    service_pb2_grpc,
    tensor_pb2,
    topk_pb2,
)

SERVICE = "scoring.v1.ScoringService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@contextmanager
def stub_of(target: str, **options: int) -> Iterator[Any]:
    """A blocking stub."""
    pairs = [(f"grpc.{name}", value) for name, value in options.items()]
    with grpc.insecure_channel(target, options=pairs) as channel:
        yield service_pb2_grpc.ScoringServiceStub(channel)


def health(target: str, service: str = SERVICE) -> int:
    """SERVING or NOT_SERVING."""
    with grpc.insecure_channel(target) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return health_pb2_grpc.HealthStub(channel).Check(request, timeout=10).status


def score_request(prompt: list[int], *completions: list[int], copies: int = 1) -> Any:
    """Copies of one group."""
    group = sequence_pb2.PromptGroup(
        prompt=sequence_pb2.TokenSequence(token_ids=prompt),
        completions=[sequence_pb2.Completion(token_ids=c) for c in completions],
    )
    return score_pb2.ScoreRequest(groups=[group] * copies)


def top_k_request(completion: list[int], k: int, copies: int = 1) -> Any:
    """Copies of one group, answered as bytes."""
    groups = score_request([0], completion, copies=copies).groups
    return topk_pb2.TopKLogprobsRequest(groups=groups, k=k, encoding=tensor_pb2.ENCODING_BYTES)


def sample_request(max_tokens: int, n: int = 1) -> Any:
    """Samples of one prompt, all of this length."""
    return sample_pb2.SampleRequest(
        prompts=[sample_pb2.SamplePrompt(token_ids=[1, 2, 3])],
        n=n,
        sampling=sample_pb2.SamplingParams(max_tokens=max_tokens, ignore_eos=True, seed=1),
    )


def scores(stub: Any) -> list[float]:
    """Log-probs of a small call that is always the same."""
    messages = stub.Score(score_request([1, 2], [3, 4, 5]), timeout=60)
    return [x for message in messages for result in message.results for x in result.logprobs]


def reason_of(error: grpc.RpcError) -> str | None:
    """ErrorInfo.reason of a failed call."""
    for detail in details_of(error):
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return info.reason
    return None


def retry_delay_of(error: grpc.RpcError) -> float | None:
    """RetryInfo of a failed call, in seconds."""
    for detail in details_of(error):
        info = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            return info.retry_delay.ToNanoseconds() / 1e9
    return None


def details_of(error: grpc.RpcError) -> list[Any]:
    """Details of the google.rpc.Status of a failed call."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            return list(status_pb2.Status.FromString(value).details)
    return []
