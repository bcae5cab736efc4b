"""Expectations, provenance, model defaults, and what GetModelInfo says."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import grpc
import pytest
from safetensors import safe_open

from scoring_client.proto import (
    context_pb2,
    model_info_pb2,
    processing_pb2,
    score_pb2,
)
from scoring_service.models import tiny_model_path
from scoring_service.rpc.parsing.processing import unsupported_settings
from tests.contract_digest import contract_digest
from tests.rpc.calls import collect, failure, group, reason, score_one
from tests.rpc.conftest import PlainModel, RunningServer


def expecting(**fields: Any) -> score_pb2.ScoreRequest:
    """A good request with these expectations."""
    return score_pb2.ScoreRequest(groups=[group([1, 2], [3])], expect=context_pb2.Expect(**fields))


async def info_of(server: RunningServer) -> model_info_pb2.GetModelInfoResponse:
    return await server.stub.GetModelInfo(model_info_pb2.GetModelInfoRequest())


async def test_expectations_that_hold_are_answered(server: RunningServer) -> None:
    info = await info_of(server)
    request = expecting(
        weight_version=7,
        min_weight_version=3,
        weights_digest=info.weights_digest,
        tokenizer_digest=info.tokenizer_digest,
        deterministic=info.deterministic,
    )
    messages = await collect(server.stub.Score(request))
    provenance = messages[0].provenance
    assert provenance.weights_digest == info.weights_digest
    assert provenance.numerics_id == info.numerics_id
    assert (provenance.model, provenance.weight_version) == ("tiny", 7)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"weight_version": 8}, "WEIGHT_VERSION_MISMATCH"),
        ({"weight_version": 0}, "WEIGHT_VERSION_MISMATCH"),
        ({"weights_digest": "00"}, "WEIGHTS_DIGEST_MISMATCH"),
        ({"tokenizer_digest": ""}, "TOKENIZER_DIGEST_MISMATCH"),
    ],
)
async def test_an_unmet_expectation_is_a_failed_precondition(
    server: RunningServer, fields: dict[str, Any], expected: str
) -> None:
    code, status = await failure(server.stub.Score(expecting(**fields)))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert reason(status) == expected


async def test_min_weight_version_waits_until_the_deadline(server: RunningServer) -> None:
    call = server.stub.Score(expecting(min_weight_version=8), timeout=1.0)
    code, status = await failure(call)
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    said = r"waited (\d+\.\d+) s for weight version >= 8; the server is at 7"
    waited = re.fullmatch(said, status.message)
    assert waited, status.message
    assert 0 < float(waited[1]) <= 1.0


async def test_a_version_that_is_to_come_can_be_waited_for(server: RunningServer) -> None:
    _, status = await failure(server.stub.Score(expecting(weight_version=9)))
    assert status.message == (
        "expect.weight_version is 9, but the server has 7; expect.min_weight_version=9 waits for it"
    )
    _, status = await failure(server.stub.Score(expecting(weight_version=4)))
    assert status.message == "expect.weight_version is 4, but the server has 7"
    _, status = await failure(server.stub.Score(expecting(weights_digest="abc")))
    assert re.fullmatch(
        "expect.weights_digest is abc, but the server has [0-9a-f]{64}", status.message
    )


async def test_the_request_id_is_echoed_or_made(server: RunningServer) -> None:
    request = expecting()
    request.context.request_id = "step-12"
    first = (await collect(server.stub.Score(request)))[0]
    assert first.provenance.request_id == "step-12"
    made = [(await collect(server.stub.Score(expecting())))[0].provenance.request_id for _ in "12"]
    assert all(made)
    assert made[0] != made[1]


async def test_model_info_is_true(server: RunningServer, plain: PlainModel) -> None:
    info = await info_of(server)
    assert info.name == "tiny"
    assert info.vocab_size == plain.network.config.vocab_size
    assert info.tokenizer_size == len(plain.tokenizer)
    assert list(info.eos_token_ids) == [plain.tokenizer.eos_token_id]
    assert info.bos_token_id == plain.tokenizer.bos_token_id
    assert info.parameter_count == sum(p.numel() for p in plain.network.parameters())
    assert info.path == model_info_pb2.MODEL_PATH_PACKED
    assert info.chunk_size == 64
    assert info.path_reason
    assert info.limits.max_sequence_tokens == plain.network.config.max_position_embeddings
    assert info.limits.max_k == info.vocab_size
    assert (info.dtype, info.head_dtype, info.backend) == ("float32", "float32", "compiled-cpu")
    assert info.contract_revision == 4
    assert not info.tokenizer_reason


async def test_the_tokenizer_digest_is_of_its_serialised_form(
    server: RunningServer, plain: PlainModel
) -> None:
    serialised = plain.tokenizer.backend_tokenizer.to_str().encode()
    info = await info_of(server)
    assert info.tokenizer_digest == hashlib.sha256(serialised).hexdigest()


async def test_the_digest_covers_the_tensors_as_loaded(server: RunningServer) -> None:
    """Recomputed from the file alone: bfloat16 on disk, float32 as loaded here."""
    with safe_open(tiny_model_path() / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name).float().numpy() for name in file.keys()}  # noqa: SIM118
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    expected = contract_digest({n: ("float32", t.shape, t.tobytes()) for n, t in tensors.items()})
    assert (await info_of(server)).weights_digest == expected


async def test_list_models(server: RunningServer) -> None:
    listed = await server.stub.ListModels(model_info_pb2.ListModelsRequest())
    assert [(m.name, m.ready) for m in listed.models] == [("tiny", True)]


async def test_model_defaults_are_used_on_request_only(server: RunningServer) -> None:
    """The packaged model's generation_config is given a temperature for this test."""
    settings = server.pool.info.generation_config
    settings.update(temperature=0.5, top_k=20)
    try:
        asked = score_pb2.ScoreRequest(groups=[group([1, 2], [3, 4])])
        neutral = (await collect(server.stub.Score(asked)))[0].processing[0]
        assert neutral.temperature.value == 1.0
        asked.processing.defaults = processing_pb2.PROCESSING_DEFAULTS_MODEL
        asked.processing.top_k = 5
        model = (await collect(server.stub.Score(asked)))[0].processing[0]
        assert model.temperature.value == 0.5
        assert model.temperature.source == processing_pb2.PROCESSING_SOURCE_MODEL
        assert model.top_k.value == 5
        assert model.top_k.source == processing_pb2.PROCESSING_SOURCE_REQUEST
        explicit = score_pb2.ScoreRequest(groups=[group([1, 2], [3, 4])])
        explicit.processing.temperature = 0.5
        one, other = [await score_one(server.stub, r) for r in (asked, explicit)]
        assert list(one.logprobs) == list(other.logprobs)
        settings["repetition_penalty"] = 1.1
        code, status = await failure(server.stub.Score(asked))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert reason(status) == "UNSUPPORTED_GENERATION_CONFIG"
        assert "repetition_penalty" in status.message
        listed = (await info_of(server)).unsupported_generation_settings
        assert list(listed) == ["repetition_penalty"]
    finally:
        for name in ("temperature", "top_k", "repetition_penalty"):
            settings.pop(name, None)


def test_neutral_settings_are_no_obstacle() -> None:
    neutral = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "temperature": 0.6}
    assert unsupported_settings(neutral) == []
    assert unsupported_settings({"typical_p": 0.9, "num_beams": 4}) == ["typical_p", "num_beams"]
