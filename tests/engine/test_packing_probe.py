"""The probe at load tells a packed path that computes something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaMLP

from scoring_service.engine.attention import attention
from scoring_service.engine.attention.packing import Packing
from scoring_service.engine.attention.runs import tables
from tests.engine.seven_ways import CHUNK, load_small

SABOTAGE = {
    "scaling": ("llama", {"scaling": lambda value: value * 1.2}),
    "window": ("gemma3", {"window": lambda _: None}),
    "softcap": ("gemma2", {"softcap": lambda _: None}),
    "sinks": ("gpt-oss", {"sinks": lambda _: None}),
}


@pytest.mark.parametrize("cpu_kernels", ["auto", "off"])
@pytest.mark.parametrize("part", SABOTAGE)
def test_the_probe_notices_what_is_dropped(
    part: str, cpu_kernels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, changes = SABOTAGE[part]
    assert load_small(name, tmp_path, "float32", cpu_kernels).info.packed
    layer = attention._Layer

    def sabotaged(**asked: Any) -> Any:
        return layer(**{key: changes.get(key, lambda v: v)(value) for key, value in asked.items()})

    monkeypatch.setattr(attention, "_Layer", sabotaged)
    for dtype in ("float32", "bfloat16"):
        info = load_small(name, tmp_path, dtype, cpu_kernels).info
        assert not info.packed
        assert "attention" in info.path_reason


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_the_probe_notices_lost_segmentation(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A query that sees later tokens, and a segment that forgets what it continues."""
    mask = Packing.mask

    def open_mask(packing: Packing, *asked: Any) -> torch.Tensor:
        return torch.zeros_like(mask(packing, *asked))

    monkeypatch.setattr(Packing, "mask", open_mask)
    assert not load_small(name, tmp_path, "float32", cpu_kernels="off").info.packed


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_the_probe_notices_a_wrong_chain(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that takes the keys of a chain's second segment from its first."""

    def confused(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        nodes, runs = tables(*arguments)
        runs[:, 1] = torch.where((runs[:, 0] == 0) & (runs[:, 2] == CHUNK), 0, runs[:, 1])
        return nodes, runs

    monkeypatch.setattr(attention, "tables", confused)
    info = load_small(name, tmp_path, "float32").info
    assert not info.packed
    assert "attention" in info.path_reason


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("share", [0.3, 0.01])
def test_the_probe_notices_rows_that_meet_outside_attention(
    share: float, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer that adds something of the token before, as a convolution does, however little."""
    of_a_token = LlamaMLP.forward

    def of_two_tokens(module: LlamaMLP, x: torch.Tensor) -> torch.Tensor:
        before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)
        return of_a_token(module, x) + share * before

    monkeypatch.setattr(LlamaMLP, "forward", of_two_tokens)
    info = load_small("llama", tmp_path, dtype).info
    assert not info.packed
    assert "rows that share a step change one another's states" in info.path_reason
