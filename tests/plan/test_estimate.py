"""The plan's arithmetic against counts made another way, and against a server."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scoring_client import ScoringClient
from scoring_service import config as server_config
from scoring_service.engine.machine.page_budget import GRAPH_SLOTS, page_bytes
from scoring_service.model_shape import model_shape
from scoring_service.models import tiny_model_path
from scoring_service.plan.command import PlanConfig, plan_text
from scoring_service.plan.estimate import DoesNotFitError, estimate
from scoring_service.plan.hardware import PRESETS, Hardware
from scoring_service.plan.traffic import Traffic
from tests.e2e.served import BIN, ROOT, serving

TINY = model_shape(json.loads((tiny_model_path() / "config.json").read_text()))
MACHINE = Hardware("cuda", 1e9, 1e12, 1e11, 0.5, 0.25, "made up")
GRPO = Traffic("score", 256, 64, 8, 0, 10.0)


def plan_of(traffic: Traffic = GRPO, hardware: Hardware = MACHINE, **settings: Any) -> Any:
    return estimate(TINY, hardware, traffic, dtype_bytes=2, **settings)


def test_a_prompt_is_counted_once() -> None:
    # Token by token: what each one computes in the body, and whom it looks at.
    lengths = [*range(1, 257), *(256 + i for _ in range(8) for i in range(1, 65))]
    assert GRPO.distinct_tokens == len(lengths) == 256 + 8 * 64
    assert GRPO.pairs == sum(lengths)
    assert GRPO.called_tokens == 8 * 320
    flops = sum(2 * TINY.body_parameters + TINY.pair_flops * seen for seen in lengths)
    flops += 8 * 64 * 2 * TINY.head_parameters
    assert plan_of().flops_per_group == flops


def test_the_count_is_that_of_the_benchmarks() -> None:
    """benchmarks/results/packed.json holds what its own counting made of grpo on SmolLM2."""
    smollm2 = model_shape({
        "model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536,
        "vocab_size": 49_152, "max_position_embeddings": 8192, "tie_word_embeddings": True,
    })  # fmt: skip
    traffic = replace(GRPO, groups_per_second=1)
    plan = estimate(smollm2, replace(MACHINE, memory_bytes=8e9), traffic, dtype_bytes=2)
    results = json.loads((ROOT / "benchmarks/results/packed.json").read_text())
    assert 4 * plan.flops_per_group == results["workloads"]["grpo"]["flops"]


def test_replicas_and_rates() -> None:
    plan = plan_of()
    seconds = plan.flops_per_group / 0.5e12
    assert plan.groups_per_second == pytest.approx(1 / seconds)
    assert plan.tokens_per_second == pytest.approx(2560 / seconds)
    for groups in (1.0, 0.7 / seconds, 0.71 / seconds, 5 / seconds):
        planned = plan_of(replace(GRPO, groups_per_second=groups))
        assert planned.replicas == max(1, math.ceil(groups * seconds / 0.7))
        assert planned.utilisation <= 0.7 + 1e-9


def test_memory_is_divided_as_the_engine_divides_it() -> None:
    plan = plan_of(memory_utilization=0.5)
    left = 1e9 - TINY.parameters * 2 - plan.graph_bytes
    assert plan.graph_bytes > 4 * GRAPH_SLOTS
    assert plan_of(hardware=replace(MACHINE, device="cpu")).graph_bytes == 0
    page = page_bytes(TINY.kv_width, TINY.hidden, 2)
    assert page >= (16 * TINY.kv_width + TINY.hidden) * 2
    assert plan.pages == (int(left * 0.5) - plan.step_bytes) // page
    # On a CPU the head lies there once more, as its product takes it.
    on_cpu = plan_of(hardware=replace(MACHINE, device="cpu"))
    assert on_cpu.weights_bytes == (TINY.parameters + TINY.vocab_size * 160) * 2
    with pytest.raises(DoesNotFitError, match="one prompt group needs 52"):
        plan_of(hardware=replace(MACHINE, memory_bytes=3e6))
    with pytest.raises(DoesNotFitError, match=r"not split over GPUs: .* \(h200: 141 GB\)$"):
        plan_of(hardware=replace(MACHINE, memory_bytes=3e6, device="cuda"))
    with pytest.raises(DoesNotFitError, match=r"a machine with more memory$"):
        plan_of(hardware=replace(MACHINE, memory_bytes=3e6, device="cpu"))


LLAMA_70B = model_shape({
    "model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
    "num_key_value_heads": 8, "intermediate_size": 28_672, "vocab_size": 128_256,
    "max_position_embeddings": 131_072, "tie_word_embeddings": False,
})  # fmt: skip


@pytest.mark.parametrize("name", ["l40s", "h200"])
@pytest.mark.parametrize("completions", [1, 2000])
def test_what_no_device_holds_is_told_with_what_it_takes(name: str, completions: int) -> None:
    """Not "take a larger one, such as an H200" of 141 GB of weights, or of an H200."""
    traffic = Traffic("score", 512, 512, completions, 0, 1.0)
    weights = 2 * 70_553_706_496  # as Meta's files have it
    hardware = PRESETS[name]

    def fits(gigabytes: float) -> bool:
        estimate(LLAMA_70B, replace(hardware, memory_bytes=gigabytes * 1e9), traffic, dtype_bytes=2)
        return True

    with pytest.raises(DoesNotFitError) as refused:
        estimate(LLAMA_70B, hardware, traffic, dtype_bytes=2)
    assert "take a larger --hardware" not in str(refused.value)
    (needed,) = re.findall(r"one with (\d+) GB is needed", str(refused.value))
    assert int(needed) * 1e9 > weights
    assert fits(int(needed))
    with pytest.raises(DoesNotFitError):
        fits(int(needed) - 1)


def test_a_group_that_is_too_large_can_be_smaller() -> None:
    with pytest.raises(DoesNotFitError, match=r"fewer completions"):
        plan_of(replace(GRPO, completions=10**7), PRESETS["h200"])


def test_drawing_is_bound_by_memory_or_by_arithmetic() -> None:
    sample = replace(GRPO, rpc="sample")
    plan = plan_of(sample)
    assert plan.decode_batch == 256
    slow_memory = plan_of(sample, replace(MACHINE, bandwidth=1e9))
    read = plan.weights_bytes + 256 * (256 + 32) * plan.kv_bytes_per_token
    steps = 64 * 8 / 256
    drawing = steps * read / 1e9 / 0.25
    prefill = 256 * 2 * TINY.body_parameters + TINY.pair_flops * 256 * 257 / 2
    assert 1 / slow_memory.groups_per_second == pytest.approx(drawing + prefill / 0.5e12)
    assert slow_memory.groups_per_second < plan.groups_per_second


def test_flags_are_flags_of_the_server() -> None:
    for traffic in (GRPO, replace(GRPO, rpc="sample"), replace(GRPO, prompt_length=4096)):
        flags = plan_of(traffic).flags
        values = {
            flag.removeprefix("--").replace("-", "_"): float(value) if "." in value else int(value)
            for flag, value in flags.items()
        }
        server_config.check_ranges(server_config.ServeConfig(**values))
        assert values["max_model_len"] == traffic.sequence_tokens


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    with serving() as server:
        yield server.ready


@pytest.mark.parametrize("rpc", ["score", "topk", "sample"])
def test_answers_are_as_large_as_a_server_sends_them(rpc: Any, target: str) -> None:
    traffic = Traffic(rpc, 32, 500, 4, 50 if rpc == "topk" else 0, 1.0)
    prompt = list(range(3, 35))
    completions = [[(7 * i + c) % 2000 for i in range(500)] for c in range(4)]
    with ScoringClient(target) as client:
        if rpc == "score":
            usage = client.score([(prompt, completions)]).usage
        elif rpc == "topk":
            usage = client.topk_logprobs([(prompt, completions)], 50).usage
        else:
            usage = client.sample([prompt], n=4, max_tokens=500, ignore_eos=True).usage
    # Small integers take less than four bytes, and around the numbers there are messages.
    if rpc == "sample":
        # How many tokens share a result depends on how fast they are drawn and read. One of a
        # single token has 45 bytes, with indices, place, seed and weights; the plan counts 12. An
        # id of this model has at most two of the four that the plan counts.
        around = 36 * traffic.rows
        least = traffic.reply_bytes - 3 * traffic.rows
        assert least < usage.reply_bytes < traffic.reply_bytes + around
        return
    assert usage.reply_bytes == pytest.approx(traffic.reply_bytes, rel=0.1)


# The command


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "scoring-service", "plan", *arguments], capture_output=True, text=True, check=False
    )


def test_the_command_plans_the_packaged_model() -> None:
    ended = run("--hardware", "cpu-2-cores", "--tokens-per-second", "50000")
    assert ended.returncode == 0, ended.stderr
    assert "1.37 M parameters" in ended.stdout
    assert "measured in benchmarks/results/cpu-float32-head.json" in " ".join(ended.stdout.split())
    assert "--max-batch-tokens 1024" in ended.stdout


@pytest.mark.parametrize("model", ["/nowhere/model", "./model", "~/model"])
def test_a_path_is_no_name_of_the_hub(model: str) -> None:
    with pytest.raises(OSError, match=f"there is no folder and no config.json {model}"):
        plan_text(model, PlanConfig())


def test_the_command_imports_no_torch() -> None:
    program = (
        "import sys\nfrom scoring_service.plan.command import PlanConfig, plan_text\n"
        "plan_text(None, PlanConfig())\nsys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_commands_numbers_are_the_plans() -> None:
    config = PlanConfig(
        hardware="h200", rpc="topk", k=128, prompts_per_second=3, efficiency=0.5,
        matrix_tflops=700, json=True,
    )  # fmt: skip
    printed = json.loads(plan_text(None, config))
    hardware = replace(
        PRESETS["h200"], matrix_flops=700e12, scoring_efficiency=0.5, decode_efficiency=0.5
    )
    traffic = Traffic("topk", 512, 512, 8, 128, 3.0)
    plan = estimate(TINY, hardware, traffic, dtype_bytes=2)
    assert printed["plan"]["flags"] == plan.flags
    assert np.isclose(printed["plan"]["tokens_per_second"], plan.tokens_per_second)
    assert printed["plan"]["reply_bytes_per_second"] == 3 * 8 * 512 * 4 * (3 + 256)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--completions", "0"), "completions must be above 0"),
        (("--memory-gb", "0.003"), "GB of weights leave"),
        (("--prompts-per-second", "1", "--tokens-per-second", "1"), "not both"),
        (("--prompts-per-second", "0"), "prompts_per_second must be above 0, not 0"),
        (("--memory-utilization", "0"), "memory_utilization must be in [0.01, 1], not 0"),
        (("--memory-utilization", "1.5"), "memory_utilization must be in [0.01, 1], not 1.5"),
        (("--efficiency", "1.2"), "efficiency is a share, at most 1, not 1.2"),
        (("--prompt-length", "1000000"), "make 1000512 tokens; the model has positions for "),
        (("--rpc", "topk", "--k", "1000000"), "k must be at most the vocabulary, "),
        (("pyproject.toml",), "is no config.json"),
    ],
)
def test_what_makes_no_sense_is_said(arguments: tuple[str, ...], said: str) -> None:
    ended = run(*arguments)
    assert ended.returncode == 2
    assert said in ended.stderr
