"""The RPCs of ScoringService."""

# gRPC fixes the names of the methods.
# ruff: noqa: N802

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import grpc
import structlog
from google.protobuf.message import Message

from scoring_client.proto import (
    context_pb2,
    model_info_pb2,
    sample_pb2,
    score_pb2,
    service_pb2_grpc,
    tokenize_pb2,
    topk_pb2,
)
from scoring_service.errors import Fault, Reason, ServiceError
from scoring_service.rpc.answers import Answer
from scoring_service.rpc.authentication import identity_of
from scoring_service.rpc.caller import Caller, deadline_of, peer_host
from scoring_service.rpc.context import (
    accepted_weights,
    check_context,
    check_expectations,
    new_request_id,
    provenance,
    wants_bytes,
)
from scoring_service.rpc.model_info import model_info
from scoring_service.rpc.model_view import ModelView
from scoring_service.rpc.models import Models, ServedModel
from scoring_service.rpc.parse_sample import ParsedSample, parse_sample
from scoring_service.rpc.parse_score import ParsedScore, parse_score
from scoring_service.rpc.reply_bytes import reply_bytes
from scoring_service.rpc.results import (
    WeightSpans,
    failed_sample,
    failed_score,
    sample_result,
    score_result,
    top_k_result,
)
from scoring_service.rpc.status import abort, bounded, to_status
from scoring_service.rpc.tokenize import tokenize
from scoring_service.rpc.unknown_fields import refuse_unknown_fields
from scoring_service.telemetry.telemetry import Telemetry
from scoring_service.types import Call, EngineInfo

log = structlog.get_logger(__name__)

_LAST_WORD_SECONDS = 0.25
"""Before its deadline a call that waits is told what it waited for."""

Context = grpc.aio.ServicerContext[Any, Any]
Response = TypeVar("Response", bound=Message)

_RESPONSES: dict[type[Message], Callable[..., Message]] = {
    score_pb2.ScoreRequest: score_pb2.ScoreResponse,
    topk_pb2.TopKLogprobsRequest: topk_pb2.TopKLogprobsResponse,
    sample_pb2.SampleRequest: sample_pb2.SampleResponse,
}


class ScoringServicer(service_pb2_grpc.ScoringServiceServicer):
    """Parses, admits, streams. Knows nothing of tensors.

    Args:
        models: what is served.
        progress_seconds: how often a call that waits gives a sign of life.
        telemetry: what to report to.
    """

    def __init__(self, models: Models, progress_seconds: float, telemetry: Telemetry) -> None:
        self._models = models
        self._progress_seconds = progress_seconds
        self._telemetry = telemetry

    async def Score(
        self, request: score_pb2.ScoreRequest, context: Context
    ) -> AsyncIterator[score_pb2.ScoreResponse]:
        """Log-probs of completions."""
        async for response in self._guarded(request, context, self._score):
            yield response

    async def TopKLogprobs(
        self, request: topk_pb2.TopKLogprobsRequest, context: Context
    ) -> AsyncIterator[topk_pb2.TopKLogprobsResponse]:
        """The most likely tokens of each row."""
        async for response in self._guarded(request, context, self._top_k):
            yield response

    async def Sample(
        self, request: sample_pb2.SampleRequest, context: Context
    ) -> AsyncIterator[sample_pb2.SampleResponse]:
        """Samples with their log-probs."""
        async for response in self._guarded(request, context, self._sample):
            yield response

    async def ListModels(
        self, request: model_info_pb2.ListModelsRequest, context: Context
    ) -> model_info_pb2.ListModelsResponse:
        """The models served."""
        return await self._unary(request, context, self._list_models)

    async def GetModelInfo(
        self, request: model_info_pb2.GetModelInfoRequest, context: Context
    ) -> model_info_pb2.GetModelInfoResponse:
        """What a trainer has to know of a model."""
        return await self._unary(request, context, self._model_info)

    async def Tokenize(
        self, request: tokenize_pb2.TokenizeRequest, context: Context
    ) -> tokenize_pb2.TokenizeResponse:
        """Token ids of texts."""
        # In a thread: long texts take their time, and the event loop serves others.
        return await self._unary(
            request, context, lambda asked: asyncio.to_thread(self._tokenize, asked)
        )

    def _tokenize(self, request: tokenize_pb2.TokenizeRequest) -> tokenize_pb2.TokenizeResponse:
        return tokenize(request, self._models.find(request.model).view)

    def _list_models(
        self, _request: model_info_pb2.ListModelsRequest
    ) -> model_info_pb2.ListModelsResponse:
        models = [model_info_pb2.Model(name=n, ready=r) for n, r in self._models.listing()]
        return model_info_pb2.ListModelsResponse(models=models)

    def _model_info(
        self, request: model_info_pb2.GetModelInfoRequest
    ) -> model_info_pb2.GetModelInfoResponse:
        return model_info(self._models.find(request.model).view)

    async def _score(
        self, request: score_pb2.ScoreRequest, served: ServedModel, view: ModelView, caller: Caller
    ) -> AsyncIterator[score_pb2.ScoreResponse]:
        # In a thread: a large request takes its time, and the event loop serves others.
        parsed = await asyncio.to_thread(parse_score, request, view)
        render = partial(
            score_result, parsed=parsed, codec=view.text, as_bytes=wants_bytes(request.encoding)
        )

        def render_fault(group: int, completion: int | None, fault: Fault) -> score_pb2.ScoreResult:
            return failed_score(group, completion, to_status(fault, caller.request_id))

        answer = Answer(
            score_pb2.ScoreResponse,
            render,
            render_fault,
            parsed.items,
            self._progress_seconds,
            _provenance_of(view, caller),
            reply_bytes(),
        )
        async for response in self._answer(answer, request, parsed, served, view, caller):
            yield response

    async def _top_k(
        self,
        request: topk_pb2.TopKLogprobsRequest,
        served: ServedModel,
        view: ModelView,
        caller: Caller,
    ) -> AsyncIterator[topk_pb2.TopKLogprobsResponse]:
        parsed = await asyncio.to_thread(parse_score, request, view)
        render = partial(
            top_k_result, parsed=parsed, codec=view.text, as_bytes=wants_bytes(request.encoding)
        )

        def render_fault(group: int, completion: int | None, fault: Fault) -> topk_pb2.TopKResult:
            failed = failed_score(group, completion, to_status(fault, caller.request_id))
            return topk_pb2.TopKResult(score=failed)

        answer = Answer(
            topk_pb2.TopKLogprobsResponse,
            render,
            render_fault,
            parsed.items,
            self._progress_seconds,
            _provenance_of(view, caller),
            reply_bytes(),
        )
        async for response in self._answer(answer, request, parsed, served, view, caller):
            yield response

    async def _sample(
        self,
        request: sample_pb2.SampleRequest,
        served: ServedModel,
        view: ModelView,
        caller: Caller,
    ) -> AsyncIterator[sample_pb2.SampleResponse]:
        parsed = await asyncio.to_thread(parse_sample, request, view)
        render = partial(
            sample_result,
            parsed=parsed,
            return_text=request.return_text,
            as_bytes=wants_bytes(request.encoding),
            spans=WeightSpans(),
        )

        def render_fault(prompt: int, sample: int | None, fault: Fault) -> sample_pb2.SampleResult:
            return failed_sample(prompt, sample, to_status(fault, caller.request_id))

        answer = Answer(
            sample_pb2.SampleResponse,
            render,
            render_fault,
            parsed.items,
            self._progress_seconds,
            _provenance_of(view, caller),
            reply_bytes(),
        )
        async for response in self._answer(answer, request, parsed, served, view, caller):
            yield response

    async def _guarded(
        self,
        request: Any,
        context: Context,
        handler: Callable[[Any, ServedModel, ModelView, Caller], AsyncIterator[Response]],
    ) -> AsyncIterator[Response]:
        """What the streaming RPCs share: request id, trace, faults to statuses."""
        request_id = request.context.request_id or new_request_id()
        identity = identity_of(context)
        rpc = _rpc_name(request)
        # A call is a task with a context of its own: these labels end with it.
        structlog.contextvars.bind_contextvars(request_id=bounded(request_id), rpc=rpc)
        if identity:
            structlog.contextvars.bind_contextvars(identity=identity)
        metadata = context.invocation_metadata()
        with self._telemetry.traces.call(f"scoring.v1.ScoringService/{rpc}", metadata) as span:
            span.note({"scoring.request_id": bounded(request_id), "scoring.identity": identity})
            caller = Caller(
                request_id, identity, peer_host(context.peer()), deadline_of(context), span
            )
            try:
                async for response in self._checked(request, caller, handler):
                    yield response
            except ServiceError as error:
                fault = error.fault
                log.info("refused", reason=fault.reason, message=bounded(fault.message))
                span.failed(fault.code)
                await abort(context, fault, request_id)
            except Exception:
                log.exception("bug")
                span.failed("INTERNAL")
                await abort(context, _bug(), request_id)

    async def _checked(
        self,
        request: Any,
        caller: Caller,
        handler: Callable[[Any, ServedModel, ModelView, Caller], AsyncIterator[Response]],
    ) -> AsyncIterator[Response]:
        """Faults of the request as a whole, cheapest first; then its answer."""
        served = self._models.find(request.model)
        served.pool.check_room(caller.client)
        await asyncio.to_thread(refuse_unknown_fields, request)
        check_context(request.context)
        if request.context.tags:
            structlog.contextvars.bind_contextvars(tags=dict(request.context.tags))
        if request.expect.HasField("min_weight_version"):
            version = request.expect.min_weight_version
            async for response in self._wait_for_version(served, version, request, caller):
                yield response
        view = served.view
        check_expectations(request.expect, view)
        async for response in handler(request, served, view, caller):
            yield response

    async def _wait_for_version(
        self, served: ServedModel, version: int, request: Any, caller: Caller
    ) -> AsyncIterator[Any]:
        """Waits until the weights are recent enough, with a sign of life; the deadline ends it.

        Raises:
            ServiceError: they were not when the caller's time was all but over.
        """
        make = _RESPONSES[type(request)]
        began = time.monotonic()
        # The caller's own clock ends the call too, and would not say what it waited for.
        until = caller.deadline - min(_LAST_WORD_SECONDS, (caller.deadline - began) / 10)
        while (actual := served.view.info.weight_version) < version:
            now = time.monotonic()
            if now >= until:
                message = (
                    f"waited {now - began:.3g} s for weight version >= {version}; the server is "
                    f"at {actual}"
                )
                raise ServiceError(Fault(Reason.DEADLINE_EXCEEDED, message))
            try:
                async with asyncio.timeout(min(self._progress_seconds, until - now)):
                    await served.pool.wait_changed()
            except TimeoutError:
                yield make(progress=context_pb2.Progress(tokens_ahead=0))

    async def _unary(
        self,
        request: Any,
        context: Context,
        handler: Callable[[Any], Response | Awaitable[Response]],
    ) -> Response:
        try:
            refuse_unknown_fields(request)
            answer = handler(request)
            return await answer if isinstance(answer, Awaitable) else answer
        except ServiceError as error:
            await abort(context, error.fault)
        except Exception:
            log.exception("bug")
            await abort(context, _bug())

    async def _answer(
        self,
        answer: Answer[Response],
        request: Any,
        parsed: ParsedScore | ParsedSample,
        served: ServedModel,
        view: ModelView,
        caller: Caller,
    ) -> AsyncIterator[Response]:
        """Opening, the engine's results, summary."""
        call = parsed.call(served.pool.new_call_id(), request, caller)
        preamble = {
            "provenance": provenance(view, caller.request_id),
            "processing": parsed.table.messages(),
        }
        admitted_ns = time.time_ns()
        if call.tokens:
            accepts = accepted_weights(request.expect)
            async with served.pool.run(call, caller.client, accepts=accepts) as stream:
                # Weights may have changed since the view was taken; the stream tells of later ones.
                now = replace(view, info=served.pool.weights.current.info)
                preamble["provenance"] = provenance(now, caller.request_id)
                for response in answer.opening(parsed.faults, **preamble):
                    yield response
                async for response in answer.results(stream):
                    yield response
        else:
            for response in answer.opening(parsed.faults, **preamble):
                yield response
        yield answer.summary()
        self._report(answer, request, call, caller, admitted_ns)

    def _report(
        self, answer: Answer[Any], request: Any, call: Call, caller: Caller, admitted_ns: int
    ) -> None:
        """Log, metrics and trace of a call that was answered to its end."""
        usage = answer.usage
        if answer.started_ns is not None and answer.finished_ns is not None:
            caller.span.child("queue", admitted_ns, answer.started_ns)
            caller.span.child("steps", answer.started_ns, answer.finished_ns)
            caller.span.child("stream", answer.started_ns, time.time_ns())
        tags = request.context.tags.items()
        caller.span.note(
            {
                "scoring.tokens": call.tokens,
                "scoring.computed_tokens": usage.computed_tokens,
                "scoring.sampled_tokens": usage.sampled_tokens,
                "scoring.items_failed": answer.items - answer.ok,
                **{f"scoring.tag.{key}": value for key, value in tags},
            }
        )
        self._telemetry.metrics.answered(
            _rpc_name(request), caller.identity, tags, usage, answer.sent_bytes
        )
        log.info(
            "answered",
            tokens=call.tokens,
            items_ok=answer.ok,
            items_failed=answer.items - answer.ok,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            computed_tokens=usage.computed_tokens,
            sampled_tokens=usage.sampled_tokens,
            reply_bytes=answer.sent_bytes,
            queue_seconds=round(usage.queue_seconds, 6),
            compute_seconds=round(usage.compute_seconds, 6),
        )


def _rpc_name(request: Message) -> str:
    return request.DESCRIPTOR.name.removesuffix("Request")


def _provenance_of(
    view: ModelView, caller: Caller
) -> Callable[[EngineInfo], context_pb2.Provenance]:
    """Provenance of the same model with other weights."""
    return lambda info: provenance(replace(view, info=info), caller.request_id)


def _bug() -> Fault:
    return Fault(Reason.INTERNAL_ERROR, "a bug in the server; its log has this request id")
