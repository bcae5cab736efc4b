"""Positions that turn by other angles once a sequence is long: whole sequences, never a part."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from scoring_service.types import Processing
from tests.engine.loading import load_model
from tests.engine.sampling import sample
from tests.engine.small_models import ARCHITECTURES, save_model

_FIRST_TRAINED = 32


def test_a_sample_that_becomes_long_is_a_long_sequence_from_there_on(tmp_path: Path) -> None:
    """Each token is as likely as a forward pass over everything before it says."""
    (architecture,) = [a for a in ARCHITECTURES if a.name == "phi3-longrope"]
    folder = save_model(architecture, tmp_path)
    loaded = load_model(folder, dtype="float32")
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    hot = Processing(temperature=2.0)
    for length in (_FIRST_TRAINED - 3, _FIRST_TRAINED, _FIRST_TRAINED + 1):
        prompt = [(7 * i) % 90 + 3 for i in range(length)]
        drawn = sample(loaded, prompt, max_tokens=7, processing=hot, ignore_eos=True)[0, 0]
        for place, (token, logprob) in enumerate(zip(drawn.token_ids, drawn.logprobs, strict=True)):
            ids = torch.tensor([[*prompt, *drawn.token_ids[:place]]])
            with torch.inference_mode():
                logits = network(input_ids=ids, use_cache=False).logits[0, -1].double() / 2.0
            assert logprob == pytest.approx(float(logits.log_softmax(0)[token]), abs=1e-4), place
