"""Weights from files: which may be read, what is wrong with some, and who may ask."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch

from scoring_client.proto import admin_pb2, weights_pb2
from scoring_service.errors import ServiceError
from scoring_service.models import tiny_model_path
from scoring_service.pool.weights.checkpoint import allowed_path
from scoring_service.rpc.admin import config as admin_config
from scoring_service.rpc.admin.config import AdminConfig
from tests.helm.hub import serving_hub
from tests.rpc.calls import collect, failure, reason
from tests.weights.conftest import ENGINE, WeightServer, weight_server
from tests.weights.test_push import COMPLETION, PROMPT, right
from tests.weights.trainer import TOLERANCE, Trainer


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


def request(path: str, version: int, **options: Any) -> admin_pb2.UpdateWeightsRequest:
    named = weights_pb2.WeightUpdateOptions(version=version, **options)
    return admin_pb2.UpdateWeightsRequest(options=named, path=path)


async def test_a_checkpoint(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read as transformers reads it, sharded as well; of the Hub, the revision that is named."""
    trainer = Trainer()
    version = trainer.step()
    trainer.network.save_pretrained(root / "step-1", max_shard_size="2MB")
    other = {"hidden_size": 32, "intermediate_size": 64}
    config = type(trainer.network.config)(**{**trainer.network.config.to_dict(), **other})
    type(trainer.network)(config).save_pretrained(root / "other")
    shards = sorted((root / "step-1").glob("model-*.safetensors"))
    half = shards[0].read_bytes()[: shards[0].stat().st_size // 2]
    shutil.copytree(root / "step-1", root / "cut")
    (root / "cut" / shards[0].name).write_bytes(half)
    repositories = frozenset({"someone/policy"})
    admin = AdminConfig(roots=(root,), repositories=repositories, engine=ENGINE)
    options = weights_pb2.WeightUpdateOptions(version=version)
    source = admin_pb2.HubWeights(repository="someone/policy", revision="step-1")
    async with weight_server(admin) as server:
        with serving_hub("someone/policy", root / "step-1") as hub:
            monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
            monkeypatch.setenv("HF_HOME", str(root / "cache"))
            monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
            update = admin_pb2.UpdateWeightsRequest(options=options, hub=source)
            statuses = await collect(server.admin.UpdateWeights(update))
        assert statuses[-1].status.phase == weights_pb2.WEIGHT_UPDATE_PHASE_COMMITTED
        assert "/someone/policy/resolve/step-1/config.json" in {path for path, _ in hub.asked}
        await right(server, trainer)
        await _refused_sources(server, root)
        await right(server, trainer)


async def test_a_file_system_that_stalls(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls go on meanwhile, however many updates ask for a path."""
    answers = threading.Event()

    def stalled(path: str, roots: tuple[Path, ...]) -> Path:
        assert answers.wait(20), "calls did not go on"
        return allowed_path(path, roots)

    monkeypatch.setattr(admin_config, "allowed_path", stalled)
    async with weight_server(AdminConfig(roots=(root,), engine=ENGINE)) as server:
        nothing = request(str(root / "nothing"), 1)
        updates = [
            asyncio.create_task(failure(server.admin.UpdateWeights(nothing))) for _ in range(40)
        ]
        await asyncio.sleep(0.2)
        assert (await server.score(PROMPT, COMPLETION)).last
        assert not any(update.done() for update in updates)
        answers.set()
        for code, status in await asyncio.gather(*updates):
            assert (code, reason(status)) == (grpc.StatusCode.NOT_FOUND, "WEIGHTS_NOT_FOUND")


async def test_files_beside_those_of_the_model(root: Path) -> None:
    """What transformers passes over is no reason to refuse, such as an adapter being written."""
    trainer = Trainer()
    version = trainer.step()
    folder = root / "beside"
    trainer.network.save_pretrained(folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "consolidated.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "adapter_model.safetensors").write_bytes(b"")
    async with weight_server(AdminConfig(roots=(root,), engine=ENGINE)) as server:
        statuses = await collect(server.admin.UpdateWeights(request(str(folder), version)))
        assert statuses[-1].status.phase == weights_pb2.WEIGHT_UPDATE_PHASE_COMMITTED
        await right(server, trainer)


async def test_files_that_tie_what_the_server_does_not(root: Path) -> None:
    """One tensor is both then, as a trainer with tied embeddings saves it."""
    trainer = Trainer()
    version = trainer.step()
    trainer.network.save_pretrained(root / "tied")
    untied = Trainer().network
    untied.config.tie_word_embeddings = False
    untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight.detach() * 1.5)
    untied.save_pretrained(root / "untied")
    engine = replace(ENGINE, model=str(root / "untied"))
    async with weight_server(AdminConfig(roots=(root,), engine=engine), engine) as server:
        before = await server.weights(list_tensors=True)
        assert not any(tensor.tied_to for tensor in before.tensors)
        await collect(server.admin.UpdateWeights(request(str(root / "tied"), version)))
        found = await server.score(PROMPT, COMPLETION)
        expected = trainer.logprobs(version, PROMPT, COMPLETION)
        assert found.weight_version == version
        assert np.abs(np.array(found.logprobs) - expected.numpy()).max() < TOLERANCE


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps 1e-05, not 1e-06"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            "rope_parameters.rope_theta 500000.0, not 10000.0",
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
            "rope_parameters.factor 2.0, not None",
        ),
    ],
)
async def test_files_with_another_config(root: Path, changes: dict[str, Any], named: str) -> None:
    """Of the same names, types and shapes, they would be answered from with other log-probs."""
    trainer = Trainer()
    trainer.step()
    folder = root / named.split()[0]
    trainer.network.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    async with weight_server(AdminConfig(roots=(root,), engine=ENGINE)) as server:
        found, status = await failure(server.admin.UpdateWeights(request(str(folder), 1)))
        assert (found.name, reason(status)) == ("FAILED_PRECONDITION", "WEIGHTS_UNREADABLE")
        assert f"the files hold another model: their config has {named}" in status.message
        assert (await server.weights()).version == 0


async def test_files_whose_config_says_the_same_in_other_words(root: Path) -> None:
    """As trainers and other formats write it; a longer sequence turns these positions no other."""
    trainer = Trainer()
    version = trainer.step()
    folder = root / "in other words"
    trainer.network.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    changes = {
        "_name_or_path": "me/policy",
        "architectures": ["PolicyForCausalLM"],
        "attention_dropout": 0.1,
        "eos_token_id": [0, 2],
        "initializer_range": 0.5,
        "max_position_embeddings": 8192,
        "pad_token_id": 1,
        "rms_norm_eps": float(np.float32(1e-6)),
        "torch_dtype": "float32",
        "trainer_version": "1",
        "transformers_version": "4.0.0",
        "use_cache": False,
    }
    (folder / "config.json").write_text(json.dumps(config | changes))
    async with weight_server(AdminConfig(roots=(root,), engine=ENGINE)) as server:
        await collect(server.admin.UpdateWeights(request(str(folder), version)))
        await right(server, trainer)


async def _refused_sources(server: WeightServer, root: Path) -> None:
    """What is not allowed, not there, or not this model; the weights stay."""
    before = await server.weights()
    hub = admin_pb2.HubWeights(repository="someone/model")
    options = weights_pb2.WeightUpdateOptions(version=2)
    nothing = admin_pb2.UpdateWeightsRequest(options=options)
    repository = admin_pb2.UpdateWeightsRequest(options=options, hub=hub)
    for message, code, wanted in (
        (request(str(tiny_model_path()), 2), "PERMISSION_DENIED", "SOURCE_NOT_ALLOWED"),
        (request(str(root / "none"), 2), "NOT_FOUND", "WEIGHTS_NOT_FOUND"),
        (request(str(root / "other"), 2), "FAILED_PRECONDITION", "WEIGHTS_UNREADABLE"),
        (request(str(root / "cut"), 2), "FAILED_PRECONDITION", "WEIGHTS_UNREADABLE"),
        (request(str(root / "other"), 2, partial=True), "INVALID_ARGUMENT", "INVALID_FIELD"),
        (nothing, "INVALID_ARGUMENT", "INVALID_FIELD"),
        (repository, "PERMISSION_DENIED", "SOURCE_NOT_ALLOWED"),
    ):
        found, status = await failure(server.admin.UpdateWeights(message))
        assert (found.name, reason(status)) == (code, wanted)
    after = await server.weights()
    assert after.weights_digest == before.weights_digest
    assert not after.HasField("update")


def test_paths(tmp_path: Path) -> None:
    """Only what lies under a root once links are followed; outside, nothing tells what is there."""
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside / "a", outside / "secret"):
        folder.mkdir(parents=True)
    (inside / "link").symlink_to(outside / "secret")
    (inside / "round").symlink_to(inside / "round")
    (outside / "back").symlink_to(inside / "a")
    roots = (inside,)
    assert allowed_path(str(inside / "a"), roots) == inside / "a"
    assert allowed_path(str(outside / "back"), roots) == inside / "a"
    assert allowed_path(str(inside / "a" / ".." / "a"), roots) == inside / "a"
    refused = [
        inside / "link",
        inside / "link" / "x",
        inside / ".." / "out" / "secret",
        outside / "secret",
        outside / "none",
        Path(f"{inside}-beside"),
        Path("/"),
        Path("in/a"),
    ]
    messages = set()
    for path in refused:
        with pytest.raises(ServiceError) as caught:
            allowed_path(str(path), roots)
        assert caught.value.fault.reason == "SOURCE_NOT_ALLOWED", path
        messages.add(caught.value.fault.message)
    assert len(messages) == 1
    for odd in ("\0", f"{inside}/\0"):
        with pytest.raises(ServiceError):
            allowed_path(odd, roots)
    with pytest.raises(ServiceError) as caught:
        allowed_path(str(inside / ("a" * 300)), roots)
    assert caught.value.fault.reason == "WEIGHTS_NOT_FOUND", "longer than names can be"
    with pytest.raises(ServiceError) as caught:
        allowed_path(str(inside / "a"), ())
    assert caught.value.fault.reason == "SOURCE_NOT_ALLOWED"
