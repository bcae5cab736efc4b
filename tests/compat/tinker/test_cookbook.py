"""tinker-cookbook's own functions, unmodified, on our server."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import tinker
import torch
from tinker import types
from tinker_cookbook.completers import TinkerTokenCompleter
from tinker_cookbook.distillation import sdft

from scoring_client import ScoringClient
from scoring_client.adapters.tinker import SamplingClient
from tests.compat.conftest import Plain, texts


@pytest.fixture(scope="module")
def sampler(client: ScoringClient) -> SamplingClient:
    return SamplingClient(client, base_model="tiny")


def prompt_of(ids: list[int]) -> types.ModelInput:
    return types.ModelInput.from_ints(ids)


def datum(prompt: list[int], completion: list[int], logprobs: list[float]) -> tinker.Datum:
    """As the cookbook's rollouts leave it."""
    ids = prompt + completion
    mask = [0.0] * (len(prompt) - 1) + [1.0] * len(completion)
    padded = [0.0] * (len(prompt) - 1) + logprobs
    return tinker.Datum(
        model_input=types.ModelInput.from_ints(ids[:-1]),
        loss_fn_inputs={
            "target_tokens": types.TensorData.from_torch(torch.tensor(ids[1:])),
            "mask": types.TensorData.from_torch(torch.tensor(mask)),
            "logprobs": types.TensorData.from_torch(torch.tensor(padded)),
            "advantages": types.TensorData.from_torch(torch.zeros(len(mask))),
        },
    )


def test_the_cookbooks_topk_distillation(sampler: SamplingClient, plain: Plain) -> None:
    """Unmodified `build_topk_distillation_datums`: its targets are the teacher's own."""
    student_prompt, teacher_prompt, completion = *texts(2, 9, seed=6), texts(1, 12, seed=7)[0]
    (made,), metrics = asyncio.run(
        sdft.build_topk_distillation_datums(
            [datum(student_prompt, completion, [-1.0] * 12)],
            [{"group_idx": 0}],
            sampler,
            [prompt_of(teacher_prompt)],
            topk=20,
        )
    )
    targets = made.loss_fn_inputs["target_tokens"].to_torch()
    weights = made.loss_fn_inputs["weights"].to_torch()
    assert targets.shape == weights.shape == (20, 20)
    teacher = plain.logprobs(teacher_prompt + completion)[8:-1]
    best = teacher.topk(20, dim=1)
    # The first three completion tokens are left out, as the function says.
    assert (weights[:11] == 0).all()
    assert torch.equal(targets[11:], best.indices[3:])
    torch.testing.assert_close(
        weights[11:].double(), best.values[3:].softmax(1), rtol=1e-3, atol=1e-5
    )
    assert metrics["sdft/total_completion_tokens"] == 12


def test_the_cookbooks_advantages(sampler: SamplingClient, plain: Plain) -> None:
    """Unmodified `compute_sdft_advantages`: teacher minus student at each completion token."""
    student_prompt, teacher_prompt, completion = *texts(2, 9, seed=8), texts(1, 12, seed=9)[0]
    student = plain.realised(student_prompt + completion)[8:]
    data = datum(student_prompt, completion, student.tolist())
    asyncio.run(
        sdft.compute_sdft_advantages(
            [data], [{"group_idx": 0}], sampler, [prompt_of(teacher_prompt)]
        )
    )
    teacher = plain.realised(teacher_prompt + completion)[8:]
    advantages = data.loss_fn_inputs["advantages"].to_torch()
    np.testing.assert_allclose(advantages[8:], teacher - student, atol=2e-4)


def test_the_cookbooks_completer(sampler: SamplingClient) -> None:
    completer = TinkerTokenCompleter(sampler, max_tokens=5)
    found = asyncio.run(completer(prompt_of([5, 6, 7]), stop=[2]))
    assert 1 <= len(found.tokens) <= 5
    assert len(found.logprobs) == len(found.tokens)
