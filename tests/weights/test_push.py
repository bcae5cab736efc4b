"""Weights through the contract: what answers after an update, and that nothing else changed."""

from __future__ import annotations

import numpy as np
import torch

from scoring_client.proto import weights_pb2
from tests.weights.conftest import WeightServer, weight_server
from tests.weights.trainer import TOLERANCE, Trainer

PROMPT, COMPLETION = list(range(40, 70)), list(range(300, 320))


async def test_there_and_back(served: WeightServer) -> None:
    """New weights give plain torch's numbers; the first ones again give their first bits."""
    trainer = Trainer()
    before = await served.weights()
    first = await served.score(PROMPT, COMPLETION)
    version = trainer.step()
    statuses = await served.push(trainer.states[version], version)
    assert statuses[-1].phase == weights_pb2.WEIGHT_UPDATE_PHASE_COMMITTED
    assert statuses[-1].staging == weights_pb2.STAGING_MODE_BESIDE
    assert statuses[-1].bytes_received == statuses[-1].bytes_total > 1_000_000
    after = await served.weights()
    assert (after.version, after.updates_committed) == (version, before.updates_committed + 1)
    assert after.weights_digest == statuses[-1].weights_digest != before.weights_digest
    assert after.numerics_id != before.numerics_id
    second = await served.score(PROMPT, COMPLETION)
    assert second.weight_version == version
    expected = trainer.logprobs(version, PROMPT, COMPLETION)
    assert np.abs(np.array(second.logprobs) - expected.numpy()).max() < TOLERANCE
    assert np.abs(np.array(second.logprobs) - np.array(first.logprobs)).max() > 100 * TOLERANCE

    await served.push(trainer.states[0], 0, allow_older_version=True)
    again = await served.weights()
    assert (again.version, again.weights_digest) == (0, before.weights_digest)
    assert again.numerics_id == before.numerics_id
    third = await served.score(PROMPT, COMPLETION)
    assert list(third.logprobs) == list(first.logprobs)
