"""What the machine allows: a copy, SHA-256, and bare gRPC streams of messages like a push's."""

from __future__ import annotations

import asyncio
import hashlib
import time
from multiprocessing.connection import Connection
from typing import Any

import grpc
import torch

from benchmarks.children import child
from benchmarks.machine import copy_rate

_MESSAGE_BYTES = 2 << 20


def limits(tensors: dict[str, torch.Tensor], total: int) -> dict[str, Any]:
    """GB/s of each; a bare stream has as many bytes as a push, `total`."""
    largest = max(tensors.values(), key=torch.Tensor.numel)
    view = memoryview(largest.view(torch.uint8).numpy()).cast("B")
    began = time.perf_counter()
    hashlib.sha256(view).digest()
    sha256 = len(view) / (time.perf_counter() - began) / 1e9
    return {
        "copy_gb_per_second": copy_rate() / 2e9,
        "sha256_gb_per_second": sha256,
        "bare_grpc_gb_per_second": {
            client: _bare_stream(client, total) for client in ("sync", "aio")
        },
    }


def _bare_stream(kind: str, total: int) -> list[float]:
    """GB/s of 2 MiB messages from one process to an asyncio server in another."""
    count = total // _MESSAGE_BYTES
    source = memoryview(bytearray(_MESSAGE_BYTES))
    rates = []
    with child(_discard_bytes) as (_, pipe):
        port = pipe.recv()
        for _ in range(4):
            began = time.perf_counter()
            if kind == "sync":
                _send_sync(port, source, count)
            else:
                asyncio.run(_send_aio(port, source, count))
            rates.append(count * _MESSAGE_BYTES / (time.perf_counter() - began) / 1e9)
    return rates[1:]


def _send_sync(port: int, source: memoryview, count: int) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        channel.stream_unary("/bare.Sink/Put")(bytes(source) for _ in range(count))


async def _send_aio(port: int, source: memoryview, count: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_unary("/bare.Sink/Put")()
        for _ in range(count):
            await call.write(bytes(source))
        await call.done_writing()
        await call


def _discard_bytes(pipe: Connection) -> None:
    asyncio.run(_run_sink(pipe))


async def _run_sink(pipe: Connection) -> None:
    async def put(messages: Any, context: Any) -> bytes:
        async for _ in messages:
            pass
        return b""

    server = grpc.aio.server()
    handler = grpc.stream_unary_rpc_method_handler(put)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("bare.Sink", {"Put": handler}),)
    )
    pipe.send(server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    await asyncio.Event().wait()
