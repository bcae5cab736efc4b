"""Sends what `weight_fuzzing` makes, and holds every outcome against `weight_model`."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc

from scoring_client.proto import admin_pb2, admin_pb2_grpc, service_pb2_grpc
from tests.chaos.weight_fuzzing import Files, Push, damaged_files, push, update
from tests.chaos.weight_model import Refused, Weights, check_digest, check_options, pushed
from tests.e2e.calls import reason_of, sample_request, score_request

REFUSALS = {
    "INVALID_FIELD", "UNKNOWN_FIELD", "MODEL_NOT_FOUND", "WEIGHT_VERSION_MISMATCH",
    "WEIGHT_VERSION_NOT_NEWER", "WEIGHTS_INCOMPLETE", "WEIGHTS_DIGEST_MISMATCH",
}  # fmt: skip
"""What a stream is refused for that is none."""
FILE_REFUSALS = (REFUSALS - {"WEIGHTS_INCOMPLETE"}) | {
    "WEIGHTS_UNREADABLE", "WEIGHTS_NOT_FOUND", "SOURCE_NOT_ALLOWED",
}  # fmt: skip
LEFT = {"UPDATE_ABORTED", "CANCELLED"}
"""How one ends that somebody gave up, or whose caller left."""
PATIENCE = 120.0


class Fuzzer:
    """One caller of AdminService, who knows at every moment what has to answer.

    Args:
        channel: to the server.
        running: what answers at the beginning.
        seed: of everything that is drawn.
    """

    def __init__(self, channel: grpc.aio.Channel, running: Weights, seed: int) -> None:
        self.running = running
        self.seen: Counter[tuple[str, str]] = Counter()
        self.rng = random.Random(seed)
        self._aborting = asyncio.Lock()
        self._versions = {running.version}
        """Every one that has answered."""
        self._admin: Any = admin_pb2_grpc.AdminServiceStub(channel)
        # Bytes as they are: what is sent need be no message.
        self._push: Any = channel.stream_stream(
            "/scoring.v1.AdminService/PushWeights",
            response_deserializer=admin_pb2.PushWeightsResponse.FromString,
        )

    async def send_push(self) -> None:
        """One stream, and whether what came of it is what the contract says."""
        sent = push(self.rng, self.running)
        try:
            wanted: Weights | None = pushed(sent.messages, self.running)
        except Refused:
            wanted = None
        reason = await self._pushed(sent)
        disturbed = sent.hang_up is not None or sent.abort is not None
        allowed = REFUSALS | {"UPDATE_ABORTED"} if wanted is None else {"OK"}
        if disturbed:
            allowed = {*allowed, *LEFT, "UPDATE_APPLYING"}
        allowed |= self._may_be_in_use(wanted)
        await self._check("PushWeights", reason, wanted, allowed, sent)

    async def send_damaged(self, path: Path, original: dict[str, bytes], right: Path) -> None:
        """A request for files that were damaged: refused, unless transformers loads them still."""
        request = admin_pb2.UpdateWeightsRequest(path=str(path))
        request.options.version = newer = max(self._versions) + 1
        reason = await self._outcome(self._admin.UpdateWeights(request, timeout=PATIENCE))
        if reason == "OK":
            self.seen["UpdateWeights", reason] += 1
            self.running = Weights(newer, self.running.specs, original)  # these or others
            self._versions.add(newer)
            await self.restore(original, right)
        else:
            await self._check("UpdateWeights", reason, None, FILE_REFUSALS, request)

    async def send_update(self, path: Path | str, tensors: dict[str, bytes] | None) -> None:
        """One request for files.

        Args:
            path: of the files.
            tensors: that are in them; None = nothing that may be read.
        """
        sent = update(self.rng, str(path), self.running)
        wanted = None if tensors is None else self._loaded(sent, tensors)
        reason = await self._outcome(self._admin.UpdateWeights(sent, timeout=PATIENCE))
        allowed = FILE_REFUSALS if wanted is None else {"OK"}
        allowed |= self._may_be_in_use(wanted)
        await self._check("UpdateWeights", reason, wanted, allowed, sent)

    async def restore(self, tensors: dict[str, bytes], path: Path) -> None:
        """Puts weights back that are in files, under a newer version."""
        newer = Weights(max(self._versions) + 1, self.running.specs, tensors)
        request = admin_pb2.UpdateWeightsRequest(path=str(path))
        request.options.version = newer.version
        reason = await self._outcome(self._admin.UpdateWeights(request, timeout=PATIENCE))
        await self._check("UpdateWeights", reason, newer, {"OK"}, request)

    def _loaded(
        self, sent: admin_pb2.UpdateWeightsRequest, tensors: dict[str, bytes]
    ) -> Weights | None:
        new = Weights(sent.options.version, self.running.specs, tensors)
        same = new.version != self.running.version or new.digest == self.running.digest
        whole = not (sent.options.partial or sent.options.convert_dtypes)
        try:
            check_options(sent.options, self.running)
            check_digest(new.digest, sent.options.weights_digest)
        except Refused:
            return None
        named = sent.model in ("", "tiny") and sent.WhichOneof("source") == "path"
        return new if same and whole and named else None

    def _may_be_in_use(self, wanted: Weights | None) -> set[str]:
        """What new weights are refused for under a number that calls may still use for others."""
        taken = wanted is not None and wanted.version in self._versions
        return {"WEIGHT_VERSION_NOT_NEWER"} if taken else set()

    async def _pushed(self, sent: Push) -> str:
        async def messages() -> AsyncIterator[bytes]:
            for place, message in enumerate(sent.messages):
                await self._disturb(sent, place, call)
                yield message
            await self._disturb(sent, len(sent.messages), call)

        call = self._push(messages(), timeout=PATIENCE)
        reason = await self._outcome(call)
        async with self._aborting:  # an abort that is on its way is of this update, not of the next
            return reason

    async def _disturb(self, sent: Push, place: int, call: Any) -> None:
        if place == sent.hang_up:
            await asyncio.sleep(self.rng.choice((0.0, 0.01, 0.1)))
            call.cancel()
        elif place == sent.abort:
            await asyncio.sleep(self.rng.choice((0.0, 0.01, 0.1)))
            async with self._aborting:
                if not call.done():
                    with suppress(grpc.aio.AioRpcError):  # it has not begun, or is over
                        await self._admin.AbortUpdate(admin_pb2.AbortUpdateRequest())

    async def _outcome(self, call: Any) -> str:
        """OK, or why not."""
        try:
            async for _ in call:
                pass
        except asyncio.CancelledError:
            return "CANCELLED"
        except grpc.aio.AioRpcError as error:
            if error.details() == "Internal error from Core":
                # grpc.aio lost the status on its way, as it does of one that comes while it writes.
                weights = await self._admin.GetWeights(admin_pb2.GetWeightsRequest())
                assert weights.last_update.failure.code != grpc.StatusCode.INTERNAL.value[0]
                return "LOST"
            return reason_of(error) or error.code().name
        return "OK"

    async def _check(
        self, rpc: str, reason: str, wanted: Weights | None, allowed: set[str], sent: Any
    ) -> None:
        self.seen[rpc, reason] += 1
        lost = reason == "LOST" and allowed != {"OK"}
        assert reason in allowed or lost, (reason, sent)
        while True:
            found = await self._admin.GetWeights(admin_pb2.GetWeightsRequest())
            if not found.HasField("update"):
                break
            await asyncio.sleep(0.01)
        now = (found.version, found.weights_digest)
        before = (self.running.version, self.running.digest)
        if reason == "OK" or (wanted is not None and now != before):
            assert wanted is not None, sent
            assert now == (wanted.version, wanted.digest), sent
            self.running = wanted
            self._versions.add(wanted.version)
        assert now == (self.running.version, self.running.digest), (reason, sent)


async def running_weights(channel: grpc.aio.Channel, tensors: dict[str, bytes]) -> Weights:
    """What the server says that it has; `tensors` are the bytes that it was started with."""
    stub: Any = admin_pb2_grpc.AdminServiceStub(channel)
    found = await stub.GetWeights(admin_pb2.GetWeightsRequest(list_tensors=True))
    specs = {spec.name: spec for spec in found.tensors}
    firsts = {spec.tied_to or spec.name: spec.name for spec in found.tensors}
    held = {first: tensors.get(first) or tensors[firsts[first]] for first in firsts}
    weights = Weights(found.version, specs, held)
    assert weights.digest == found.weights_digest
    return weights


async def traffic(channel: grpc.aio.Channel, done: asyncio.Event) -> None:
    """Calls that run while weights change: each ends well, or its items say why not."""
    stub: Any = service_pb2_grpc.ScoringServiceStub(channel)
    while not done.is_set():
        async for _ in stub.Score(score_request([1, 2], [3, 4, 5], copies=4), timeout=PATIENCE):
            pass
        async for _ in stub.Sample(sample_request(32, n=4), timeout=PATIENCE):
            pass


async def send_updates(
    target: str, tensors: dict[str, bytes], found: Files, *, pushes: int, reads: int
) -> Counter[tuple[str, str]]:
    """Sends streams of weights and requests for files, and puts the weights back that were there.

    Args:
        target: of the server.
        tensors: bytes that it was started with, by name.
        found: checkpoints, in a folder that it may read.
        pushes: how many streams.
        reads: how many damaged checkpoints it is to read.
    """
    async with grpc.aio.insecure_channel(target) as channel:
        fuzzer = Fuzzer(channel, await running_weights(channel, tensors), seed=2)
        original = fuzzer.running.tensors
        done = asyncio.Event()
        others = asyncio.create_task(traffic(channel, done))
        for path in found.early:
            await fuzzer.send_update(path, None)
        for number in range(max(pushes, reads)):
            if number < pushes:
                await fuzzer.send_push()
            if number < reads:
                folder = damaged_files(fuzzer.rng, found, f"damaged-{number}")
                await fuzzer.send_damaged(folder, original, found.right)
            if number and number < reads:
                await fuzzer.send_update(found.right, original)
        done.set()
        await others
        await fuzzer.restore(original, found.right)
    return fuzzer.seen
