"""Any Hugging Face causal LM: heads that cap and scale, caches of every kind, experts, biases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from scoring_service.engine.head.head import LinearHead, WholeLogits
from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.types import Processing
from tests.engine import plain
from tests.engine.loading import load_model
from tests.engine.sampling import sample
from tests.engine.scoring import EVERYTHING, completion, score_one
from tests.engine.small_models import ARCHITECTURES, VOCAB, Architecture, save_model

WITHIN = 1e-4
PROMPT = [3, 14, 15, 92, 65]
IDS = np.random.default_rng(0).integers(0, VOCAB, size=30).tolist()


CASES = [
    *((architecture, "auto", "auto") for architecture in ARCHITECTURES),
    *((architecture, "auto", "off") for architecture in ARCHITECTURES if architecture.packs),
    *((architecture, "plain", "auto") for architecture in ARCHITECTURES if architecture.packs),
]
"""Each on its own path and, where it has the choice, without C++ kernels and on the plain path."""


@dataclass(frozen=True)
class Pair:
    architecture: Architecture
    loaded: LoadedModel
    network: Any


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}-{case[2]}")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    architecture, path, cpu_kernels = request.param
    folder = save_model(architecture, tmp_path_factory.mktemp(architecture.name))
    loaded = load_model(
        folder,
        dtype="float32",
        max_model_len=architecture.max_model_len,
        path=path,
        cpu_kernels=cpu_kernels,
        chunk_size=16,
    )
    assert loaded.info.packed == (architecture.packs and path == "auto")
    return Pair(architecture, loaded, plain.load(folder, torch.float32))


def test_the_head_is_linear_where_that_is_true(pair: Pair) -> None:
    head, info = pair.loaded.model.head, pair.loaded.info
    assert info.vocab_size == head.vocab_size == VOCAB
    assert pair.loaded.codec is None
    if not pair.architecture.linear_head:
        assert isinstance(head, WholeLogits)
        assert "head" in info.path_reason
        assert not info.deterministic
        return
    assert isinstance(head, LinearHead)
    # Experts see the whole step, so their bits depend on who shares it.
    assert info.deterministic != (info.packed and pair.architecture.experts)
    found = {"multiplier": head.multiplier, "soft_cap": head.soft_cap}
    expected = {"multiplier": 1.0, "soft_cap": None, **pair.architecture.head}
    assert found == pytest.approx(expected)


def test_every_logprob(pair: Pair) -> None:
    logits = plain.row_logits(pair.network, PROMPT, IDS)
    assert np.abs(logits).max() > 1.5, "too small for a cap or scale to matter"
    expected = plain.rows(logits, IDS, EVERYTHING.top_k, WITHIN)
    found = score_one(pair.loaded, PROMPT, completion(IDS), EVERYTHING, next_token=True)
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=WITHIN)
    np.testing.assert_allclose(found.logsumexps, expected.logsumexps, atol=WITHIN)
    np.testing.assert_allclose(found.entropies, expected.entropies, atol=WITHIN)
    np.testing.assert_allclose(found.top_logprobs, expected.top_logprobs[:, :-1], atol=WITHIN)


def test_decoding_with_a_cache_is_one_forward_pass(pair: Pair) -> None:
    """Far past the sliding windows; states that transformers keeps elsewhere are computed again."""
    answer = sample(
        pair.loaded, PROMPT, n=2, seed=5, max_tokens=25, ignore_eos=True, processing=Processing()
    )
    for index in range(2):
        drawn = answer[0, index]
        assert len(drawn.token_ids) == 25
        logits = plain.row_logits(pair.network, PROMPT, drawn.token_ids)
        expected = plain.log_softmax(logits)[np.arange(25), drawn.token_ids]
        np.testing.assert_allclose(drawn.logprobs, expected, atol=WITHIN)
    assert answer[0, 0].token_ids != answer[0, 1].token_ids
