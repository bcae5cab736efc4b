"""Pushed weights give the bits that the same weights give when they are loaded from files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from scoring_client.proto import score_pb2, weights_pb2
from scoring_service.models import tiny_model_path
from tests.rpc.calls import collect, group, score_slices
from tests.weights.conftest import ENGINE, WeightServer, weight_server
from tests.weights.trainer import Trainer

SEQUENCES = [
    (list(range(40, 41)), list(range(300, 303))),
    (list(range(40, 170)), list(range(300, 390))),
    (list(range(7, 60, 3)), list(range(1000, 1040))),
]


async def bits(server: WeightServer) -> list[list[float]]:
    """Log-probs of a few sequences."""
    found = []
    for prompt, completion in SEQUENCES:
        request = score_pb2.ScoreRequest(groups=[group(prompt, completion)])
        slices = score_slices(await collect(server.scoring.Score(request)))
        found.append([x for piece in slices[0, 0] for x in piece.logprobs])
        assert len(found[-1]) == len(completion)
    return found


@pytest.mark.parametrize("staging", ["BESIDE", "IN_PLACE"])
async def test_as_loaded_from_files(tmp_path: Path, staging: str) -> None:
    """In bfloat16, where layers and head have copies in other layouts and types."""
    trainer = Trainer()
    trainer.step()
    trainer.network.to(torch.bfloat16).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model_path()).save_pretrained(tmp_path)
    engine = replace(ENGINE, dtype="bfloat16")
    first_state = {name: tensor.bfloat16() for name, tensor in trainer.states[0].items()}
    mode = weights_pb2.StagingMode.Value(f"STAGING_MODE_{staging}")
    async with weight_server(engine=replace(engine, model=str(tmp_path))) as server:
        expected, loaded = await bits(server), await server.weights()
    async with weight_server(engine=engine) as server:
        first, before = await bits(server), await server.weights()
        await server.push(trainer.state(), 1, staging=mode)
        assert await bits(server) == expected
        pushed = await server.weights()
        assert pushed.weights_digest == loaded.weights_digest
        assert pushed.numerics_id == loaded.numerics_id
        await server.push(first_state, 0, staging=mode, allow_older_version=True)
        assert await bits(server) == first != expected
        assert (await server.weights()).weights_digest == before.weights_digest


async def test_on_the_plain_path() -> None:
    """One sequence after another, through transformers' own forward."""
    trainer = Trainer()
    version = trainer.step()
    async with weight_server(engine=replace(ENGINE, path="plain")) as server:
        first = await bits(server)
        await server.push(trainer.states[version], version)
        second = await bits(server)
        for (prompt, completion), found in zip(SEQUENCES, second, strict=True):
            plain = trainer.logprobs(version, prompt, completion)
            assert torch.allclose(torch.tensor(found).double(), plain, rtol=0, atol=3e-5)
        await server.push(trainer.states[0], 0, allow_older_version=True)
        assert await bits(server) == first != second
