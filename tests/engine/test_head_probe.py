"""The probe that decides whether our head is the model's own: each difference must be noticed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from scoring_service.engine.head.head import LinearHead, WholeLogits, linear_head
from scoring_service.engine.head.tiles import tile_rows
from scoring_service.engine.trials.head_probe import head_matches
from scoring_service.types import Processing, RowWants
from tests.engine import plain
from tests.engine.loading import load_model
from tests.engine.scoring import completion, score_one
from tests.engine.small_models import ARCHITECTURES, save_model

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}


def network(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return plain.load(save_model(BY_NAME[name], folder), dtype)


def head_of(model: Any) -> LinearHead:
    return linear_head(model.get_output_embeddings(), model.config, model.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gemma2", {"soft_cap": None}),
        ("gemma2", {"soft_cap": 3.3}),
        ("gemma3", {"soft_cap": None}),
        ("llama", {"soft_cap": 30.0}),
        ("cohere", {"multiplier": 1.0}),
        ("granite", {"multiplier": 1.0}),
        ("granite", {"multiplier": 4.0}),
        ("falcon-h1", {"multiplier": 1.0}),
        ("llama", {"multiplier": 1.05}),
        ("phi", {"bias_V": None}),
        ("gptj", {"bias_V": None}),
    ],
)
def test_a_wrong_head_is_noticed(
    name: str, change: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    """However wrong it is, and only because it is: the unchanged one passes."""
    model = network(name, tmp_path, dtype)
    head = head_of(model)
    module = model.get_output_embeddings()
    assert head_matches(model, module, head)
    assert not head_matches(model, module, replace(head, **change))


def test_a_model_that_scales_in_its_own_way_is_noticed(tmp_path: Path) -> None:
    model = network("hyperclovax", tmp_path)
    assert not head_matches(model, model.get_output_embeddings(), head_of(model))


@pytest.mark.parametrize("mask", [-math.inf, torch.finfo(torch.float32).min, math.nan])
def test_a_model_that_masks_tokens_is_noticed(
    mask: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some rule out what is never to be said, such as rows that only pad the head."""
    model = network("llama", tmp_path)
    monkeypatch.setattr(model, "forward", masking(model.forward, mask))
    assert not head_matches(model, model.get_output_embeddings(), head_of(model))


def masking(forward: Callable[..., Any], mask: float) -> Callable[..., Any]:
    def masked(*args: Any, **asked: Any) -> Any:
        output = forward(*args, **asked)
        output.logits[..., 90:] = mask
        return output

    return masked


def test_a_model_that_masks_tokens_scores_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model(BY_NAME["llama"], tmp_path)
    own = transformers.LlamaForCausalLM.forward
    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", masking(own, -math.inf))
    ids = [5, 6, 93, 8]
    wants = RowWants(top_k=90, support_size=True, processed_logprobs=True)
    candidates = np.array([[92, 3]], dtype=np.int32)
    task = completion(ids, candidates=candidates)
    found = score_one(load_model(folder), [7, 9], task, wants, Processing(top_p=0.9))
    logits = plain.row_logits(plain.load(folder, torch.float32), [7, 9], ids)[:-1]
    expected = plain.log_softmax(logits)
    np.testing.assert_allclose(found.logprobs, expected[np.arange(4), ids], atol=1e-5)
    np.testing.assert_allclose(found.candidate_logprobs, expected[:, [92, 3]], atol=1e-5)
    assert found.logprobs[2] == found.processed_logprobs[2] == -math.inf
    assert (np.sort(found.top_token_ids, axis=1) == np.arange(90)).all()
    assert (found.log_tail_masses == -math.inf).all()


def test_other_weights_are_noticed(tmp_path: Path) -> None:
    model = network("llama", tmp_path)
    head = head_of(model)
    other = model.lm_head.weight.detach().clone()
    other[50, 7] += 0.1
    assert not head_matches(model, model.get_output_embeddings(), head.with_weight(other, None))


def test_the_probe_leaves_no_hook_behind(tmp_path: Path) -> None:
    model = network("llama", tmp_path)
    ids = [1, 2, 3]
    before = plain.logits(model, ids)
    head_matches(model, model.get_output_embeddings(), head_of(model))
    assert (plain.logits(model, ids) == before).all()


def test_a_head_that_is_no_linear_layer_runs_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model may say it has no output embedding at all; it still scores."""
    folder = save_model(BY_NAME["llama"], tmp_path)
    monkeypatch.setattr(transformers.LlamaForCausalLM, "get_output_embeddings", lambda _self: None)
    loaded = load_model(folder)
    assert isinstance(loaded.model.head, WholeLogits)
    assert "head" in loaded.info.path_reason
    ids = [5, 6, 7, 8]
    expected = plain.logits(plain.load(folder, torch.float32), ids)
    assert (loaded.model.head.logits(loaded.model.states(ids)).numpy() == expected).all()


@pytest.mark.parametrize("vocab", [1, 97, 2048, 49152, 151936, 262144, 10**7])
@pytest.mark.parametrize("width", [2, 4])
def test_tiles(width: int, vocab: int) -> None:
    """16 to 256 rows, a multiple of 16, at most 24 MiB where 16 rows fit into that."""
    rows = tile_rows(vocab, width)
    assert rows % 16 == 0
    assert 16 <= rows <= 256
    assert rows == 16 or rows * vocab * width <= 24 << 20
    assert rows == 256 or (rows + 16) * vocab * width > 24 << 20
