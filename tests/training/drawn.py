"""Samples of a server, and the same model as a trainer has it: transformers, padded batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from scoring_client import Sample, ScoringClient
from scoring_client.replay import linear_processed_logprobs, row_settings
from scoring_client.values.options import SampleOptions
from tests.e2e.served import serving

PROMPTS = [
    "The capital of France is",
    "import numpy as np\n\ndef",
    "Once upon a time, in a village by the sea,",
    "To install the package, run",
    "The second law of thermodynamics says that",
    "for i in range(10):",
]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


TRUNCATION: SampleOptions = {"top_k": 20, "top_p": 0.95}


@dataclass(frozen=True)
class Drawn:
    """Samples of a served model, and the same model as a trainer has it."""

    samples: list[Sample]
    prompts: list[list[int]]
    trainer: Any
    autocast: bool = False
    """Whether the trainer's weights are float32 and its products bfloat16: mixed precision."""


def trainer_of(model: Path, dtype: str, **options: Any) -> Any:
    name = {"gguf_file": model.name} if model.suffix == ".gguf" else {}
    folder = model.parent if name else model
    trainer = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype], **name, **options)
    return trainer.eval()


def widened(drawn: Drawn) -> Drawn:
    """The weights that are served, computed with in float32. Changes the network in place.

    By torch's own method: transformers refuses it to what was a GGUF file.
    """
    return replace(drawn, trainer=torch.nn.Module.to(drawn.trainer, torch.float32))


def drawn_from(model: Path, dtype: str, n: int, *flags: str, max_tokens: int = 40) -> Drawn:
    arguments = (str(model), "--dtype", dtype, *flags)
    with serving(*arguments) as served, ScoringClient(served.ready) as client:
        results = client.sample(
            PROMPTS, n=n, max_tokens=max_tokens, seed=7, ignore_eos=True, **TRUNCATION
        )
    samples = list(results.samples())
    prompts = [s.prompt_token_ids.tolist() for s in samples]
    return Drawn(samples, prompts, trainer_of(model, dtype))


@torch.inference_mode()
def replayed(
    drawn: Drawn, *, truncate: bool = True, head_dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """The trainer's log-probs of all samples end to end, and the sampler's.

    The trainer's forward is its own: padded batches, whole sequences, no cache.
    """
    lengths = [len(sample.token_ids) for sample in drawn.samples]
    sequences = [
        torch.tensor([*prompt, *sample.token_ids])
        for prompt, sample in zip(drawn.prompts, drawn.samples, strict=True)
    ]
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=drawn.autocast):
        hidden = drawn.trainer.model(input_ids=ids).last_hidden_state
    rows = [
        hidden[b, len(prompt) - 1 : len(prompt) - 1 + length]
        for b, (prompt, length) in enumerate(zip(drawn.prompts, lengths, strict=True))
    ]
    settings = row_settings([sample.processing for sample in drawn.samples], lengths)
    if not truncate:
        settings = {"temperature": settings["temperature"]}
    trainer = linear_processed_logprobs(
        torch.cat(rows),
        drawn.trainer.lm_head.weight,
        torch.cat([torch.from_numpy(sample.token_ids).long() for sample in drawn.samples]),
        head_dtype=head_dtype,
        **settings,
    )
    sampler = [torch.from_numpy(sample.processed_logprobs) for sample in drawn.samples]
    return trainer, torch.cat(sampler)
