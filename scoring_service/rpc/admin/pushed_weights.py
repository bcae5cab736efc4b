"""The messages of a stream of weights, each in its place, on their way to an update."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from scoring_client.proto import admin_pb2 as pb
from scoring_client.proto.weights_pb2 import WeightChunk
from scoring_service.errors import Fault, Reason, ServiceError, invalid
from scoring_service.pool.weights.update import WeightUpdate
from scoring_service.rpc.admin.weight_messages import parse_chunk, parse_digest
from scoring_service.rpc.admin.weight_wire import WirePart
from scoring_service.rpc.handling.malformed import MalformedRequest
from scoring_service.rpc.parsing.unknown_fields import refuse_unknown_fields


class PushedWeights:
    """A stream of weights.

    Args:
        messages: of the call.
        patience: seconds of silence after which it is given up.
    """

    def __init__(self, messages: AsyncIterator[Any], patience: float) -> None:
        self._messages = aiter(messages)
        self._patience = patience
        self._count = 0

    async def begin(self) -> pb.PushWeightsBegin:
        """The first message.

        Raises:
            ServiceError: INVALID_FIELD, UPDATE_ABORTED.
        """
        first = await self._next()
        if isinstance(first, WirePart) or first is None or first.WhichOneof("step") != "begin":
            raise invalid("step", "a stream of weights begins with `begin`")
        begin: pb.PushWeightsBegin = first.begin
        return begin

    async def receive(self, update: WeightUpdate) -> None:
        """Everything after it, up to the commit.

        Raises:
            ServiceError: why the update failed.
        """
        while (message := await self._next()) is not None:
            if isinstance(message, WirePart):
                _take(update, message.chunks)
            elif message.WhichOneof("step") == "part":
                _take(update, [(c, memoryview(c.data)) for c in message.part.chunks])
            elif message.WhichOneof("step") == "commit":
                digest = parse_digest(message.commit.weights_digest, "commit.weights_digest")
                await update.commit(digest)
                return
            else:
                raise invalid("step", "`part` or `commit` comes here")
        message = "the stream ended without `commit`"
        raise ServiceError(Fault(Reason.UPDATE_ABORTED, message))

    async def _next(self) -> Any:
        """The next message, None after the last."""
        try:
            async with asyncio.timeout(self._patience):
                message = await anext(self._messages)
        except StopAsyncIteration:
            return None
        except TimeoutError:
            text = f"nothing came for {self._patience:g} s"
            raise ServiceError(Fault(Reason.UPDATE_ABORTED, text)) from None
        if isinstance(message, MalformedRequest):
            raise ServiceError(message.fault)
        if not isinstance(message, WirePart):
            refuse_unknown_fields(message)
        return message


def _take(update: WeightUpdate, chunks: Sequence[tuple[WeightChunk, memoryview]]) -> None:
    for place, (chunk, data) in enumerate(chunks):
        path = f"part.chunks[{place}]"
        refuse_unknown_fields(chunk)
        update.take(parse_chunk(chunk, data, path), path)
    if not chunks:
        raise invalid("part.chunks", "is empty")
