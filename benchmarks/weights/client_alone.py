"""The client by itself: pushes to a server that discards messages unread."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from concurrent import futures
from multiprocessing.connection import Connection
from typing import Any

import grpc
import torch

from benchmarks.children import child
from benchmarks.weights.tensors import bytes_of, masters
from scoring_client import AdminClient
from scoring_client.proto import admin_pb2, admin_pb2_grpc, weights_pb2


def client_alone(tensors: dict[str, torch.Tensor], repetitions: int) -> dict[str, Any]:
    """GB/s of `push_weights` to a server that discards messages unread."""
    specs = [(name, tuple(tensor.shape)) for name, tensor in sorted(tensors.items())]
    found: dict[str, Any] = {}
    total = bytes_of(tensors)
    with (
        child(_discard_weights, specs) as (_, pipe),
        AdminClient(f"127.0.0.1:{pipe.recv()}") as client,
    ):
        for name, given, options in (
            ("plain", tensors, {}),
            ("with digest", tensors, {"digest": True}),
            ("float32 converted here", masters(tensors), {"convert_dtypes": True}),
        ):
            found[name] = _rates(client, given, total, repetitions, options)
    return found


def _rates(
    client: AdminClient, tensors: Any, total: int, repetitions: int, options: Any
) -> dict[str, Any]:
    """GB/s of what is sent, `total` bytes."""
    rates, processor, faults = [], [], []
    for repetition in range(repetitions + 1):
        touched = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        cpu, began = time.process_time(), time.perf_counter()
        client.push_weights(tensors, version=1, **options)
        if repetition:
            rates.append(total / (time.perf_counter() - began) / 1e9)
            processor.append((time.process_time() - cpu) / (total / 1e9))
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - touched)
    return {
        "gb_per_second": rates,
        "processor_seconds_per_gb": processor,
        "page_faults": faults,
    }


class _Discarding(admin_pb2_grpc.AdminServiceServicer):
    def __init__(self, specs: list[tuple[str, tuple[int, ...]]]) -> None:
        self._specs = specs

    def GetWeights(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = admin_pb2.GetWeightsResponse()
        first = "model.embed_tokens.weight"
        for name, shape in self._specs:
            tied = first if name == "lm_head.weight" else ""
            answer.tensors.add(
                name=name, dtype="WEIGHT_DATA_TYPE_BFLOAT16", shape=shape, tied_to=tied
            )
        return answer


def _discard_weights(pipe: Connection, specs: Any) -> None:
    def push(messages: Iterator[bytes], context: Any) -> Iterator[Any]:
        for _ in messages:
            pass
        status = weights_pb2.WeightUpdateStatus(phase="WEIGHT_UPDATE_PHASE_COMMITTED")
        yield admin_pb2.PushWeightsResponse(status=status)

    server = grpc.server(futures.ThreadPoolExecutor(4))
    servicer = _Discarding(specs)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(servicer, server)
    raw = grpc.stream_stream_rpc_method_handler(
        push, response_serializer=admin_pb2.PushWeightsResponse.SerializeToString
    )
    get = grpc.unary_unary_rpc_method_handler(
        servicer.GetWeights,
        admin_pb2.GetWeightsRequest.FromString,
        admin_pb2.GetWeightsResponse.SerializeToString,
    )
    handlers = {"PushWeights": raw, "GetWeights": get}
    server.add_registered_method_handlers("scoring.v1.AdminService", handlers)
    pipe.send(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    server.wait_for_termination()
