"""A real gRPC server that answers from the toy model, with faults given to its constructor."""

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

from scoring_client.proto import (
    context_pb2,
    model_info_pb2,
    sample_pb2,
    score_pb2,
    service_pb2_grpc,
    tokenize_pb2,
    topk_pb2,
)
from tests.client import toy_model
from tests.client.toy_answers import ToyAnswers, packed, processings, resolved_values

MODEL = "toy"
PREFERRED_TOKENS = 16


@dataclass(frozen=True)
class Fault:
    """Ends a streaming call with an error."""

    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
    message: str = "the worker died"
    reason: str = "WORKER_DIED"
    after_results: int = 0
    """Results that are sent before."""
    retry_delay: float | None = None
    field: str = ""
    """Field of a violation; none when empty."""
    server: str = ""
    """Which server says so; "" = it does not say."""
    version_after: int | None = None
    """Weights that later calls are answered from."""


Tamper = Callable[[Iterator[Any]], Iterable[Any]]


class ToyServer(service_pb2_grpc.ScoringServiceServicer):
    """Serves on a free port of the loopback while it is entered.

    Args:
        faults: One for each streaming call, in order; None and beyond the list = no fault.
        unary_faults: The same for GetModelInfo and ListModels.
        slice_seed: Decides how rows are cut into slices and how those of different items mix.
        max_slice: Most rows in a slice.
        numbers: Answer in plain numbers whatever the request's encoding.
        tamper: Rewrites the messages of a streaming answer.
        step_delay: Seconds before each result.
        hold: Waited for before the first result.
        max_request_bytes: Largest request that gRPC accepts.
        bos: Whether GetModelInfo tells of a beginning-of-sequence token.
        credentials: TLS.
        preferred_tokens: Limit preferred_tokens_per_call of GetModelInfo.
        digest: weights_digest of answers.
        version: weight_version of answers; a call that expects another one is refused.
        says_who: Whether such a refusal says which server it comes from.
    """

    def __init__(
        self,
        *,
        faults: Iterable[Fault | None] = (),
        unary_faults: Iterable[Fault | None] = (),
        slice_seed: int = 0,
        max_slice: int = 4,
        numbers: bool = False,
        tamper: Tamper | None = None,
        step_delay: float = 0.0,
        hold: threading.Event | None = None,
        max_request_bytes: int = 4 << 20,
        bos: bool = True,
        credentials: grpc.ServerCredentials | None = None,
        preferred_tokens: int = PREFERRED_TOKENS,
        digest: str = "",
        version: int = 0,
        says_who: bool = True,
    ) -> None:
        self.requests: list[Any] = []
        self.metadata: list[dict[str, str]] = []
        self.times_left: list[float] = []
        self.asked = threading.Event()
        self.cancelled = threading.Event()
        self.version = version
        self.says_who = says_who
        self.preferred_tokens = preferred_tokens
        self._digest = digest
        self._faults = list(faults)
        self.unary_faults = list(unary_faults)
        self.random = random.Random(slice_seed)
        self.max_slice = max_slice
        self.numbers = numbers
        self._tamper = tamper
        self._step_delay = step_delay
        self.hold = hold
        self._bos = bos
        self._server = grpc.server(
            futures.ThreadPoolExecutor(16),
            options=[
                ("grpc.max_receive_message_length", max_request_bytes),
                ("grpc.so_reuseport", 0),
            ],
        )
        service_pb2_grpc.add_ScoringServiceServicer_to_server(self, self._server)
        if credentials is None:
            self.port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self.target = f"127.0.0.1:{self.port}"

    def __enter__(self) -> "ToyServer":
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.hold is not None:
            self.hold.set()
        self._server.stop(grace=0).wait()

    # RPCs

    def Score(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        return self._answer(request, context, score_pb2.ScoreResponse)

    def TopKLogprobs(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        return self._answer(request, context, topk_pb2.TopKLogprobsResponse)

    def Sample(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        return self._answer(request, context, sample_pb2.SampleResponse)

    def ListModels(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._unary(context)
        return model_info_pb2.ListModelsResponse(
            models=[model_info_pb2.Model(name=MODEL, ready=True)]
        )

    def GetModelInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._unary(context)
        self._check_model(request.model, context)
        info = model_info_pb2.GetModelInfoResponse(
            name=MODEL,
            vocab_size=toy_model.VOCAB_SIZE,
            tokenizer_size=toy_model.VOCAB_SIZE,
            weights_digest="ab" * 32,
            weight_version=self.version,
            eos_token_ids=[toy_model.EOS],
            path=model_info_pb2.MODEL_PATH_PLAIN,
            path_reason="a toy",
            contract_revision=1,
            limits=model_info_pb2.Limits(
                max_request_bytes=4 << 20,
                max_k=258,
                preferred_tokens_per_call=self.preferred_tokens,
            ),
            dtype="float32",
            architecture="ToyForCausalLM",
            parameter_count=1234,
        )
        info.generation_config.update({"top_k": 20, "temperature": 0.6, "do_sample": True})
        if self._bos:
            info.bos_token_id = toy_model.BOS
        return info

    def Tokenize(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._unary(context)
        self.requests.append(request)
        self._check_model(request.model, context)
        special = not request.HasField("add_special_tokens") or request.add_special_tokens
        ids = [toy_model.encode(text, add_special_tokens=special) for text in request.texts]
        return tokenize_pb2.TokenizeResponse(
            texts=[tokenize_pb2.TokenizedText(token_ids=found) for found in ids]
        )

    # How an answer is put together

    def _unary(self, context: Any) -> None:
        self.metadata.append(dict(context.invocation_metadata()))
        self.times_left.append(context.time_remaining())
        fault = self.unary_faults.pop(0) if self.unary_faults else None
        if fault is not None:
            _abort(context, fault)

    def _check_model(self, name: str, context: Any) -> None:
        if name not in ("", MODEL):
            code = grpc.StatusCode.NOT_FOUND
            message = f'no model "{name}" is served; there is: {MODEL}'
            _abort(context, Fault(code, message, "MODEL_NOT_FOUND"))

    def _check_version(self, expect: Any, context: Any) -> None:
        if expect.HasField("weight_version") and expect.weight_version != self.version:
            code = grpc.StatusCode.FAILED_PRECONDITION
            name = self.target if self.says_who else ""
            fault = Fault(code, "another version", "WEIGHT_VERSION_MISMATCH", server=name)
            _abort(context, fault)

    def _answer(self, request: Any, context: Any, response: Any) -> Iterator[Any]:
        self.requests.append(request)
        self.asked.set()
        self.metadata.append(dict(context.invocation_metadata()))
        context.add_callback(self.cancelled.set)
        self._check_model(request.model, context)
        self._check_version(request.expect, context)
        fault = self._faults.pop(0) if self._faults else None
        messages = self._messages(request, response)
        sent = 0
        if fault is not None and fault.after_results == 0:
            self._break(context, fault)
        for message in self._tamper(messages) if self._tamper else messages:
            yield message
            sent += len(message.results)
            if fault is not None and sent >= fault.after_results:
                self._break(context, fault)

    def _break(self, context: Any, fault: Fault) -> None:
        if fault.version_after is not None:
            self.version = fault.version_after
        _abort(context, fault)

    def _messages(self, request: Any, response: Any) -> Iterator[Any]:
        first = response(
            provenance=context_pb2.Provenance(
                model=MODEL,
                weight_version=self.version,
                weights_digest=self._digest,
                request_id=request.context.request_id,
            ),
            processing=[resolved_values(processing) for processing in processings(request)],
        )
        first.progress.tokens_ahead = 77
        yield first
        if self.hold is not None:
            self.hold.wait(timeout=20)
        ok = failed = 0
        answers = ToyAnswers(self.random, self.max_slice, self.numbers, self.version)
        for result in answers.results(request):
            time.sleep(self._step_delay)
            score = result.score if isinstance(result, topk_pb2.TopKResult) else result
            failed += score.HasField("status")
            ok += score.last
            yield response(results=[result])
        summary = context_pb2.Summary(items_ok=ok, items_failed=failed)
        summary.usage.completion_tokens = 10
        yield response(summary=summary)


def _abort(context: Any, fault: Fault) -> None:
    details: list[Any] = []
    if fault.reason:
        metadata = {"server": fault.server} if fault.server else {}
        info = error_details_pb2.ErrorInfo(
            reason=fault.reason, domain="scoring.v1", metadata=metadata
        )
        details.append(info)
    if fault.retry_delay is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(fault.retry_delay * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if fault.field:
        bad = error_details_pb2.BadRequest()
        bad.field_violations.add(field=fault.field, description="is wrong")
        details.append(bad)
    status = status_pb2.Status(
        code=fault.code.value[0], message=fault.message, details=packed(*details)
    )
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(fault.code, fault.message)
