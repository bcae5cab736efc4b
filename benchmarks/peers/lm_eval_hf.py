"""lm-eval's Hugging Face model: log-likelihoods of continuations."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

from lm_eval.models.huggingface import HFLM

from benchmarks.outcome import Outcome
from benchmarks.sides import SideConfig
from benchmarks.workloads import Scoring, Work

BATCH = 8


class LmEval:
    """`_loglikelihood_tokens` over (context, continuation) ids, in batches of 8."""

    def __init__(self, config: SideConfig) -> None:
        self.version = f"lm-eval {version('lm-eval')}"
        self.pids: dict[str, int] = {}
        self.backend: dict[str, str] = {}
        self._model: Any = HFLM(
            pretrained=config.model, dtype=config.dtype, device=config.device, batch_size=BATCH
        )

    def run(self, work: Work) -> Outcome:
        """Does the work."""
        if not isinstance(work, Scoring) or work.k:
            raise NotImplementedError
        began = time.perf_counter()
        requests = [
            (("", ""), prompt, completion)
            for prompt, completions in work.groups
            for completion in completions
        ]
        answers = self._model._loglikelihood_tokens(requests, disable_tqdm=True)
        seconds = time.perf_counter() - began
        sums = [float(total) for total, _greedy in answers]
        return Outcome(seconds, [seconds] * len(sums), sums)

    def close(self) -> None:
        """Nothing to end."""


def make(config: SideConfig) -> LmEval:
    """Loads it."""
    return LmEval(config)
