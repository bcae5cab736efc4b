"""A sequence that is scored in many steps, and an update that is committed between them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

from scoring_client.proto import score_pb2, weights_pb2
from scoring_service.pool.workers.worker import Worker
from tests.rpc.calls import group
from tests.weights.conftest import WeightServer
from tests.weights.trainer import TOLERANCE, State, Trainer, commit, messages

PROMPT = list(range(40, 50))
COMPLETION = [(37 * i) % 2000 + 3 for i in range(2000)]


@dataclass
class Held:
    """An update of which everything was sent but its last message."""

    call: Any

    @classmethod
    async def begin(cls, server: WeightServer, state: State, version: int) -> Held:
        held = cls(server.admin.PushWeights())
        for message in list(messages(state, version))[:-1]:
            await held.call.write(message)
        return held

    async def commit(self) -> None:
        """Sends it."""
        await self.call.write(commit())

    async def committed(self) -> None:
        """Waits for the end."""
        status = None
        while (message := await self.call.read()) is not grpc.aio.EOF:
            status = message.status
        assert status is not None
        assert status.phase == weights_pb2.WEIGHT_UPDATE_PHASE_COMMITTED


async def long_sequence(
    server: WeightServer, after_first: Callable[[], Awaitable[None]]
) -> tuple[list[score_pb2.ScoreResult], list[int | None]]:
    """(slices, the version that ran when each came); something is done after the first of them."""
    request = score_pb2.ScoreRequest(groups=[group(PROMPT, COMPLETION)])
    slices: list[score_pb2.ScoreResult] = []
    versions: list[int | None] = []
    async for message in server.scoring.Score(request):
        if message.results and not slices:
            await after_first()
        slices += message.results
        versions += [server.pool.weight_version] * len(message.results)
    return slices, versions


def long_part(worker: Worker) -> bool:
    """Whether a worker has the sequence."""
    return any(part.tokens >= len(COMPLETION) for part in worker.parts.values())


def assert_plain(slices: list[score_pb2.ScoreResult], trainer: Trainer, version: int) -> None:
    """All rows are there once, of one version, as plain torch has them."""
    assert len(slices) > 4
    assert {piece.weight_version for piece in slices} == {version}
    assert [piece.start for piece in slices] == list(
        np.cumsum([0, *(len(piece.logprobs) for piece in slices[:-1])])
    )
    found = np.concatenate([piece.logprobs for piece in slices])
    expected = trainer.logprobs(version, PROMPT, COMPLETION).numpy()
    assert np.abs(found - expected).max() < TOLERANCE
