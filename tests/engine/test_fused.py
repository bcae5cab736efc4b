"""Which parts of a body the fused forms take over, and that the others are left alone."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.activations import SiLUActivation

from scoring_service.engine.fused.modules import fuse_layers
from scoring_service.kernels.cpu.body import CpuBody
from scoring_service.kernels.cpu.ops import load_cpu_kernels
from tests.engine.small_models import ARCHITECTURES, save_model

BY_NAME = {a.name: a for a in ARCHITECTURES}


@pytest.fixture(scope="module")
def kernels() -> CpuBody:
    return CpuBody(load_cpu_kernels())


def fused_names(network: Any) -> set[str]:
    return {type(m).__name__ for m in network.modules() if "forward" in m.__dict__}


@pytest.mark.parametrize(
    ("name", "expected", "rotary"),
    [
        ("llama", {"LlamaRMSNorm", "LlamaMLP"}, True),
        ("qwen3", {"Qwen3RMSNorm", "Qwen3MLP"}, True),
        ("gemma3", {"Gemma3RMSNorm"}, True),  # its gate is a GELU
        ("gpt2", set(), False),
        ("cohere", {"CohereMLP"}, False),  # rotates neighbours; its norm subtracts the mean
    ],
)
def test_what_is_fused(
    kernels: CpuBody, name: str, expected: set[str], rotary: bool, tmp_path: Path
) -> None:
    folder = save_model(BY_NAME[name], tmp_path)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    fused = fuse_layers(network, kernels, network.dtype)
    assert (fused.rotary is not None) == rotary
    assert fused.note == ""
    assert fused_names(network) == expected
    fused.undo()
    assert fused_names(network) == set()


class OddRMSNorm(nn.Module):
    """Named like a norm, and another one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(32))
        self.variance_epsilon = 1e-6

    def forward(self, rows: Tensor) -> Tensor:
        return self.weight * rows / rows.abs().mean(-1, keepdim=True)


class GatedRMSNorm(OddRMSNorm):
    """Takes more than rows."""

    def forward(self, rows: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(rows) * gate


class OddMLP(nn.Module):
    """Gated the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(32, 48), nn.Linear(32, 48)
        self.down_proj = nn.Linear(48, 32)
        self.act_fn = SiLUActivation()

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = self.down_proj(self.gate_proj(rows) * self.act_fn(self.up_proj(rows)))
        return found


class Odd(nn.Module):
    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.gated, self.mlp = OddRMSNorm(), GatedRMSNorm(), OddMLP()


def test_what_only_looks_alike_is_left_alone(kernels: CpuBody) -> None:
    network = Odd()
    fused = fuse_layers(network, kernels, network.dtype)
    assert (fused.rotary, fused.kernels, fused.note) == (None, (), "")
    assert fused_names(network) == set()


def test_rows_of_another_type_go_the_models_own_way(kernels: CpuBody, tmp_path: Path) -> None:
    folder = save_model(BY_NAME["llama"], tmp_path)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    norm = network.model.norm
    rows = torch.randn(4, norm.weight.shape[0])
    expected = norm(rows)
    fuse_layers(network, kernels, network.dtype)
    assert torch.equal(norm(rows), expected)


def test_the_rotation_is_the_models_own_again_afterwards(kernels: CpuBody, tmp_path: Path) -> None:
    from transformers.models.llama import modeling_llama

    own = modeling_llama.apply_rotary_pos_emb
    folder = save_model(BY_NAME["llama"], tmp_path)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    fused = fuse_layers(network, kernels, network.dtype)
    assert fused.rotary is not None
    with suppress(KeyError), fused.in_a_step():
        assert modeling_llama.apply_rotary_pos_emb is not own
        raise KeyError
    assert modeling_llama.apply_rotary_pos_emb is own
