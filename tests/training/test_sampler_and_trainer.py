"""The server's samples replayed by a trainer: how far apart the two are, and what replay is worth.

prime-rl reports a mismatch KL of 0.0025 without replay of truncation and 0.0007 with it. What is
left with replay is the rounding of the bodies, and depends on the model: two ways in which
transformers itself computes SmolLM2 in bfloat16 are further apart than that.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from scoring_client import Sample, ScoringClient
from scoring_client.replay import (
    MismatchKL,
    linear_processed_logprobs,
    mismatch_kl,
    row_settings,
)
from scoring_service.models import tiny_model_path
from tests.e2e.served import ROOT, serving

PROMPTS = [
    "The capital of France is",
    "import numpy as np\n\ndef",
    "Once upon a time, in a village by the sea,",
    "To install the package, run",
    "The second law of thermodynamics says that",
    "for i in range(10):",
]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def smollm2_file() -> Path:
    tool = ROOT / "tools" / "fetch_smollm2.py"
    done = subprocess.run([sys.executable, tool], capture_output=True, text=True, check=True)
    return Path(done.stdout.strip().splitlines()[-1])


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


def in_dtype(network: Any, dtype: torch.dtype) -> Any:
    """The same numbers in another type, which transformers refuses to what was a GGUF file."""
    return torch.nn.Module.to(network, dtype)


def drawn_from(model: Path, dtype: str, n: int, trainer_dtype: str = "", *flags: str) -> Drawn:
    arguments = (str(model), "--dtype", dtype, *flags)
    with serving(*arguments) as served, ScoringClient(served.ready) as client:
        results = client.sample(
            PROMPTS, n=n, max_tokens=40, seed=7, ignore_eos=True, top_k=20, top_p=0.95
        )
    samples = list(results.samples())
    # The weights that are served, also where the trainer computes in more digits with them.
    trainer = in_dtype(trainer_of(model, dtype), DTYPES[trainer_dtype or dtype])
    return Drawn(samples, [s.prompt_token_ids.tolist() for s in samples], trainer)


@torch.inference_mode()
def replayed(drawn: Drawn, *, truncate: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The trainer's log-probs of all samples end to end, and the sampler's.

    The trainer's forward is its own: padded batches, whole sequences, no cache. Its head is in
    float32, as the server's.
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
        **settings,
    )
    sampler = [torch.from_numpy(sample.processed_logprobs) for sample in drawn.samples]
    return trainer, torch.cat(sampler)


def mismatch(drawn: Drawn, *, truncate: bool) -> MismatchKL:
    return mismatch_kl(*replayed(drawn, truncate=truncate))


def told(found: MismatchKL) -> str:
    return (
        f"{int(found.tokens)} tokens, k1 {found.k1:.2e}, k2 {found.k2:.2e}, k3 {found.k3:.2e}, "
        f"largest k3 {found.max_k3.max():.2e}"
    )


def standard_error(drawn: Drawn, trainer: torch.Tensor, sampler: torch.Tensor) -> float:
    """Of the mean k3, from the means of samples: tokens of one sample are not independent."""
    log_ratio = trainer - sampler
    k3 = torch.expm1(log_ratio) - log_ratio
    means = torch.stack(
        [part.mean() for part in k3.split([len(s.token_ids) for s in drawn.samples])]
    )
    return float(means.std() / len(means) ** 0.5)


def assert_replay_helps(drawn: Drawn, bound: float) -> None:
    on, off = mismatch(drawn, truncate=True), mismatch(drawn, truncate=False)
    print(f"\nwith replay: {told(on)}\nwithout:     {told(off)}")
    assert on.tokens > 500
    assert on.k3 < bound
    assert off.k3 >= 2 * on.k3


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-6), ("bfloat16", 7e-4)])
def test_the_packaged_model(dtype: str, bound: float) -> None:
    assert_replay_helps(drawn_from(tiny_model_path(), dtype, n=3), bound)


on_smollm2 = pytest.mark.skipif("SMOLLM2" not in os.environ, reason="minutes: make test-mismatch")


@on_smollm2
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("dtype", "n", "bound"), [("float32", 8, 1e-6), ("bfloat16", 32, 7e-4)])
def test_smollm2(dtype: str, n: int, bound: float) -> None:
    """Served in either type, trained in float32."""
    assert_replay_helps(drawn_from(smollm2_file(), dtype, n, "float32"), bound)


@on_smollm2
@pytest.mark.timeout(600)
def test_smollm2_in_bfloat16_on_both_sides() -> None:
    """The server is no further from float32 than the trainer's own bfloat16 is.

    How far the two are from each other depends on how many of their roundings are the same: at most
    both errors together. 7e-4 is not to be had between two computations whose bits differ, and
    transformers' two attentions do not have it either.
    """
    drawn = drawn_from(smollm2_file(), "bfloat16", 32)
    trainer, sampler = replayed(drawn, truncate=True)
    eager_trainer = trainer_of(smollm2_file(), "bfloat16", attn_implementation="eager")
    eager, _ = replayed(replace(drawn, trainer=eager_trainer), truncate=True)
    without = mismatch(drawn, truncate=False)
    wide = replace(drawn, trainer=in_dtype(drawn.trainer, torch.float32))
    exact, _ = replayed(wide, truncate=True)
    mixed, _ = replayed(replace(wide, autocast=True), truncate=True)
    for name, pair in {
        "trainer, sampler": (trainer, sampler),
        "trainer, trainer with eager attention": (trainer, eager),
        "trainer in mixed precision, sampler": (mixed, sampler),
        "float32, trainer in mixed precision": (exact, mixed),
        "float32, trainer": (exact, trainer),
        "float32, sampler": (exact, sampler),
    }.items():
        print(f"\n{name}: {told(mismatch_kl(*pair))}, ± {standard_error(drawn, *pair):.1e}")
    found = mismatch_kl(trainer, sampler).k3
    servers, trainers = mismatch_kl(exact, sampler).k3, mismatch_kl(exact, trainer).k3
    assert servers < trainers + 2 * standard_error(drawn, exact, sampler)
    assert found < servers + trainers
    assert without.k3 >= 2 * found


@on_smollm2
@pytest.mark.timeout(600)
def test_smollm2_with_residuals_in_float32() -> None:
    """A server whose residuals are what a trainer's are in mixed precision."""
    drawn = drawn_from(smollm2_file(), "bfloat16", 32, "", "--residual-dtype", "float32")
    trainer, sampler = replayed(drawn, truncate=True)
    wide = replace(drawn, trainer=in_dtype(drawn.trainer, torch.float32))
    exact, _ = replayed(wide, truncate=True)
    mixed, _ = replayed(replace(wide, autocast=True), truncate=True)
    unreplayed, _ = replayed(replace(wide, autocast=True), truncate=False)
    for name, pair in {
        "trainer in mixed precision, sampler": (mixed, sampler),
        "trainer in bfloat16, sampler": (trainer, sampler),
        "float32, sampler": (exact, sampler),
        "float32, trainer in bfloat16": (exact, trainer),
        "trainer in mixed precision without replay, sampler": (unreplayed, sampler),
    }.items():
        print(f"\n{name}: {told(mismatch_kl(*pair))}, ± {standard_error(drawn, *pair):.1e}")
    found = mismatch_kl(mixed, sampler).k3
    assert found < 7e-4
    assert mismatch_kl(unreplayed, sampler).k3 >= 2 * found
    assert 2 * mismatch_kl(exact, sampler).k3 < mismatch_kl(exact, trainer).k3
