"""What people write by hand: padded batches through transformers, log-softmax, gather, top-k."""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from benchmarks.outcome import Outcome
from benchmarks.sides import SideConfig
from benchmarks.workloads import Sampling, Scoring, Work

BATCH = 8
"""Sequences a batch, the common choice in trainers' own code."""


class TransformersPadded:
    """Sequences in the order given, padded on the right to the longest of their batch."""

    def __init__(self, config: SideConfig, batch: int = BATCH) -> None:
        self.version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        self.pids: dict[str, int] = {}
        self.backend: dict[str, str] = {}
        self._batch = batch
        self._device = config.device
        dtype = getattr(torch, config.dtype)
        network: Any = AutoModelForCausalLM.from_pretrained(config.model, dtype=dtype)
        self._network = network.to(config.device).eval()

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
        latencies: list[float] = []
        sums: list[float] = []
        for start in range(0, len(pairs), self._batch):
            chunk = pairs[start : start + self._batch]
            longest = max(len(p) + len(c) for p, c in chunk)
            ids = torch.zeros(len(chunk), longest, dtype=torch.int64)
            mask = torch.zeros(len(chunk), longest, dtype=torch.int64)
            for row, (p, c) in enumerate(chunk):
                ids[row, : len(p) + len(c)] = torch.tensor(p + c)
                mask[row, : len(p) + len(c)] = 1
            ids, mask = ids.to(self._device), mask.to(self._device)
            with torch.inference_mode():
                keep = max(len(c) for _, c in chunk) + 1 if self._same_ends(chunk) else longest
                logits = self._network(
                    input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=keep
                ).logits
                for row, (p, c) in enumerate(chunk):
                    first = len(p) - 1 - (longest - logits.shape[1])
                    rows = logits[row, first : first + len(c)]
                    logprobs = torch.log_softmax(rows.float(), dim=-1)
                    target = ids[row, len(p) : len(p) + len(c), None]
                    sums.append(float(logprobs.gather(1, target).sum()))
                    if work.k:
                        top = logprobs.topk(work.k, dim=-1)
                        top.values.cpu().numpy(), top.indices.cpu().numpy()
                    latencies.append(time.perf_counter() - began)
        return Outcome(time.perf_counter() - began, latencies, sums)

    def _same_ends(self, chunk: list[tuple[list[int], list[int]]]) -> bool:
        """Whether completions end together, so that only their rows need logits."""
        return len({(len(p), len(c)) for p, c in chunk}) == 1

    def _sample(self, work: Sampling) -> Outcome:
        torch.manual_seed(0)
        began = time.perf_counter()
        ids = torch.tensor(work.prompts, device=self._device)
        output = self._network.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=work.max_tokens,
            min_new_tokens=work.max_tokens,
            do_sample=True,
            top_k=work.top_k,
            top_p=work.top_p,
            output_scores=True,
            return_dict_in_generate=True,
        )
        # Log-probs, as the other sides leave them: without normalising they would be logits.
        transition = self._network.compute_transition_scores(
            output.sequences, output.scores, normalize_logits=True
        )
        assert transition.shape == (len(work.prompts), work.max_tokens)
        seconds = time.perf_counter() - began
        return Outcome(seconds, [seconds] * len(work.prompts))


def make(config: SideConfig) -> TransformersPadded:
    """Loads it."""
    return TransformersPadded(config)
