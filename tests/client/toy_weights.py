"""A real gRPC server with AdminService and tensors in memory; faults are constructor arguments."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from scoring_client.proto import admin_pb2, admin_pb2_grpc, weights_pb2
from tests.client.toy_answers import packed
from tests.contract_digest import contract_digest

Spec = tuple[str, tuple[int, ...], str]
"""Element type, shape, name of the tensor that it is tied to."""


class RawMessages(grpc.ServerInterceptor):
    """Keeps the bytes of every message of a push as they came."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = continuation(details)
        if handler is None or not details.method.endswith("/PushWeights"):
            return handler
        return handler._replace(request_deserializer=self._read)

    def _read(self, message: bytes) -> Any:
        self.kept.append(message)
        return admin_pb2.PushWeightsRequest.FromString(message)


class WeightsServer(admin_pb2_grpc.AdminServiceServicer):
    """Takes weights while it is entered, as strictly as the contract says.

    Args:
        specs: The model's tensors.
        fail: Called with each message and their number so far; what it returns ends the call, as
            (code, reason, message).
        slow: Seconds that each part takes.
        commit_slow: Seconds between phases at the commit.
        loses_status: Calls that ``fail`` ends have INTERNAL for a status and no details, which is
            what grpc.aio makes of one that comes while a message is being written.
        other_update: GetWeights tells of an update that somebody else began and that failed since.
        checkpoint_names: Other names of tensors, or those of their parts.
    """

    def __init__(
        self,
        specs: dict[str, Spec],
        *,
        version: int = 0,
        fail: Callable[[Any, int], tuple[grpc.StatusCode, str, str] | None] | None = None,
        slow: float = 0.0,
        commit_slow: float = 0.0,
        loses_status: bool = False,
        other_update: bool = False,
        checkpoint_names: dict[str, list[str]] | None = None,
    ) -> None:
        self.specs = specs
        self.checkpoint_names = checkpoint_names or {}
        self.version = version
        self.tensors: dict[str, bytes] = {}
        self.requests: list[Any] = []
        self.drains = 0
        self.metadata: list[dict[str, str]] = []
        self.message_sizes: list[int] = []
        self.received = 0
        self.ended = threading.Event()
        self._fail, self._slow, self._commit_slow = fail, slow, commit_slow
        self._loses_status, self._other_update = loses_status, other_update
        self._last: weights_pb2.WeightUpdateStatus | None = None
        self._busy = threading.Lock()
        self.raw = RawMessages()
        self._server = grpc.server(
            futures.ThreadPoolExecutor(8),
            options=[("grpc.so_reuseport", 0)],
            interceptors=[self.raw],
        )
        admin_pb2_grpc.add_AdminServiceServicer_to_server(self, self._server)
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> "WeightsServer":
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(grace=0).wait()

    def digest(self) -> str:
        return contract_digest(
            {
                name: (dtype, shape, self.tensors[name])
                for name, (dtype, shape, tied) in self.specs.items()
                if not tied
            }
        )

    # RPCs

    def GetWeights(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.metadata.append(dict(context.invocation_metadata()))
        if request.model not in ("", "toy"):
            abort(context, grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", "there is: toy")
        answer = admin_pb2.GetWeightsResponse(model="toy", version=self.version)
        if self._busy.locked():
            answer.update.CopyFrom(self._status("RECEIVING", 0).status)
        if self._last is not None:
            answer.last_update.CopyFrom(self._last)
        if request.list_tensors:
            for name, (dtype, shape, tied) in sorted(self.specs.items()):
                kind = f"WEIGHT_DATA_TYPE_{dtype.upper()}"
                answer.tensors.add(
                    name=name,
                    dtype=kind,
                    shape=shape,
                    tied_to=tied,
                    checkpoint_names=self.checkpoint_names.get(name, ()),
                )
        return answer

    def PushWeights(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:  # noqa: N802
        if not self._busy.acquire(blocking=False):
            next(requests)
            abort(context, grpc.StatusCode.ABORTED, "UPDATE_IN_PROGRESS", "one at a time")
        try:
            yield from self._receive(requests, context)
        finally:
            self._busy.release()
            self.ended.set()

    def _receive(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        new: dict[str, bytearray] = {}
        version = 0
        for number, request in enumerate(requests):
            self.requests.append(request)
            self.message_sizes.append(request.ByteSize())
            fault = self._fail(request, number) if self._fail else None
            if fault is not None:
                self._refuse(context, version, *fault)
            step = request.WhichOneof("step")
            assert (step == "begin") is (number == 0)
            if step == "begin":
                version = request.begin.options.version
                if version <= self.version and not request.begin.options.allow_older_version:
                    code = grpc.StatusCode.FAILED_PRECONDITION
                    abort(context, code, "WEIGHT_VERSION_NOT_NEWER", "not newer")
                yield self._status("RECEIVING", version)
            elif step == "part":
                time.sleep(self._slow)
                for chunk in request.part.chunks:
                    self._take(new, chunk)
            else:
                yield from self._commit(new, request.commit, version, context)
                return

    def _refuse(
        self, context: Any, version: int, code: grpc.StatusCode, reason: str, message: str
    ) -> None:
        """Fail the update, whatever becomes of the status on its way."""
        last = self._status("FAILED", version).status
        last.failure.CopyFrom(refusal(code, reason, message))
        if self._other_update:
            last.update_id = "u2"
        self._last = last
        if self._loses_status:
            context.abort(grpc.StatusCode.INTERNAL, "Internal error from Core")
        abort(context, code, reason, message)

    def _take(self, new: dict[str, bytearray], chunk: Any) -> None:
        dtype, shape, _ = self.specs[chunk.name]
        kind = weights_pb2.WeightDataType.Name(chunk.dtype)
        convert = self.requests[0].begin.options.convert_dtypes
        assert convert or kind == f"WEIGHT_DATA_TYPE_{dtype.upper()}"
        assert tuple(chunk.shape) == shape
        held = new.setdefault(chunk.name, bytearray())
        assert chunk.offset == len(held)
        held += chunk.data
        self.received += len(chunk.data)

    def _commit(self, new: Any, commit: Any, version: int, context: Any) -> Iterator[Any]:
        for name, held in new.items():
            tied = self.specs[name][2]
            self.tensors[tied or name] = bytes(held)
        yield self._status("STAGING", version)
        time.sleep(self._commit_slow)
        if commit.weights_digest and commit.weights_digest != self.digest():
            code = grpc.StatusCode.FAILED_PRECONDITION
            abort(context, code, "WEIGHTS_DIGEST_MISMATCH", "another digest")
        self.version = version
        yield self._status("COMMITTED", version)

    def _status(self, phase: str, version: int) -> Any:
        status = weights_pb2.WeightUpdateStatus(
            update_id="u1",
            version=version,
            phase=f"WEIGHT_UPDATE_PHASE_{phase}",
            bytes_received=self.received,
            staging="STAGING_MODE_BESIDE" if phase == "COMMITTED" else None,
        )
        return admin_pb2.PushWeightsResponse(status=status)

    def UpdateWeights(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        self.requests.append(request)
        if request.path == "/nowhere":
            abort(context, grpc.StatusCode.NOT_FOUND, "WEIGHTS_NOT_FOUND", "nothing there")
        for phase in ("RECEIVING", "STAGING", "COMMITTED"):
            status = self._status(phase, request.options.version).status
            yield admin_pb2.UpdateWeightsResponse(status=status)
        self.version = request.options.version

    def AbortUpdate(self, request: Any, context: Any) -> Any:  # noqa: N802
        code = grpc.StatusCode.NOT_FOUND
        abort(context, code, "UPDATE_NOT_FOUND", f"no update {request.update_id}")

    def FlushCache(self, request: Any, context: Any) -> Any:  # noqa: N802
        return admin_pb2.FlushCacheResponse(pages_freed=12, workers=1)

    def Drain(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        self.drains += 1
        yield admin_pb2.DrainResponse(calls_left=2)
        yield admin_pb2.DrainResponse(calls_left=0, drained=True)

    def Resume(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.requests.append(request)
        return admin_pb2.ResumeResponse()


def abort(context: Any, code: grpc.StatusCode, reason: str, message: str) -> None:
    status = refusal(code, reason, message)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, message)


def refusal(code: grpc.StatusCode, reason: str, message: str) -> status_pb2.Status:
    detail = error_details_pb2.ErrorInfo(reason=reason, domain="scoring.v1")
    return status_pb2.Status(code=code.value[0], message=message, details=packed(detail))
