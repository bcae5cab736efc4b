"""What `plan` prints for the chart is what the chart's examples say, and YAML."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from scoring_service.plan.command import PlanConfig, plan_text
from scoring_service.plan.estimate import DoesNotFitError
from tests.e2e.served import ROOT

EXAMPLES = ROOT / "helm" / "scoring-service" / "examples"
QWEN3_8B = {
    "model_type": "qwen3", "hidden_size": 4096, "num_hidden_layers": 36, "head_dim": 128,
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 12_288,
    "vocab_size": 151_936, "max_position_embeddings": 40_960, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(QWEN3_8B))
    return path


def printed(path: Path, **settings: Any) -> dict[str, Any]:
    text = plan_text(str(path), PlanConfig(hardware="h200", **settings))
    values: dict[str, Any] = yaml.safe_load(text.partition("in the Helm chart:\n")[2])
    as_json = json.loads(plan_text(str(path), PlanConfig(hardware="h200", json=True, **settings)))
    assert as_json["chart"] == values
    return values


def test_memory_and_cache_hold_the_weights(config: Path) -> None:
    """8,190,735,360 parameters, as the Hub counts them, of two bytes: 15.26 GiB."""
    values = printed(config)
    assert values["resources"]["limits"] == {"memory": "40Gi"}  # 1.25 x 15.26 + 16 = 35.1
    assert values["cache"] == {"enabled": True, "size": "35Gi"}  # 2.2 x 15.26 = 33.6
    assert "liveWeights" not in values


def test_the_cache_holds_the_files_whatever_is_served(config: Path) -> None:
    """What is fetched has the type of the files: 30.51 GiB in float32, and 15.26 in bfloat16."""
    config.write_text(json.dumps({**QWEN3_8B, "torch_dtype": "float32"}))
    wide = printed(config, dtype="bfloat16")
    assert wide["cache"]["size"] == "70Gi"  # 2.2 x 30.51 = 67.1
    assert wide["resources"]["limits"] == {"memory": "40Gi"}
    config.write_text(json.dumps(QWEN3_8B))
    narrow = printed(config, dtype="float32")
    assert narrow["cache"]["size"] == "35Gi"
    assert narrow["resources"]["limits"] == {"memory": "56Gi"}  # 1.25 x 30.51 + 16 = 54.1


def test_a_pod_that_computes_on_a_gpu_asks_for_one(config: Path) -> None:
    """Without it the chart's model would compute on its CPU."""
    assert f"{printed(config)['gpus']!r}" == "1"  # and not True, which Python finds equal
    on_cpu = json.loads(plan_text(None, PlanConfig(hardware="cpu-2-cores", json=True)))
    assert "gpus" not in on_cpu["chart"]


def test_what_takes_long_to_read_has_the_time(config: Path) -> None:
    """The chart's own 900 s last for 78 GB at its 10 s a GB; Llama 3.1 70B has 141."""
    chart = yaml.safe_load((EXAMPLES.parent / "values.yaml").read_text())["defaults"]
    assert "startupSeconds" not in printed(config)
    assert chart["startupSeconds"] == 900
    llama = {
        "model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "intermediate_size": 28_672,
        "vocab_size": 128_256, "max_position_embeddings": 131_072, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }  # fmt: skip
    config.write_text(json.dumps(llama))
    assert printed(config, memory_gb=192)["startupSeconds"] == 1800  # 1,411 and 120, in steps


def test_a_type_that_the_config_does_not_name(config: Path) -> None:
    """As transformers has it: GPT-OSS's, which names none, is unpacked to bfloat16."""
    nameless = {name: value for name, value in QWEN3_8B.items() if name != "torch_dtype"}
    config.write_text(json.dumps({**nameless, "quantization_config": {"quant_method": "mxfp4"}}))
    told = plan_text(str(config), PlanConfig(hardware="h100"))
    assert re.search(r"^weights +16\.4 GB$", told, re.MULTILINE)
    assert "config.json names no element type, so --dtype bfloat16 is assumed" in told
    config.write_text(json.dumps(nameless))
    told = plan_text(str(config), PlanConfig(hardware="h100"))
    assert re.search(r"^weights +32\.8 GB$", told, re.MULTILINE)
    assert "--dtype float32 is assumed" in told
    assert "is assumed\n" not in plan_text(
        str(config), PlanConfig(hardware="h100", dtype="float16")
    )
    with pytest.raises(DoesNotFitError, match=r"--dtype float32 is assumed$"):
        plan_text(str(config), PlanConfig(hardware="l40s", memory_gb=24))


def test_the_example_of_a_live_policy_is_what_the_plan_says(config: Path) -> None:
    (model,) = yaml.safe_load((EXAMPLES / "live-policy.yaml").read_text())["models"]
    values = printed(config, live_weights=True)
    assert values["resources"]["limits"] == {"memory": "88Gi"}  # 35.1 + 3 x 15.26 = 80.9
    assert model["resources"]["limits"] == values["resources"]["limits"]
    assert model["liveWeights"] == values["liveWeights"]
    assert model["cache"]["size"] == values["cache"]["size"]


def test_a_cpu_has_its_pages_in_the_hosts_memory() -> None:
    plans = [
        json.loads(
            plan_text(None, PlanConfig(hardware="cpu-2-cores", json=True, live_weights=live))
        )
        for live in (False, True)
    ]
    plan = plans[0]["plan"]
    pages = plan["tokens_in_pages"] * plan["kv_bytes_per_token"]
    sizes = [int(p["chart"]["resources"]["limits"]["memory"].removesuffix("Gi")) for p in plans]
    assert 0 <= sizes[0] * 2**30 - (pages + plan["weights_bytes"] + plan["step_bytes"]) <= 3 * 2**30
    assert sizes[1] >= sizes[0]


def test_a_cpus_flags_have_the_head_that_its_rate_was_measured_with() -> None:
    text = plan_text(None, PlanConfig(hardware="cpu-2-cores"))
    assert "--head-dtype bfloat16" in text
    assert "--head-dtype" not in plan_text(
        None, PlanConfig(hardware="cpu-2-cores", dtype="float32")
    )
    assert "--head-dtype" not in plan_text(None, PlanConfig(hardware="h200"))


def test_versions_that_live_weights_hold_must_fit_a_cpus_memory(tmp_path: Path) -> None:
    """1.7 billion parameters: 9 GiB without a trainer, 23 GB with one, on a machine of 16 GB."""
    shape = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 2048,
        "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 49152, "max_position_embeddings": 8192,
        "dtype": "bfloat16", "tie_word_embeddings": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(shape))
    assert "memory: 9Gi" in plan_text(str(tmp_path), PlanConfig(hardware="cpu-2-cores"))
    with pytest.raises(DoesNotFitError, match=r"takes 22\.7 GB, and the machine has 16 GB"):
        plan_text(str(tmp_path), PlanConfig(hardware="cpu-2-cores", live_weights=True))
