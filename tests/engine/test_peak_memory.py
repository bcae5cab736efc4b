"""The memory that is predicted for a call, against what a process takes for it.

`make soak ARGS=tests/engine/test_peak_memory.py` loads every body in both types.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma2Config,
    PreTrainedConfig,
    Qwen3MoeConfig,
)

from scoring_service.engine.events import ScoreSlice
from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.peak_memory import answer_limit
from scoring_service.types import RowWants
from tests.engine.driving import engine_of
from tests.engine.peaks import MIB, measured, scoring
from tests.intensity import SOAK

KERNELS = {
    "short": "scoring(V, [20], RowWants())",
    "long-prompt": "scoring(V, [1], RowWants(), prompt=1500)",
    "rows": "scoring(V, [257], RowWants(entropy=True, rank=True))",
    "truncated": "scoring(V, [100], TRUNCATED, processing=Processing(top_p=0.9))",
    "top-1024": "scoring(V, [200] * 2, RowWants(top_k=1024))",
    "top-of-all": "scoring(V, [64], RowWants(top_k=V))",
    "candidates": "scoring(V, [64] * 2, RowWants(), candidates=4096)",
    "samples": "sampling(V, 64, 48, 2)",
    "samples-top-1024": "sampling(V, 64, 48, 2, top_logprobs=1024)",
}
OPERATORS = {name: KERNELS[name] for name in ("rows", "truncated", "samples")}
OTHERS = {name: KERNELS[name] for name in ("rows", "samples")}
"""For heads that cap, and for two threads."""
BODIES = {
    "long-prompt": KERNELS["long-prompt"],
    "rows": KERNELS["rows"],
}
"""For bodies of another shape: experts, latent attention. Measured once the library has compiled
and keeps the products of these numbers of rows, of which there are many with experts: that memory
is beside what a step takes."""
LATENT_TYPES = ("bfloat16", "float32") if SOAK else ("bfloat16",)
"""Experts are asked in both types: half of a latent body's products are theirs."""

_WIDTHS = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 2,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
}


def save_seeded(config: PreTrainedConfig, folder: Path) -> None:
    """The same weights each time: which experts a token takes decides what its step takes."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def capped_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's widths as a Gemma 2, whose logits are capped after the product."""
    folder = tmp_path_factory.mktemp("gemma2")
    config = Gemma2Config(**_WIDTHS, sliding_window=64, final_logit_softcapping=30.0)
    save_seeded(config, folder)
    return folder


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's widths as a Qwen 3 MoE: eight of 32 experts a token."""
    folder = tmp_path_factory.mktemp("qwen3-moe")
    config = Qwen3MoeConfig(
        **_WIDTHS, num_experts=32, num_experts_per_tok=8, moe_intermediate_size=256
    )
    save_seeded(config, folder)
    return folder


@pytest.fixture(scope="module")
def latent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's widths as a DeepSeek V3: latent attention, and experts with a shared one."""
    folder = tmp_path_factory.mktemp("deepseek-v3")
    ranks = {"q_lora_rank": 192, "kv_lora_rank": 128}
    heads = {"qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64}
    routing = {"n_routed_experts": 16, "num_experts_per_tok": 4, "n_group": 1, "topk_group": 1}
    widths = {name: _WIDTHS[name] for name in _WIDTHS if name != "head_dim"}
    config = DeepseekV3Config(
        **{**widths, "num_key_value_heads": 9, "moe_intermediate_size": 256},
        **ranks,
        **heads,
        **routing,
    )
    config.first_k_dense_replace = 1
    save_seeded(config, folder)
    return folder


def test_a_call_takes_what_was_predicted(
    smollm2_wide: Path, capped_head: Path, experts: Path, latent: Path
) -> None:
    """A prediction is at least what was taken, and at most twice that and a little.

    How many copies torch's operators make, without the kernels, depends on what they meet.
    """
    found = measured(
        f"""
        from scoring_service.peak_memory import step_bytes
        from scoring_service.pool.admission.call_memory import call_work

        TRUNCATED = RowWants(processed_logprobs=True, support_size=True, log_kept_mass=True)

        def compare(kind, workloads, folder={str(smollm2_wide)!r}, times=1, **settings):
            loaded = load_touched(folder, memory_utilization=0.03, **settings)
            limits, V = loaded.info.limits, loaded.info.vocab_size
            drive(loaded, scoring(V, [70], RowWants(top_k=128)))
            for name, made in workloads.items():
                call = eval(made, globals(), {{"V": V}})
                for _ in range(times):
                    taken = peak_of(lambda: drive(loaded, call))
                predicted = step_bytes(limits.shape, call_work(call, limits))
                print(f"{{kind}}:{{name}}", predicted, taken)

        compare("kernels", {KERNELS!r}, dtype="bfloat16")
        compare("operators", {OPERATORS!r}, dtype="float32", cpu_kernels="off")
        compare("kernels-capped", {OTHERS!r}, {str(capped_head)!r}, dtype="bfloat16")
        compare("kernels-2-threads", {OTHERS!r}, dtype="bfloat16", threads=2)
        for dtype in ("bfloat16", "float32"):
            compare(f"kernels-experts-{{dtype}}", {BODIES!r}, {str(experts)!r}, 2, dtype=dtype)
        for dtype in {LATENT_TYPES!r}:
            compare(f"kernels-latent-{{dtype}}", {BODIES!r}, {str(latent)!r}, 2, dtype=dtype)
        """
    )
    bodies = 2 + len(LATENT_TYPES)
    assert len(found) == len(KERNELS) + len(OPERATORS) + 2 * len(OTHERS) + bodies * len(BODIES)
    for name, (predicted, taken) in found.items():
        times, more = (2, 16 * MIB) if name.startswith("kernels") else (3, 64 * MIB)
        told = f"{name}: {predicted / MIB:.1f} MiB predicted, {taken / MIB:.1f} taken"
        assert taken <= predicted <= times * taken + more, told


def test_wide_lists_of_many_calls_are_made_by_several_steps(tiny_packed: LoadedModel) -> None:
    """Each call has credit for its own results; together they stay below a step's limit."""
    runner = engine_of(tiny_packed, max_batch_tokens=256, chunk_size=16)
    calls = [
        replace(scoring(2048, [64], RowWants(top_k=2048), seed=call_id), call_id=call_id)
        for call_id in range(8)
    ]
    for call in calls:
        runner.submit(call)
    sizes, rows = [], 0
    while runner.can_step:
        slices = [event for event in runner.step() if isinstance(event, ScoreSlice)]
        for event in slices:
            runner.add_credit(event.call_id, event.size)
            rows += event.block.rows
        sizes.append(sum(event.size for event in slices))
    assert rows == 8 * 64
    # Without the limit 256 rows of 16 KiB would make 4 MiB.
    assert 2 * MIB < max(sizes) <= answer_limit(256) == 3 * MIB
