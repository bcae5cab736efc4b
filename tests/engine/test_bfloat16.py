"""A bfloat16 body with a float32 head errs no more than transformers does in bfloat16."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.engine.text.tokenizer import TextCodec
from scoring_service.models import tiny_model_path
from tests.engine import plain
from tests.engine.loading import load_model
from tests.engine.scoring import completion, groups, score, score_one


@dataclass(frozen=True)
class Errors:
    """Mean |log-prob - its value in float32 arithmetic on the same bfloat16 weights|."""

    ours: float
    transformers: float


def measure(loaded: LoadedModel, in_bfloat16: Any, ids: list[int], window: int) -> Errors:
    """Over windows of a text, each scored from its second token."""
    starts = range(0, len(ids), window)
    pairs = [(ids[n : n + 1], [ids[n + 1 : n + window]]) for n in starts]
    tasks = [(prompt, ids) for prompt, completions in pairs for ids in completions]

    def realised(network: Any) -> np.ndarray:
        rows = [
            plain.log_softmax(plain.row_logits(network, prompt, ids))[np.arange(len(ids)), ids]
            for prompt, ids in tasks
        ]
        return np.concatenate(rows)

    theirs = realised(in_bfloat16)
    exact = realised(in_bfloat16.float())
    answer = score(loaded, groups(pairs))
    ours = np.concatenate([scored.logprobs for scored in answer.items.values()])
    return Errors(np.abs(ours - exact).mean(), np.abs(theirs - exact).mean())


def read_text(codec: TextCodec | None, tokens: int) -> list[int]:
    """Ids of ordinary English: the licence."""
    assert codec is not None
    text = (Path(__file__).parents[2] / "LICENSE").read_text()
    return codec.encode(" ".join(text.split()), add_special_tokens=False)[:tokens]


def check(loaded: LoadedModel, errors: Errors) -> None:
    assert loaded.info.dtype == "bfloat16"
    assert loaded.info.head_dtype == "float32"
    assert errors.ours > 1e-5, "the body did not run in bfloat16"
    assert errors.ours <= errors.transformers


def test_the_packaged_model(tiny_bfloat16: LoadedModel) -> None:
    network = plain.load(tiny_model_path(), torch.bfloat16)
    ids = read_text(tiny_bfloat16.codec, 2000)
    check(tiny_bfloat16, measure(tiny_bfloat16, network, ids, 200))


@pytest.mark.smollm2
def test_smollm2(smollm2_folder: Path) -> None:
    """Its weights rounded to bfloat16."""
    loaded = load_model(smollm2_folder, dtype="bfloat16")
    ids = read_text(loaded.codec, 2000)
    check(loaded, measure(loaded, plain.load(smollm2_folder, torch.bfloat16), ids, 200))


def test_the_states_are_those_of_transformers_in_bfloat16() -> None:
    """And the head multiplies them in float32: nothing is rounded between the two.

    On the plain path, which computes what transformers computes; packed sums have another order.
    """
    loaded = load_model(tiny_model_path(), path="plain")
    network = plain.load(tiny_model_path(), torch.bfloat16)
    ids = np.random.default_rng(1).integers(0, 2048, size=50).tolist()
    with torch.no_grad():
        states = network.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    weight_V_H = network.lm_head.weight.detach().double().numpy()
    logits = states.double().numpy()[9:-1] @ weight_V_H.T
    expected = plain.log_softmax(logits)[np.arange(40), ids[10:]]
    found = score_one(loaded, ids[:10], completion(ids[10:]))
    np.testing.assert_allclose(found.logprobs, expected, atol=1e-4)


def test_the_head_may_run_in_bfloat16_too() -> None:
    """Then log-probs are those of transformers, rounded logits and all."""
    loaded = load_model(tiny_model_path(), head_dtype="auto", path="plain")
    assert loaded.info.head_dtype == "bfloat16"
    network = plain.load(tiny_model_path(), torch.bfloat16)
    ids = np.random.default_rng(1).integers(0, 2048, size=50).tolist()
    expected = plain.log_softmax(plain.row_logits(network, ids[:10], ids[10:]))
    found = score_one(loaded, ids[:10], completion(ids[10:]))
    error = np.abs(found.logprobs - expected[np.arange(40), ids[10:]])
    assert error.mean() < 2e-3


def test_the_head_dtype_is_part_of_the_numerics(tiny_packed: LoadedModel) -> None:
    """Body and head dtypes decide bits, so they decide the numerics id, and nothing else does."""
    choices = [("bfloat16", "float32"), ("bfloat16", "auto"), ("float32", "float32")]
    infos = [load_model(tiny_model_path(), dtype=d, head_dtype=h).info for d, h in choices]
    assert len({info.numerics_id for info in infos}) == len(choices)
    assert infos[2].numerics_id == tiny_packed.info.numerics_id
