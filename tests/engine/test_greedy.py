"""Temperature 0 against transformers' own generate(do_sample=False)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
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


@pytest.mark.parametrize("text", PROMPTS)
def test_the_same_tokens(tiny: LoadedModel, plain_tiny: Any, text: str) -> None:
    prompt = AutoTokenizer.from_pretrained(tiny_model_path()).encode(text)
    drawn = sample(tiny, prompt, max_tokens=40)[0, 0]
    assert drawn.token_ids == plain.generate(plain_tiny, prompt, 40)
    assert drawn.finish_reason == ("stop" if drawn.token_ids[-1] == 0 else "length")


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
