"""Requests that nobody would send: refused or answered, and nothing left behind."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError, Message

from benchmarks.machine import describe, origin
from scoring_client.proto import admin_pb2, admin_pb2_grpc, service_pb2_grpc
from scoring_service.models import tiny_model_path
from tests.chaos.fuzzing import ADMIN_REQUESTS, REQUESTS, mangled, request
from tests.chaos.weight_calls import send_updates
from tests.chaos.weight_fuzzing import files
from tests.e2e.calls import SERVICE, reason_of, scores, stub_of
from tests.e2e.processes import descriptors, idle, until
from tests.e2e.served import Served, serving
from tests.intensity import SOAK, short_or_long

REQUEST_COUNT = int(short_or_long(500, 17_000))
RAW_COUNT = int(short_or_long(150, 3_000))
PUSH_COUNT = int(short_or_long(80, 2_000))
"""Streams of weights."""
READ_COUNT = int(short_or_long(1, 15))
"""Checkpoints of which something is gone; a process of its own reads each, for seconds."""
AT_ONCE = 8
QUEUE_TOKENS = 60_000
"""Seconds of work: a request for four thousand samples is refused or answered, and no hang."""
ALL_REQUESTS = {**REQUESTS, **ADMIN_REQUESTS}
WEIGHTS = (5, 4, 5, 1, 1, 1, *[0.5] * len(ADMIN_REQUESTS))
"""How often each is sent."""
STREAMS = {"Score", "TopKLogprobs", "Sample"}

HELD_MEMORIES = 2
"""Of updates: that of the running weights, and one that the next update is written to."""
MEMORY_DESCRIPTORS = 2 * HELD_MEMORIES
"""Of these: each is open, and mapped through a descriptor of Python's own."""

ALLOWED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}


async def outcome(call: Any, streams: bool) -> tuple[grpc.StatusCode, str]:
    """How a call ended, and why."""
    try:
        if streams:
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error.code(), reason_of(error) or error.details() or ""
    return grpc.StatusCode.OK, ""


def waits(message: Any) -> bool:
    """Whether it asks for weights that never come."""
    return hasattr(message, "expect") and message.expect.HasField("min_weight_version")


def parsed(kind: type[Message], data: bytes) -> Message | None:
    """What the bytes mean, if they mean anything."""
    try:
        return kind.FromString(data)
    except DecodeError:
        return None


async def send_all(target: str) -> tuple[Counter[Any], list[Any]]:
    """Sends everything, a few at a time; how it ended, and what ended badly."""
    rng = random.Random(1)
    seen: Counter[Any] = Counter()
    bad: list[Any] = []
    gate = asyncio.Semaphore(AT_ONCE)
    # What waits for weights that never come is ended by its deadline alone; everything else ends by
    # itself, however busy the machine is: 4,096 tokens beside all the others have taken a minute.
    timeout = 240.0
    async with grpc.aio.insecure_channel(target) as channel:
        scoring = service_pb2_grpc.ScoringServiceStub(channel)
        admin = admin_pb2_grpc.AdminServiceStub(channel)

        def note(kind: str, ended: tuple[grpc.StatusCode, str], sent: Any, limit: float) -> None:
            seen[kind, ended[0].name] += 1
            late = ended[0] is grpc.StatusCode.DEADLINE_EXCEEDED and limit == timeout
            if ended[0] not in ALLOWED or late:
                bad.append((kind, ended, sent))

        async def structured(rpc: str, message: Any) -> None:
            async with gate:
                limit = 0.5 if waits(message) else timeout
                stub = admin if rpc in ADMIN_REQUESTS else scoring
                ended = await outcome(getattr(stub, rpc)(message, timeout=limit), rpc in STREAMS)
                note(rpc, ended, message, limit)

        async def raw(rpc: str, data: bytes) -> None:
            async with gate:
                streams = rpc in STREAMS
                make = channel.unary_stream if streams else channel.unary_unary
                limit = 0.5 if waits(parsed(ALL_REQUESTS[rpc], data)) else timeout
                service = admin_service if rpc in ADMIN_REQUESTS else SERVICE
                ended = await outcome(make(f"/{service}/{rpc}")(data, timeout=limit), streams)
                note("raw", ended, data, limit)

        admin_service = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name
        names = list(ALL_REQUESTS)
        jobs = [
            structured(rpc, request(rng, ALL_REQUESTS[rpc]))
            for rpc in rng.choices(names, weights=WEIGHTS, k=REQUEST_COUNT)
        ]
        for rpc in rng.choices(names, k=RAW_COUNT):
            data = request(rng, ALL_REQUESTS[rpc]).SerializeToString()
            jobs.append(raw(rpc, mangled(rng, data)))
        await asyncio.gather(*jobs)
    return seen, bad


def write_figures(seen: Counter[Any], folder: Path) -> None:
    """How many requests of a kind ended how."""
    figures: dict[str, Any] = {"requests": seen.total()}
    for (rpc, code), count in sorted(seen.items()):
        figures.setdefault(rpc, {})[code] = count
    print(figures)
    out = Path("benchmarks/results") if SOAK else folder
    told = {**origin(), "machine": describe(), **figures}
    (out / "fuzz.json").write_text(json.dumps(told, indent=1) + "\n")


@pytest.mark.timeout(1800)
def test_nothing_crashes_hangs_or_leaks(tmp_path: Path) -> None:
    checkpoints = files(tmp_path)
    flags = (
        "--metrics-port", "0", "--max-k", "256", "--max-queue-tokens", str(QUEUE_TOKENS),
        "--weights-root", str(tmp_path),
    )  # fmt: skip
    with serving(*flags) as server:
        pids = (server.process.pid, server_worker(server))
        with stub_of(ready(server)) as stub:
            before = scores(stub)
        opened = [descriptors(pid) for pid in pids]
        seen, bad = asyncio.run(send_all(ready(server)))
        assert not bad, bad[:3]
        updates = asyncio.run(
            send_updates(
                ready(server), saved_tensors(), checkpoints, pushes=PUSH_COUNT, reads=READ_COUNT
            )
        )
        write_figures(seen + updates, tmp_path)
        assert updates["PushWeights", "OK"] > PUSH_COUNT / 10, "nearly every stream was refused"
        answered = sum(
            count for (rpc, code), count in seen.items() if rpc in STREAMS and code == "OK"
        )
        assert answered > REQUEST_COUNT / 20, "nearly everything was refused: nothing was tried"
        until(lambda: idle(pids[1]), patience=30)
        found = server.metrics
        assert found["scoring_queue_tokens"] == found["scoring_queue_taken_tokens"] == 0
        assert found["scoring_num_requests_running"] == found["scoring_num_requests_waiting"] == 0
        assert found["scoring_unread_reply_bytes"] == 0
        until(lambda: server.metrics["scoring_kv_cache_usage_perc"] == 0.0, patience=10)
        for pid in pids:
            until(lambda pid=pid: len(weight_memories(pid)) <= HELD_MEMORIES, patience=20)
        for pid, count in zip(pids, opened, strict=True):
            count += MEMORY_DESCRIPTORS
            until(lambda pid=pid, count=count: descriptors(pid) <= count + 2, patience=20)
        assert server_worker(server) == pids[1]
        assert "Traceback" not in "".join(server.err)
        with stub_of(ready(server)) as stub:
            assert scores(stub) == before


def saved_tensors() -> dict[str, bytes]:
    """Bytes of the packaged model's tensors, as its file has them."""
    data = (tiny_model_path() / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    named = json.loads(data[8:start])
    named.pop("__metadata__")
    places = {name: tensor["data_offsets"] for name, tensor in named.items()}
    return {name: data[start + a : start + b] for name, (a, b) in places.items()}


def ready(server: Served) -> str:
    return server.ready


def weight_memories(pid: int) -> set[str]:
    """Inodes of the memories of updates that the process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split()[4] for line in lines if "memfd:weights" in line}


def server_worker(server: Served) -> int:
    assert server.ready
    return server.worker_pid
