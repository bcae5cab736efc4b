"""verl's agent loop on our server as its teacher."""

from __future__ import annotations

import ast
import asyncio
import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
from verl.experimental.teacher_loop.teacher_manager import (
    AsyncTeacherLLMServerManager,
    _pad_teacher_outputs,
)

from scoring_client import AsyncScoringClient
from scoring_client.adapters.verl import TeacherManager
from scoring_client.adapters.verl_worker import ServedTeacher
from tests.compat.conftest import Plain, texts
from tests.compat.hooks import calls, described, recorded, source_of


def test_the_hook_is_the_one_recorded() -> None:
    theirs = AsyncTeacherLLMServerManager.compute_teacher_logprobs_single
    assert described(theirs) == recorded("verl")["compute_teacher_logprobs_single"]
    ours = inspect.signature(TeacherManager.compute_teacher_logprobs_single)
    assert [(p.name, p.kind, p.default) for p in ours.parameters.values()] == [
        (p.name, p.kind, p.default) for p in inspect.signature(theirs).parameters.values()
    ]


def test_the_workers_hook_is_the_one_recorded() -> None:
    """What the mixin stands before, and the names by which a worker of one's own gets in."""
    theirs = AgentLoopWorker._compute_teacher_logprobs
    assert described(theirs) == recorded("verl_worker")["_compute_teacher_logprobs"]
    for path, worker, manager, decorators in (
        ("verl.experimental.agent_loop.agent_loop", "AgentLoopWorker", "AgentLoopManager", []),
        # Its own class is inside what ray made of it: docs/adapters.md takes it out.
        (
            "verl.trainer.ppo.v1.agent_loop_tq",
            "AgentLoopWorkerTQ",
            "AgentLoopManagerTQ",
            ["ray.remote"],
        ),
    ):
        source = source_of(path)
        classes = {node.name: node for node in source.body if isinstance(node, ast.ClassDef)}
        (call,) = calls(classes[worker], "_compute_teacher_logprobs")
        given = [argument.arg for argument in call.keywords]
        assert given == ["prompt_ids", "response_ids", "validate", "sample_kwargs"]
        assert len(call.args) == 1
        assert "agent_loop_workers_class" in ast.unparse(classes[manager])
        assert [ast.unparse(each) for each in classes[worker].decorator_list] == decorators
    for trainer in ("verl.trainer.main_ppo", "verl.trainer.ppo.ray_trainer"):
        source = ast.unparse(source_of(trainer))
        setting = "rollout.get('agent', {}).get('agent_loop_manager_class')"
        assert f"manager_class_fqn = self.config.actor_rollout_ref.{setting}" in source, trainer
        assert "load_class_from_fqn(manager_class_fqn, " in source, trainer


def through_the_agent_loop(target: str, prompt: list[int], response: list[int], **options: Any):
    """verl's unmodified `_compute_teacher_logprobs`: what it leaves in the output."""

    async def main() -> dict[str, Any]:
        async with AsyncScoringClient(target) as client:
            worker = SimpleNamespace(
                distillation_enabled=True,
                teacher_key="data_source",
                teacher_server_manager=TeacherManager(client, **options),
            )
            output = SimpleNamespace(multi_modal_data={}, mm_processor_kwargs=None, extra_fields={})
            await AgentLoopWorker._compute_teacher_logprobs(
                worker,
                output,
                prompt,
                response,
                validate=False,
                sample_kwargs={"data_source": np.array("math")},
            )
            return output.extra_fields

    return asyncio.run(main())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_realised_token(target: str, plain: Plain, temperature: float) -> None:
    prompt, response = texts(2, 11)
    fields = through_the_agent_loop(target, prompt, response, temperature=temperature)
    ids, logprobs = fields["teacher_ids"], fields["teacher_logprobs"]
    assert ids.dtype == torch.int32
    assert ids.shape == logprobs.shape == (22, 1)
    assert ids[:, 0].tolist() == [*(prompt + response)[1:], 0]
    expected = plain.realised(prompt + response, temperature)
    np.testing.assert_allclose(logprobs[:-1, 0], expected, atol=1e-4)
    assert logprobs[-1, 0] == 0


def test_the_list(target: str, plain: Plain) -> None:
    prompt, response = texts(2, 11, seed=1)
    fields = through_the_agent_loop(target, prompt, response, topk=16)
    best = plain.logprobs(prompt + response)[:-1].topk(16, dim=1)
    assert torch.equal(fields["teacher_ids"][:-1].long(), best.indices)
    np.testing.assert_allclose(fields["teacher_logprobs"][:-1], best.values, atol=1e-4)
    # verl's own padding takes it.
    ids, logprobs = _pad_teacher_outputs(
        fields["teacher_ids"], fields["teacher_logprobs"], 20, 30, 11, 11, pad_token_id=0
    )
    assert ids.shape == logprobs.shape == (1, 50, 16)


def test_a_worker_with_a_served_teacher(target: str, plain: Plain) -> None:
    """verl's unmodified class behind the mixin: rows of the prompt are zeros."""
    prompt, response = texts(2, 11, seed=2)
    made = []

    class Worker(ServedTeacher, AgentLoopWorker):
        distillation_enabled = True
        teacher_key = "data_source"

        def __init__(self, client: AsyncScoringClient) -> None:
            self.client = client  # theirs reads a whole configuration

        def make_teacher(self) -> TeacherManager:
            made.append(self)
            return TeacherManager(self.client)

    async def main() -> list[dict[str, Any]]:
        async with AsyncScoringClient(target) as client:
            worker, found = Worker(client), []
            for validate in (False, False, True):
                output = SimpleNamespace(
                    multi_modal_data={}, mm_processor_kwargs=None, extra_fields={}
                )
                await worker._compute_teacher_logprobs(
                    output,
                    prompt_ids=prompt,
                    response_ids=response,
                    validate=validate,
                    sample_kwargs={"data_source": np.array("math")},
                )
                found.append(output.extra_fields)
            return found

    *scored, unscored = asyncio.run(main())
    assert len(made) == 1
    assert unscored == {}
    for fields in scored:
        logprobs = fields["teacher_logprobs"][:, 0]
        assert (logprobs[:10] == 0).all()
        expected = plain.realised(prompt + response)[10:]
        np.testing.assert_allclose(logprobs[10:-1], expected, atol=1e-4)
