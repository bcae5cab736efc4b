"""TRL's own trainers on our server as their teacher."""

from __future__ import annotations

import ast
import inspect
import math
import re
import subprocess
import sys

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.server_distillation import (
    ServerDistillationConfig,
    ServerDistillationTrainer,
)
from trl.generation.vllm_client import VLLMClient

from scoring_client import ScoringClient
from scoring_client.adapters.trl import TeacherClient, as_teacher
from scoring_client.losses import TeacherRows, forward_kl
from tests.compat.conftest import Plain
from tests.compat.hooks import calls, described, recorded, source_of
from tests.e2e.served import ROOT

STEPS = 24


def test_the_hook_is_the_one_recorded() -> None:
    """What CI checks the adapter against without TRL is what TRL has."""
    assert described(VLLMClient.get_sequence_logprobs) == recorded("trl")["get_sequence_logprobs"]
    ours = inspect.signature(TeacherClient.get_sequence_logprobs).parameters
    theirs = inspect.signature(VLLMClient.get_sequence_logprobs).parameters
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]


@pytest.mark.parametrize(
    "module",
    [
        "server_distillation.server_distillation_trainer",
        "sdft.sdft_trainer",
        "sdpo.sdpo_trainer",
        "iw_opd.iw_opd_trainer",
    ],
)
def test_the_trainers_call_it_so(module: str) -> None:
    """What each gives, what it reads of the answer, and that its constructor makes the client."""
    source = source_of(f"trl.experimental.{module}")
    (call,) = calls(source, "get_sequence_logprobs")
    given = [argument.arg for argument in call.keywords]
    assert given == ["sequences", "prompt_lengths", "top_logprobs", "temperature"]
    assert not call.args
    assert ast.unparse(call.func) == "self.teacher_client.get_sequence_logprobs"
    read = {
        node.slice.value
        for node in ast.walk(source)
        if isinstance(node, ast.Subscript)
        and ast.unparse(node.value) == "result"
        and isinstance(node.slice, ast.Constant)
    }
    answered = {"logprobs", "logprob_token_ids", "actual_logprobs", "actual_token_ids"}
    assert "logprobs" in read
    assert read <= answered
    imports = [n for n in ast.walk(source) if isinstance(n, ast.ImportFrom)]
    (place,) = [n for n in imports if "VLLMClient" in [name.name for name in n.names]]
    assert place.module == "generation.vllm_client"
    assert place not in source.body, "imported there, it is not `as_teacher`'s"


def test_the_students_generation_keeps_its_own_client() -> None:
    """In a process of its own: `trl.generation.vllm_generation` is not imported before."""
    code = (
        "from scoring_client.adapters.trl import as_teacher\n"
        "from trl.generation.vllm_client import VLLMClient\n"
        "with as_teacher(None):\n"
        "    from trl.generation import vllm_generation\n"
        "assert vllm_generation.VLLMClient is VLLMClient\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_config_of_the_recipe_is_one_that_trl_takes() -> None:
    """Word for word, on a machine without a GPU."""
    page = (ROOT / "docs" / "recipes.md").read_text()
    (block,) = (b for b in re.findall(r"```py\n(.*?)```", page, re.DOTALL) if "as_teacher" in b)
    (made,) = (
        node
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "ServerDistillationConfig"
    )
    given = {argument.arg: ast.literal_eval(argument.value) for argument in made.keywords}
    config = ServerDistillationConfig(**given, use_cpu=True, bf16=False)
    assert (config.beta, config.loss_top_k) == (0.0, 64)


PROMPTS = ["import numpy as", "for i in range", "def __init__(self", "Return the"]


@pytest.fixture
def student(plain: Plain) -> torch.nn.Module:
    """The teacher's weights, disturbed."""
    model = AutoModelForCausalLM.from_pretrained(plain.path, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.3 * parameter.std() * noise)
    return model


def trainer_of(
    client: ScoringClient, plain: Plain, student: torch.nn.Module, folder: str, **options: object
) -> ServerDistillationTrainer:
    config = ServerDistillationConfig(
        output_dir=folder,
        teacher_model_server_url="http://nobody.invalid:1",
        max_steps=STEPS,
        per_device_train_batch_size=16,
        max_completion_length=12,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        bf16=False,
        seed=0,
        temperature=0.8,
        **options,
    )
    tokenizer = AutoTokenizer.from_pretrained(plain.path)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    with as_teacher(client):
        return ServerDistillationTrainer(
            model=student,
            args=config,
            train_dataset=datasets.Dataset.from_dict({"prompt": PROMPTS * 160}),
            processing_class=tokenizer,
        )


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.0, "loss_top_k": 20},
        {"beta": 1.0, "loss_top_k": 1},
        {"beta": 0.5, "loss_top_k": 1},
    ],
    ids=["forward", "reverse", "mixed"],
)
def test_unmodified_steps_lower_the_loss(
    client: ScoringClient, plain: Plain, student: torch.nn.Module, tmp_path, options: dict
) -> None:
    """Reverse KL needs the realised token's own log-prob: TRL raises where it is -inf."""
    trainer = trainer_of(client, plain, student, str(tmp_path), **options)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == STEPS
    assert all(math.isfinite(loss) for loss in losses)
    # On-policy: each step has samples of its own.
    third = STEPS // 3
    assert sum(losses[-third:]) < 0.85 * sum(losses[:third])


def test_its_loss_is_ours(
    client: ScoringClient, plain: Plain, student: torch.nn.Module, tmp_path
) -> None:
    """TRL's forward KL with its 1 - sum tail, and ours with the summed one, on the same batch."""
    trainer = trainer_of(client, plain, student, str(tmp_path), beta=0.0, loss_top_k=20)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    student.eval()
    theirs = trainer.compute_loss(student, batch).item()
    losses = []
    prompts = zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)
    completions = zip(batch["completion_ids"], batch["completion_mask"], strict=True)
    for (prompt, prompt_mask), (completion, completion_mask) in zip(
        prompts, completions, strict=True
    ):
        start = int(prompt_mask.sum())
        tokens = [
            *prompt[prompt_mask.bool()].tolist(),
            *completion[completion_mask.bool()].tolist(),
        ]
        found = client.topk_logprobs([(tokens[:start], [tokens[start:]])], 20, temperature=0.8)
        scores = found[0][0]
        with torch.no_grad():
            logits = student(input_ids=torch.tensor([tokens])).logits[0, start - 1 : -1]
        teacher = TeacherRows(
            token_ids=torch.from_numpy(scores.top_token_ids).long(),
            logprobs=torch.from_numpy(scores.top_logprobs),
            log_tail_masses=torch.from_numpy(scores.log_tail_masses),
        )
        losses.append(forward_kl(logits, teacher, temperature=0.8, reduction="none"))
    ours = torch.cat(losses).mean().item()
    assert theirs == pytest.approx(ours, rel=1e-3)
