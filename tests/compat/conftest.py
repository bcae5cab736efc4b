"""A real server process, and plain transformers beside it, in the environment of a framework.

Each folder is run by `make test-adapters` in an environment of its own, with the real package at
the version that the Makefile pins; elsewhere it is not collected. What stands in this folder itself
runs everywhere.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest
import torch
from transformers import AutoModelForCausalLM

from scoring_client import ScoringClient
from scoring_service.models import tiny_model_path
from tests.e2e.served import serving

PACKAGES = {
    "lm_eval": "lm_eval",
    "tinker": "tinker",
    "tinker/test_cookbook.py": "tinker_cookbook",
    "trl": "trl",
    "verl": "verl",
}

collect_ignore = [
    place for place, package in PACKAGES.items() if importlib.util.find_spec(package) is None
]


@pytest.fixture(scope="session")
def target() -> Iterator[str]:
    """Where the packaged model is served, in float32."""
    with serving("--dtype", "float32") as running:
        yield running.ready


@pytest.fixture(scope="session")
def client(target: str) -> Iterator[ScoringClient]:
    with ScoringClient(target) as made:
        yield made


class Plain:
    """The packaged model through plain transformers, in float32: the independent reference."""

    def __init__(self) -> None:
        self.path = str(tiny_model_path())
        self.network = AutoModelForCausalLM.from_pretrained(self.path, dtype=torch.float32).eval()

    def logprobs(self, ids: list[int], temperature: float = 1.0) -> torch.Tensor:
        """float64 [len(ids), V]: row i predicts token i + 1."""
        with torch.inference_mode():
            logits = self.network(input_ids=torch.tensor([ids])).logits[0]
        return (logits.double() / temperature).log_softmax(1)

    def realised(self, ids: list[int], temperature: float = 1.0) -> torch.Tensor:
        """float64 [len(ids) - 1]: of token 1, 2, …"""
        rows = self.logprobs(ids, temperature)[:-1]
        return rows.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


@pytest.fixture(scope="session")
def plain() -> Plain:
    return Plain()


def texts(count: int, length: int, seed: int = 0) -> list[list[int]]:
    """Random token ids of the packaged model."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(16, 2000, (count, length), generator=generator).tolist()
