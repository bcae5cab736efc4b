"""How the results of a call become messages, and what sets the RPCs that stream them apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message
from google.rpc import status_pb2

from scoring_client.proto import context_pb2, sample_pb2, score_pb2, topk_pb2
from scoring_service.errors import Fault
from scoring_service.rpc.answers.results import (
    WeightSpans,
    failed_sample,
    failed_score,
    failed_top_k,
    sample_result,
    score_result,
    top_k_result,
    written_bytes,
)
from scoring_service.rpc.handling.caller import Caller
from scoring_service.rpc.handling.status import to_status
from scoring_service.rpc.parsing.context import provenance, wants_bytes
from scoring_service.rpc.parsing.model_view import ModelView
from scoring_service.rpc.parsing.sample import ParsedSample, parse_sample
from scoring_service.rpc.parsing.score import ParsedScore, parse_score
from scoring_service.types import EngineInfo

Response = TypeVar("Response", bound=Message)


@dataclass(frozen=True, slots=True)
class Rendering(Generic[Response]):
    """How the results of one call become messages."""

    response: Callable[..., Response]
    """Makes its messages."""
    piece: Callable[[Any], Message]
    """A slice to its result."""
    fault: Callable[[int, int | None, Fault], Message]
    """(index, part, fault) of an item that failed to its result."""
    provenance: Callable[[EngineInfo], context_pb2.Provenance]
    """The model, as some weights make it, to its provenance."""
    written: Callable[[Any], int]
    """Bytes of a slice's arrays that are written element by element, which takes its time."""


@dataclass(frozen=True, slots=True)
class StreamedRpc(Generic[Response]):
    """What sets an RPC apart from the others that stream results."""

    response: Callable[..., Response]
    """Makes its messages."""
    parse: Callable[[Any, ModelView], ParsedScore | ParsedSample]
    """Validates a request, which takes its time."""
    writer: Callable[[Any, Any, ModelView, bool], Callable[[Any], Message]]
    """What makes results of a call's slices: of a request, as parsed, of a model, and whether
    arrays are bytes."""
    failed: Callable[[int, int | None, status_pb2.Status], Message]
    """(index, part, status) of an item that failed to its result."""

    def rendering(
        self, request: Any, parsed: ParsedScore | ParsedSample, view: ModelView, caller: Caller
    ) -> Rendering[Response]:
        """For one call.

        Args:
            request: of it.
            parsed: what `parse` made of the request.
            view: of the model that is asked.
            caller: who asks.

        Raises:
            ServiceError: INVALID_FIELD for an encoding of a later contract.
        """
        as_bytes = wants_bytes(request.encoding)

        def failed(index: int, part: int | None, fault: Fault) -> Message:
            return self.failed(index, part, to_status(fault, caller.request_id))

        return Rendering(
            self.response,
            self.writer(request, parsed, view, as_bytes),
            failed,
            lambda info: provenance(replace(view, info=info), caller.request_id),
            partial(written_bytes, as_bytes=as_bytes and not parsed.has_strings),
        )


def _scores(
    result: Callable[..., Message],
    _request: score_pb2.ScoreRequest | topk_pb2.TopKLogprobsRequest,
    parsed: ParsedScore,
    view: ModelView,
    as_bytes: bool,
) -> Callable[[Any], Message]:
    return partial(result, parsed=parsed, codec=view.text, as_bytes=as_bytes)


def _samples(
    request: sample_pb2.SampleRequest, parsed: ParsedSample, _view: ModelView, as_bytes: bool
) -> Callable[[Any], Message]:
    return partial(
        sample_result,
        parsed=parsed,
        return_text=request.return_text,
        as_bytes=as_bytes,
        spans=WeightSpans(),
    )


SCORE = StreamedRpc(
    score_pb2.ScoreResponse, parse_score, partial(_scores, score_result), failed_score
)
TOP_K_LOGPROBS = StreamedRpc(
    topk_pb2.TopKLogprobsResponse, parse_score, partial(_scores, top_k_result), failed_top_k
)
SAMPLE = StreamedRpc(sample_pb2.SampleResponse, parse_sample, _samples, failed_sample)
