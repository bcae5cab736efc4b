"""The RPCs of AdminService."""

# gRPC fixes the names of the methods.
# ruff: noqa: N802

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from typing import Any, TypeVar

import grpc
import structlog
from google.protobuf.message import Message

from scoring_client.proto import admin_pb2 as pb
from scoring_client.proto import admin_pb2_grpc
from scoring_service.errors import Fault, Reason, ServiceError, invalid
from scoring_service.pool.pool import WorkerPool
from scoring_service.pool.weights.update import WeightUpdate
from scoring_service.pool.workers.readiness import PoolState
from scoring_service.rpc.admin.config import AdminConfig, weight_source
from scoring_service.rpc.admin.pushed_weights import PushedWeights
from scoring_service.rpc.admin.update_progress import STATUS_SECONDS, report_progress
from scoring_service.rpc.admin.weight_messages import parse_options, status_message, tensor_message
from scoring_service.rpc.admin.weight_wire import WirePart, read_push
from scoring_service.rpc.handling.errors import abort_on_fault
from scoring_service.rpc.handling.handlers import Context
from scoring_service.rpc.handling.malformed import MalformedRequest
from scoring_service.rpc.interceptors.authentication import identity_of
from scoring_service.rpc.models import Models
from scoring_service.rpc.parsing.context import new_request_id
from scoring_service.rpc.parsing.unknown_fields import refuse_unknown_fields
from scoring_service.types import EngineConfig

log = structlog.get_logger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["AdminService"]
SERVICE_NAME = SERVICE.full_name

_TAKING_CALLS = (PoolState.READY, PoolState.AWAITING_WEIGHTS)
"""A pool that is drained is in neither, also where its workers are starting again."""

Response = TypeVar("Response", bound=Message)


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Checks callers and requests; the pool does the rest."""

    def __init__(self, models: Models, config: AdminConfig) -> None:
        self._models = models
        self._config = config
        # A thread of its own: a file system behind a network may stall, and with it every thread
        # that asks it. Calls go on meanwhile.
        self._looking = ThreadPoolExecutor(1, "weights-path")

    async def PushWeights(
        self,
        request_iterator: AsyncIterator[pb.PushWeightsRequest | WirePart | MalformedRequest],
        context: Context,
    ) -> AsyncIterator[pb.PushWeightsResponse]:
        """Weights from the caller."""
        async with _abort_on_fault(context, "PushWeights"):
            self._check_caller(context)
            stream = PushedWeights(request_iterator, self._config.stream_timeout)
            begin = await stream.begin()
            options = parse_options(begin.options, "begin.options")
            update = self._pool(begin.model).weights.begin(options, identity_of(context))
            async with aclosing(report_progress(update, stream.receive(update))) as statuses:
                async for status in statuses:
                    yield pb.PushWeightsResponse(status=status)

    async def UpdateWeights(
        self, request: pb.UpdateWeightsRequest, context: Context
    ) -> AsyncIterator[pb.UpdateWeightsResponse]:
        """Weights from files that the server can read."""
        async with _abort_on_fault(context, "UpdateWeights"):
            self._check_caller(context)
            refuse_unknown_fields(request)
            for name in ("partial", "convert_dtypes"):
                if getattr(request.options, name):
                    raise invalid(
                        f"options.{name}", "checkpoints are read whole, in the model's type"
                    )
            options = parse_options(request.options, "options")
            pool = self._pool(request.model)
            source = await asyncio.get_running_loop().run_in_executor(
                self._looking, weight_source, self._config, request, pool.weights.current.info
            )
            update = pool.weights.begin(options, identity_of(context))
            async with aclosing(report_progress(update, _read(update, source))) as statuses:
                async for status in statuses:
                    yield pb.UpdateWeightsResponse(status=status)

    async def GetWeights(
        self, request: pb.GetWeightsRequest, context: Context
    ) -> pb.GetWeightsResponse:
        """Which weights answer, and what is under way."""
        return await self._unary(request, context, self._get_weights)

    async def AbortUpdate(
        self, request: pb.AbortUpdateRequest, context: Context
    ) -> pb.AbortUpdateResponse:
        """Gives up an update that is not committed yet."""
        return await self._unary(request, context, self._abort_update)

    async def FlushCache(
        self, request: pb.FlushCacheRequest, context: Context
    ) -> pb.FlushCacheResponse:
        """Forgets cached prompts."""
        return await self._unary(request, context, self._flush_cache)

    async def Resume(self, request: pb.ResumeRequest, context: Context) -> pb.ResumeResponse:
        """Takes calls again."""
        return await self._unary(request, context, self._resume)

    async def Drain(
        self, request: pb.DrainRequest, context: Context
    ) -> AsyncIterator[pb.DrainResponse]:
        """Refuses new calls, and tells when those that were admitted have ended."""
        async with _abort_on_fault(context, "Drain"):
            self._check_caller(context)
            refuse_unknown_fields(request)
            pool = self._pool(request.model)
            pool.pause()
            log.info("drain", identity=identity_of(context))
            last = -STATUS_SECONDS
            while left := _left_while_drained(pool):
                now = time.monotonic()
                if now - last >= STATUS_SECONDS:
                    last = now
                    yield pb.DrainResponse(calls_left=left)
                    continue  # that took its time, and all may be over
                with suppress(TimeoutError):
                    async with asyncio.timeout(last + STATUS_SECONDS - now):
                        await pool.wait_changed()
            yield pb.DrainResponse(calls_left=0, drained=True)

    async def _get_weights(self, request: pb.GetWeightsRequest) -> pb.GetWeightsResponse:
        pool = self._pool(request.model)
        weights = pool.weights
        info = weights.current.info
        response = pb.GetWeightsResponse(
            model=pool.name,
            version=info.weight_version,
            weights_digest=info.weights_digest,
            numerics_id=info.numerics_id,
            updates_committed=weights.committed,
            stream_timeout_seconds=self._config.stream_timeout,
        )
        if weights.update is not None:
            response.update.CopyFrom(status_message(weights.update.look()))
        if weights.last is not None:
            response.last_update.CopyFrom(status_message(weights.last))
        for held in weights.weight_sets.older:
            parts = sum(p.weights == held.number for w in pool.workers for p in w.parts.values())
            response.held.add(
                version=held.info.weight_version,
                weights_digest=held.info.weights_digest,
                running_parts=parts,
            )
        if request.list_tensors:
            response.tensors.extend(map(tensor_message, info.tensors))
        return response

    async def _abort_update(self, request: pb.AbortUpdateRequest) -> pb.AbortUpdateResponse:
        status = self._pool(request.model).weights.abort(request.update_id)
        return pb.AbortUpdateResponse(status=status_message(status))

    async def _flush_cache(self, request: pb.FlushCacheRequest) -> pb.FlushCacheResponse:
        pool = self._pool(request.model)
        info = pool.weights.current.info
        workers = [w for w in pool.workers if w.is_ready] if info.packed else []
        freed = await pool.cache.flush(workers)
        return pb.FlushCacheResponse(pages_freed=sum(freed), workers=len(workers))

    async def _resume(self, request: pb.ResumeRequest) -> pb.ResumeResponse:
        self._pool(request.model).resume()
        return pb.ResumeResponse()

    def _pool(self, model: str) -> WorkerPool:
        return self._models.find(model).pool

    def _check_caller(self, context: Context) -> None:
        """Raises ServiceError for a caller without the scope; tokens are looked at before."""
        names = self._config.names
        if names is not None and identity_of(context) not in names:
            message = f"{identity_of(context)!r} is none of those that --admin-names lists"
            raise ServiceError(Fault(Reason.PERMISSION_DENIED, message))

    async def _unary(
        self, request: Any, context: Context, handler: Callable[[Any], Awaitable[Response]]
    ) -> Response:
        async with _abort_on_fault(context, request.DESCRIPTOR.name.removesuffix("Request")):
            self._check_caller(context)
            refuse_unknown_fields(request)
            return await handler(request)


def _abort_on_fault(context: Context, rpc: str) -> AbstractAsyncContextManager[Any]:
    """See `errors.abort_on_fault`; these RPCs bring no id of their own."""
    return abort_on_fault(context, rpc, new_request_id(), identity_of(context))


def _left_while_drained(pool: WorkerPool) -> int:
    """Calls that are not over yet.

    Raises:
        ServiceError: CALLS_STILL_RUNNING: an admin had calls taken again, which may come for ever.
    """
    if pool.state in _TAKING_CALLS:
        message = "Resume had calls taken again before the server was drained"
        raise ServiceError(Fault(Reason.CALLS_STILL_RUNNING, message))
    return pool.calls_left


async def _read(update: WeightUpdate, source: EngineConfig) -> None:
    await update.read_files(source)
    await update.commit()


def add_to_server(servicer: AdminServicer, server: grpc.aio.Server) -> None:
    """Registers the service, with a reader that leaves the tensors of a stream where they came."""
    unary, streamed = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
    handlers = {
        name: make(
            getattr(servicer, name),
            request_deserializer=request.FromString,
            response_serializer=response.SerializeToString,
        )
        for name, make, request, response in (
            ("UpdateWeights", streamed, pb.UpdateWeightsRequest, pb.UpdateWeightsResponse),
            ("GetWeights", unary, pb.GetWeightsRequest, pb.GetWeightsResponse),
            ("AbortUpdate", unary, pb.AbortUpdateRequest, pb.AbortUpdateResponse),
            ("FlushCache", unary, pb.FlushCacheRequest, pb.FlushCacheResponse),
            ("Drain", streamed, pb.DrainRequest, pb.DrainResponse),
            ("Resume", unary, pb.ResumeRequest, pb.ResumeResponse),
        )
    }
    handlers["PushWeights"] = grpc.stream_stream_rpc_method_handler(
        servicer.PushWeights,
        request_deserializer=read_push,  # type: ignore[arg-type]  # a message or what stands for it
        response_serializer=pb.PushWeightsResponse.SerializeToString,
    )
    generic = grpc.method_handlers_generic_handler(SERVICE_NAME, handlers)
    server.add_generic_rpc_handlers((generic,))
