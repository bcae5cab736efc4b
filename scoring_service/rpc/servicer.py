"""The RPCs of ScoringService."""

# gRPC fixes the names of the methods.
# ruff: noqa: N802

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial
from typing import Any, TypeVar

from scoring_client.proto import (
    model_info_pb2,
    processing_pb2,
    sample_pb2,
    score_pb2,
    service_pb2_grpc,
    tokenize_pb2,
    topk_pb2,
)
from scoring_service.pool.streams.stream import CallStream
from scoring_service.rpc.answers.answer import Answer
from scoring_service.rpc.answers.model_info import model_info
from scoring_service.rpc.answers.rendering import (
    SAMPLE,
    SCORE,
    TOP_K_LOGPROBS,
    Response,
    StreamedRpc,
)
from scoring_service.rpc.answers.tokenize import tokenize
from scoring_service.rpc.guard import Guard
from scoring_service.rpc.handling.caller import Caller
from scoring_service.rpc.handling.handlers import Context
from scoring_service.rpc.handling.reply_bytes import reply_bytes
from scoring_service.rpc.models import Models, ServedModel
from scoring_service.rpc.parsing.context import accepted_weights
from scoring_service.rpc.parsing.model_view import ModelView
from scoring_service.rpc.parsing.sample import ParsedSample
from scoring_service.rpc.parsing.score import ParsedScore
from scoring_service.rpc.report import report, report_cut_short
from scoring_service.telemetry.telemetry import Telemetry

_TOKENIZING_THREADS = 2
"""Further texts to tokenise wait, and the other cores are for calls that are computed."""

_READING_THREADS = 4
"""Further requests with texts wait, but not what was computed and is to be written."""

Result = TypeVar("Result")


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
        self._guard = Guard(models, progress_seconds, telemetry.traces)
        self._tokenizing = ThreadPoolExecutor(_TOKENIZING_THREADS, "tokenize")
        self._reading = ThreadPoolExecutor(_READING_THREADS, "read")

    async def Score(
        self, request: score_pb2.ScoreRequest, context: Context
    ) -> AsyncIterator[score_pb2.ScoreResponse]:
        """Log-probs of completions."""
        async with self._stream(SCORE, request, context) as responses:
            async for response in responses:
                yield response

    async def TopKLogprobs(
        self, request: topk_pb2.TopKLogprobsRequest, context: Context
    ) -> AsyncIterator[topk_pb2.TopKLogprobsResponse]:
        """The most likely tokens of each row."""
        async with self._stream(TOP_K_LOGPROBS, request, context) as responses:
            async for response in responses:
                yield response

    async def Sample(
        self, request: sample_pb2.SampleRequest, context: Context
    ) -> AsyncIterator[sample_pb2.SampleResponse]:
        """Samples with their log-probs."""
        async with self._stream(SAMPLE, request, context) as responses:
            async for response in responses:
                yield response

    async def ListModels(
        self, request: model_info_pb2.ListModelsRequest, context: Context
    ) -> model_info_pb2.ListModelsResponse:
        """The models served."""
        return await self._guard.unary(request, context, self._list_models)

    async def GetModelInfo(
        self, request: model_info_pb2.GetModelInfoRequest, context: Context
    ) -> model_info_pb2.GetModelInfoResponse:
        """What a trainer has to know of a model."""
        return await self._guard.unary(request, context, self._model_info)

    async def Tokenize(
        self, request: tokenize_pb2.TokenizeRequest, context: Context
    ) -> tokenize_pb2.TokenizeResponse:
        """Token ids of texts."""
        # In threads of their own: long texts take their time, and requests to score others'.
        return await self._guard.unary(
            request, context, lambda asked: _in(self._tokenizing, self._tokenize, asked)
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

    def _stream(
        self, rpc: StreamedRpc[Response], request: Any, context: Context
    ) -> AbstractAsyncContextManager[AsyncGenerator[Response, None]]:
        """The messages of an answer, closed when they are left."""
        answer = partial(self._answer, rpc)
        return aclosing(self._guard.stream(request, context, rpc.response, answer))

    async def _answer(
        self,
        rpc: StreamedRpc[Response],
        request: Any,
        served: ServedModel,
        view: ModelView,
        caller: Caller,
    ) -> AsyncGenerator[Response, None]:
        """Opening, the engine's results, summary."""
        # In a thread: a large request takes its time, and the event loop serves others.
        parsed, processing = await _in(self._reading, _read, rpc, request, view)
        rendering = rpc.rendering(request, parsed, view, caller)
        answer = Answer(rendering, parsed.items, self._progress_seconds, reply_bytes())
        call = parsed.call(served.pool.new_call_id(), request, caller)
        admitted_ns = time.time_ns()
        admitted: CallStream | None = None
        answered = False
        try:
            if parsed.is_computable:
                accepts = accepted_weights(request.expect)
                async with served.pool.run(call, caller.client, accepts=accepts) as stream:
                    admitted = stream
                    # Weights may have changed since the view was taken; the stream tells of later
                    # ones.
                    info = served.pool.weights.current.info
                    opening = answer.opening(info, processing, parsed.faults)
                    async with aclosing(opening) as responses:
                        async for response in responses:
                            yield response
                    async with aclosing(answer.results(stream)) as responses:
                        async for response in responses:
                            yield response
            else:
                opening = answer.opening(view.info, processing, parsed.faults)
                async with aclosing(opening) as responses:
                    async for response in responses:
                        yield response
            yield answer.summary()
            answered = True
        finally:
            metrics = self._telemetry.metrics
            if answered:
                tokens = 0 if admitted is None else admitted.tokens
                report(metrics, answer, request, tokens, caller, admitted_ns)
            elif admitted is not None:
                report_cut_short(metrics, answer, request, admitted, caller, admitted_ns)


def _read(
    rpc: StreamedRpc[Any], request: Any, view: ModelView
) -> tuple[ParsedScore | ParsedSample, list[processing_pb2.ResolvedProcessing]]:
    """A validated request, and what it resolves to, as its caller is told."""
    parsed = rpc.parse(request, view)
    return parsed, parsed.table.messages()


def _in(
    threads: ThreadPoolExecutor, work: Callable[..., Result], *args: Any
) -> asyncio.Future[Result]:
    """Does it in one of the threads; logs know the call there, as in `asyncio.to_thread`."""
    context = contextvars.copy_context()
    return asyncio.get_running_loop().run_in_executor(threads, context.run, work, *args)
