"""C++ kernels that fail or err on a processor are found out at load; torch's operators answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from scoring_service.engine.head.head import LinearHead
from scoring_service.engine.head.product import PlainProduct
from scoring_service.kernels.cpu.ops import CpuKernels
from scoring_service.models import tiny_model_path
from scoring_service.types import RowWants
from tests.engine.loading import load_model
from tests.engine.scoring import assert_same_bits, completion, score_one

pytestmark = pytest.mark.usefixtures("bf16_products")

OWN = {name: getattr(CpuKernels, name) for name in ("linear", "row_sums", "top_ids", "attend")}


def off_in_the_last_column(*arguments: Any) -> Tensor:
    logits_T_V: Tensor = OWN["linear"](*arguments)
    logits_T_V[:, -1] += 0.01
    return logits_T_V


def off_in_tall_products(kernels: CpuKernels, rows_T_H: Tensor, *arguments: Any) -> Tensor:
    logits_T_V: Tensor = OWN["linear"](kernels, rows_T_H, *arguments)
    logits_T_V[64:] *= 1.01
    return logits_T_V


def no_entropy(*arguments: Any) -> tuple[Tensor, ...]:
    maxima, logsumexps, entropies, counts = OWN["row_sums"](*arguments)
    return maxima, logsumexps, torch.zeros_like(entropies), counts


def ties_to_the_higher_id(*arguments: Any) -> Tensor:
    ids_T_K: Tensor = OWN["top_ids"](*arguments)
    return ids_T_K.flip(1)


def refused(*_arguments: Any) -> Any:
    raise RuntimeError("could not generate a kernel\nin some file")


@pytest.mark.parametrize(
    ("name", "wrong", "reason"),
    [
        ("linear", off_in_the_last_column, "products of the head differ from torch's"),
        ("linear", off_in_tall_products, "products of the head differ from torch's"),
        ("linear", refused, "could not generate a kernel"),
        ("row_sums", no_entropy, "entropies of rows differ from torch's"),
        ("top_ids", ties_to_the_higher_id, "top_token_ids of rows differ from torch's"),
        ("draw", refused, "could not generate a kernel"),
    ],
)
def test_the_head(
    name: str, wrong: Callable[..., Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, wants = completion([3, 1, 4, 1, 5]), RowWants(entropy=True, top_k=5)
    expected = score_one(load_model(tiny_model_path(), cpu_kernels="off"), [2, 7], task, wants)
    monkeypatch.setattr(CpuKernels, name, wrong)
    loaded = load_model(tiny_model_path())
    assert loaded.info.backend == "eager-cpu"
    assert loaded.info.path_reason.endswith(f"; without C++ kernels: {reason}")
    assert isinstance(loaded.model.head, LinearHead)
    assert type(loaded.model.head.matmul) is PlainProduct
    found = score_one(loaded, [2, 7], task, wants)
    assert_same_bits(found, expected)


def test_attention_in_the_models_own_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """On AMX float32 is multiplied by other instructions than bfloat16 is."""

    def wrong(kernels: CpuKernels, queries: Tensor, *arguments: Any, **settings: Any) -> Tensor:
        found: Tensor = OWN["attend"](kernels, queries, *arguments, **settings)
        if queries.dtype == torch.bfloat16:
            found[-1] *= 1.1
        return found

    monkeypatch.setattr(CpuKernels, "attend", wrong)
    loaded = load_model(tiny_model_path())
    assert loaded.packed is None
    assert "the attention of its layer 0 is not what it asks for" in loaded.info.path_reason
