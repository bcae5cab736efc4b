"""The whole way of an engine on CUDA, on a GPU that is none: nothing meets what is elsewhere,
nothing is read before it is there, and the numbers are transformers' own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scoring_client import AsyncScoringClient
from scoring_client.proto import weights_pb2
from scoring_service.engine.events import SampleSlice
from scoring_service.engine.loading.loader import LoadedModel, load
from scoring_service.engine.worker.service_loop import make_runner
from scoring_service.types import EngineConfig, Processing, RowWants, SampleCall
from tests.engine import plain
from tests.engine.sampling import task
from tests.engine.scoring import groups, score
from tests.engine.small_models import ARCHITECTURES, VOCAB, save_model
from tests.intensity import SOAK
from tests.kernels.gpu.pretended.cuda import pretended_gpu
from tests.kernels.gpu.pretended.tensors import PretendedDevice
from tests.weights.conftest import weight_server

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
TRUNCATED = Processing(0.8, top_k=30, top_p=0.9)
TOLERANCE = 5e-5
"""Nats: float32 sums in another order than transformers'."""


def config(folder: Path, dtype: str = "float32") -> EngineConfig:
    return EngineConfig(
        str(folder), device="cuda", dtype=dtype, chunk_size=16, max_batch_tokens=64, threads=1
    )


@pytest.fixture(scope="module")
def device() -> Iterator[PretendedDevice]:
    with pretended_gpu() as device:
        yield device


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of one layer: an interpreter is slow."""
    llama = BY_NAME["llama"]
    one_layer = replace(llama, settings={**llama.settings, "num_hidden_layers": 1})
    return save_model(one_layer, tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def network(folder: Path) -> Any:
    return plain.load(folder, torch.float32)


@pytest.fixture(scope="module")
def loaded(folder: Path, device: PretendedDevice) -> LoadedModel:
    return load(config(folder), lambda _stage: None)


def random_ids(seed: int, *lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCAB, length).tolist() for length in lengths]


@pytest.mark.usefixtures("device")
def test_every_kernel_is_taken_in_half_precision(folder: Path) -> None:
    check_that_nothing_is_left_out(folder, "bfloat16")


@pytest.mark.parametrize("name", ["gpt-oss", "deepseek-v3"] if SOAK else ["gpt-oss"])
@pytest.mark.usefixtures("device")
def test_every_kernel_is_taken(name: str, tmp_path: Path) -> None:
    """Of windows, sinks and latent attention, and with experts."""
    check_that_nothing_is_left_out(save_model(BY_NAME[name], tmp_path), "float32")


def check_that_nothing_is_left_out(folder: Path, dtype: str) -> None:
    """Each kernel is tried at load, and left out with a reason where it fails."""
    loaded = load(config(folder, dtype), lambda _stage: None)
    assert loaded.info.backend == "triton-cuda"
    assert "without" not in loaded.info.path_reason
    assert loaded.info.path_reason.endswith("samples go on by CUDA graphs")


def test_scores(loaded: LoadedModel, network: Any, device: PretendedDevice) -> None:
    """Two groups that take several steps. The host waits for results, once a step."""
    first, second, *parts = random_ids(1, 40, 9, 30, 7, 20)
    pairs = [(first, parts[:2]), (second, parts[2:])]
    before = device.idled
    answer = score(loaded, groups(pairs), RowWants.everything(top_k=5))
    assert device.idled - before <= 3
    for (group, part), scored in answer.items.items():
        prompt, ids = pairs[group][0], pairs[group][1][part]
        logprobs_T_V = plain.log_softmax(plain.row_logits(network, prompt, ids)[:-1])
        rows = np.arange(len(ids))
        np.testing.assert_allclose(scored.logprobs, logprobs_T_V[rows, ids], atol=TOLERANCE)
        best = np.argsort(-logprobs_T_V, axis=1)[:, :5]
        np.testing.assert_array_equal(scored.top_token_ids, best)
        entropies = -(np.exp(logprobs_T_V) * logprobs_T_V).sum(axis=1)
        np.testing.assert_allclose(scored.entropies, entropies, atol=TOLERANCE)
    assert len(answer.items) == 3
    assert not answer.failures


def test_samples(loaded: LoadedModel, network: Any, device: PretendedDevice) -> None:
    """Recorded steps are replayed, and samples of all settings are drawn before any is waited for:
    the device has nothing to do once a step."""
    prompts = random_ids(2, 20, 5)
    runner = make_runner(loaded, _raise)
    greedy = task(prompts[0], max_tokens=10, ignore_eos=True)
    truncated = task(prompts[1], max_tokens=10, index=1, processing=TRUNCATED, ignore_eos=True)
    runner.submit(SampleCall(1, (greedy, truncated)))
    idled, replays, steps = device.idled, device.replays, 0
    drawn: dict[int, list[SampleSlice]] = {0: [], 1: []}
    while runner.can_step:
        steps += 1
        for event in runner.step():
            if isinstance(event, SampleSlice):
                drawn[event.prompt_index].append(event)
                runner.add_credit(event.call_id, event.size)
    assert device.idled - idled <= steps
    assert device.replays - replays >= 7  # all but the prompts', one computed and one recorded
    ids = [np.concatenate([s.token_ids for s in drawn[index]]).tolist() for index in drawn]
    greedy_T_V = plain.row_logits(network, prompts[0], ids[0])[:-1]
    assert ids[0] == greedy_T_V.argmax(axis=1).tolist()
    x_T_V = plain.row_logits(network, prompts[1], ids[1])[:-1] / TRUNCATED.temperature
    expected = plain.log_softmax(x_T_V)[np.arange(10), ids[1]]
    found = np.concatenate([s.logprobs for s in drawn[1]])
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


async def test_weights_change_through_a_server(
    folder: Path, network: Any, device: PretendedDevice
) -> None:
    """They are staged by a thread of their own while the engine's answers."""
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    prompt, completion = random_ids(3, 17, 9)
    async with (
        weight_server(engine=config(folder)) as server,
        AsyncScoringClient(server.target) as client,
    ):
        for version, factor in ((1, 1.25), (2, 0.5)):
            state["model.norm.weight"] = network.state_dict()["model.norm.weight"] * factor
            status = (await server.push(state, version))[-1]
            assert status.staging == weights_pb2.STAGING_MODE_BESIDE
            scores = (await client.score([(prompt, [completion])]))[0][0]
            assert scores.weight_version == version
            logits_T_V = plain.row_logits(network, prompt, completion)[:-1] * factor
            expected = plain.log_softmax(logits_T_V)[np.arange(9), completion]
            np.testing.assert_allclose(scores.logprobs, expected, atol=TOLERANCE)
            replays = device.replays
            sample = (await client.sample([prompt], max_tokens=5, temperature=0.0))[0][0]
            assert sample.token_ids[0] == plain.row_logits(network, prompt, [])[-1].argmax()
            assert device.replays > replays


def _raise(_call_id: int, error: BaseException) -> None:
    raise error
