"""A model whose own cache fails or errs computes samples anew, and says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from scoring_service.engine.loading.loader import LoadedModel
from tests.engine import plain
from tests.engine.loading import load_model
from tests.engine.sampling import SampleAnswer, sample
from tests.engine.small_models import ARCHITECTURES, save_model

PROMPT = [3, 14, 15, 92, 65, 35, 89]
(GPTJ,) = (a for a in ARCHITECTURES if a.name == "gptj")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(GPTJ, tmp_path_factory.mktemp("gptj"))


def load(folder: Path, dtype: str = "float32") -> LoadedModel:
    loaded = load_model(folder, dtype=dtype)
    assert not loaded.info.packed
    return loaded


def draw(loaded: LoadedModel, **settings: Any) -> SampleAnswer:
    return sample(loaded, PROMPT, ignore_eos=True, **{"n": 2, "max_tokens": 12, **settings})


def assert_are_the_models_own(drawn: SampleAnswer, folder: Path) -> None:
    """Its log-probs are those of plain transformers on the whole sequence."""
    network = plain.load(folder, torch.float32)
    for index in range(2):
        found = drawn[0, index]
        logits = plain.row_logits(network, PROMPT, found.token_ids)[:-1]
        expected = plain.log_softmax(logits)[range(12), found.token_ids]
        np.testing.assert_allclose(found.logprobs, expected, atol=1e-4)


def forgetting(layer: Any, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> Any:
    """A cache that puts the oldest token in the place of the newest but one."""
    kept = UPDATE(layer, keys, values)
    return tuple(torch.cat([x[:, :, :-2], x[:, :, :1], x[:, :, -1:]], dim=2) for x in kept)


def failing(layer: Any, keys: Tensor, *_: Any, **__: Any) -> Any:
    """A cache that can be begun and not be gone on with."""
    if layer.get_seq_length():
        raise AttributeError("this cache is of another release\nand so on")
    return UPDATE(layer, keys, *_, **__)


UPDATE = DynamicLayer.update


@pytest.mark.parametrize(
    ("update", "said"),
    [(forgetting, "it gives other states"), (failing, "this cache is of another release")],
)
def test_a_cache_that_errs_is_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch, update: Any, said: str
) -> None:
    monkeypatch.setattr(DynamicLayer, "update", update)
    loaded = load(folder)
    note = f"; samples without what it keeps of earlier tokens: {said}"
    assert loaded.info.path_reason.endswith(note)
    drawn = draw(loaded)
    monkeypatch.undo()
    assert_are_the_models_own(drawn, folder)


def test_a_sound_cache_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(folder)
    assert "samples without" not in loaded.info.path_reason
    assert_are_the_models_own(draw(loaded), folder)
    lengths = []

    def counted(layer: Any, keys: Tensor, *given: Any, **named: Any) -> Any:
        lengths.append(keys.shape[2])
        return UPDATE(layer, keys, *given, **named)

    monkeypatch.setattr(DynamicLayer, "update", counted)
    draw(loaded, n=1, max_tokens=3)
    layers = len(lengths) // 3
    assert lengths == [*[len(PROMPT)] * layers, *[1] * (2 * layers)]


def test_whether_it_is_used_is_in_the_numerics_id(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = load(folder)
    monkeypatch.setattr(DynamicLayer, "update", failing)
    assert load(folder).numerics_id("") != sound.numerics_id("")


@pytest.mark.parametrize(
    "architecture", [a for a in ARCHITECTURES if not a.packs], ids=lambda a: a.name
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_caches_of_transformers_are_used(architecture: Any, dtype: str, tmp_path: Path) -> None:
    folder = save_model(architecture, tmp_path)
    loaded = load_model(folder, dtype=dtype, max_model_len=architecture.max_model_len)
    assert "samples without" not in loaded.info.path_reason
