"""Temperature 0 against transformers' own generate(do_sample=False)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.models import tiny_model_path
from tests.engine import plain
from tests.engine.sampling import sample

PROMPTS = [
    "import numpy as",
    "The following example",
    "def __init__(self",
    ">>> ",
    "Return a new array of given shape and type",
]


def generate(network: Any, prompt: list[int], max_tokens: int) -> list[int]:
    with torch.no_grad():
        whole = network.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=max_tokens, pad_token_id=0
        )
    return whole[0, len(prompt) :].tolist()


@pytest.mark.parametrize("text", PROMPTS)
def test_the_same_tokens(tiny: LoadedModel, plain_tiny: Any, text: str) -> None:
    prompt = AutoTokenizer.from_pretrained(tiny_model_path()).encode(text)
    drawn = sample(tiny, prompt, max_tokens=40)[0, 0]
    assert drawn.token_ids == generate(plain_tiny, prompt, 40)
    assert drawn.finish_reason == ("stop" if drawn.token_ids[-1] == 0 else "length")


@pytest.mark.smollm2
def test_the_same_tokens_of_smollm2(smollm2: LoadedModel, plain_smollm2: Any) -> None:
    assert smollm2.codec is not None
    prompt = smollm2.codec.encode("The capital of France is", add_special_tokens=True)
    answer = sample(smollm2, prompt, max_tokens=12, return_text=True)
    assert answer[0, 0].token_ids == generate(plain_smollm2, prompt, 12)
    assert "Paris" in answer[0, 0].text


def test_logprobs_are_at_temperature_one(tiny: LoadedModel, plain_tiny: Any) -> None:
    """And the processed ones 0: greedy leaves nothing to chance."""
    prompt = [40, 41, 42]
    drawn = sample(tiny, prompt, max_tokens=20, ignore_eos=True)[0, 0]
    expected = plain.log_softmax(plain.row_logits(plain_tiny, prompt, drawn.token_ids))
    realised = expected[np.arange(20), drawn.token_ids]
    np.testing.assert_allclose(drawn.logprobs, realised, atol=1e-4)
    assert (drawn.processed_logprobs == 0).all()
    assert (expected.argmax(axis=1)[:-1] == drawn.token_ids).all()


def test_seeds_do_not_matter(tiny: LoadedModel) -> None:
    first, second = (
        sample(tiny, [40, 41], n=2, seed=seed, max_tokens=8, ignore_eos=True) for seed in (1, 2)
    )
    assert len({tuple(s.token_ids) for s in [*first.items.values(), *second.items.values()]}) == 1
