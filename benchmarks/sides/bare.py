"""transformers' own forward over what must be computed, and nothing around it.

No limit: this service's kernels do the same arithmetic faster. See `packed_forward`.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from benchmarks.outcome import Outcome
from benchmarks.sides import SideConfig
from benchmarks.workloads import Mixed, Sampling, Scoring, Work

_HEAD_ROWS = 256


class Bare:
    """Runs the body over each group's tokens, every prompt once, and the head over wanted rows.

    A group's completions stand one after another behind the prompt, so that the products have the
    shapes of an ideally packed step. The numbers mean nothing; the time is what remains when
    everything around the arithmetic costs nothing.
    """

    def __init__(self, config: SideConfig) -> None:
        self.version = f"torch {torch.__version__}, transformers {transformers.__version__}"
        self.pids: dict[str, int] = {}
        self.backend: dict[str, str] = {}
        dtype = getattr(torch, config.dtype)
        self._device = config.device
        network: Any = AutoModelForCausalLM.from_pretrained(config.model, dtype=dtype)
        self._network = network.to(config.device).eval()
        head = self._network.get_output_embeddings().weight.detach()
        self._head = head.to(getattr(torch, config.head_dtype))

    def run(self, work: Work) -> Outcome:
        """Does the arithmetic."""
        if isinstance(work, Mixed):
            raise NotImplementedError
        began = time.perf_counter()
        with torch.inference_mode():
            if isinstance(work, Scoring):
                self._score(work)
            else:
                self._decode(work)
        if self._device != "cpu":
            torch.cuda.synchronize()
        return Outcome(time.perf_counter() - began)

    def _score(self, work: Scoring) -> None:
        for prompt, completions in work.groups:
            ids = prompt + [token for completion in completions for token in completion]
            rows = sum(map(len, completions))
            batch = torch.tensor([ids], device=self._device)
            hidden = self._network.base_model(batch, use_cache=False).last_hidden_state[0]
            for start in range(len(ids) - rows, len(ids), _HEAD_ROWS):
                _ = hidden[start : start + _HEAD_ROWS].to(self._head.dtype) @ self._head.t()

    def _decode(self, work: Sampling) -> None:
        """Prompts are of one length here, so one batch without padding; tokens are given."""
        batch = torch.tensor(work.prompts, device=self._device)
        cache = None
        for _ in range(work.max_tokens):
            output = self._network.base_model(batch, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            _ = output.last_hidden_state[:, -1].to(self._head.dtype) @ self._head.t()
            batch = batch[:, -1:]

    def close(self) -> None:
        """Nothing to end."""


def make(config: SideConfig) -> Bare:
    """Loads it."""
    return Bare(config)
