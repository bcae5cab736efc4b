"""Every architecture of transformers gives transformers' own numbers, whatever way it takes.

`docs/models.md` names them; `make soak ARGS=tests/engine/test_every_architecture.py` tries all.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.engine import plain
from tests.engine.every_architecture import VOCAB, names, save_small
from tests.engine.loading import load_model
from tests.engine.sampling import sample
from tests.engine.scoring import groups, score
from tests.intensity import SOAK

WITHIN = {"hrm_text": 5e-3, "nemotron_h": 2e-2}
"""Nats, where not 2e-4; the page says why."""
RANDOM = np.random.default_rng(0)
PROMPT, *COMPLETIONS = (RANDOM.integers(3, VOCAB, n).tolist() for n in (21, 17, 1, 9))


def named(heading: str) -> list[str]:
    """Architectures in the list of `docs/models.md` that begins with the heading."""
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    (listed,) = re.findall(rf"^\* \*\*{heading}\*\*.*:\n((?:  `.*\n)+)", page, re.MULTILINE)
    return re.findall(r"`([^`]+)`", listed)


PACKED, PLAIN, UNTRIED = named("Packed"), named("Plain"), named("Not tried")
WITHOUT_CACHE = named("Plain, samples without a cache")
OFTEN = (
    *("bamba", "bloom", "deepseek_v32", "exaone4", "gemma4_text", "glm4_moe", "jamba", "lfm2"),
    *("mimo_v2_flash", "minimax_m2", "nemotron_h", "olmo3", "opt", "qwen3_5_text", "qwen3_next"),
    *("seed_oss", "smollm3", "starcoder2"),
)
"""What is tried each time: of many kinds, and much used."""
TRIED = [name for name in names() if name not in UNTRIED and (SOAK or name in OFTEN)]


def test_every_architecture_is_named_once() -> None:
    assert sorted([*PACKED, *PLAIN, *WITHOUT_CACHE, *UNTRIED]) == sorted(names())


@pytest.mark.parametrize("name", TRIED)
def test_its_numbers_are_transformers_own(name: str, tmp_path: Path) -> None:
    folder = save_small(name, tmp_path)
    loaded = load_model(folder, dtype="float32", chunk_size=16, max_model_len=128)
    assert loaded.info.packed == (name in PACKED), loaded.info.path_reason
    assert ("samples without" in loaded.info.path_reason) == (name in WITHOUT_CACHE)
    network = plain.load(folder, torch.float32)
    answer = score(loaded, groups([(PROMPT, COMPLETIONS)]))
    drawn = sample(loaded, PROMPT, max_tokens=12, ignore_eos=True)[0, 0]
    sampled = drawn.token_ids, drawn.logprobs
    scored = [(ids, answer[0, place].logprobs) for place, ids in enumerate(COMPLETIONS)]
    for ids, found in (*scored, sampled):
        logits = plain.row_logits(network, PROMPT, ids)[:-1]
        expected = plain.log_softmax(logits)[range(len(ids)), ids]
        assert np.ptp(logits, axis=1).min() > 0.2
        np.testing.assert_allclose(found, expected, atol=WITHIN.get(name, 2e-4))


# transformers cannot run DeepSeek-V4 in bfloat16 on a CPU.
@pytest.mark.parametrize("name", [n for n in TRIED if n not in (*PACKED, "deepseek_v4")])
def test_it_takes_the_same_way_in_half_precision(name: str, tmp_path: Path) -> None:
    """Where a type rounds, less is seen of rows that meet."""
    folder = save_small(name, tmp_path)
    assert not load_model(folder, dtype="bfloat16", max_model_len=128).info.packed
