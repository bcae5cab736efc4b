"""Whether kernels that fail, or err, are noticed when a model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scoring_service.engine.head.head import LinearHead, make_head
from scoring_service.engine.head.product import PlainProduct
from scoring_service.engine.loading import path
from scoring_service.engine.loading.loader import LoadedModel, load
from scoring_service.engine.outputs.draws import draw_rows
from scoring_service.engine.outputs.rows import compute_rows
from scoring_service.engine.trials import head_trial
from scoring_service.engine.trials.head_trial import head_failure
from scoring_service.kernels import dispatch
from scoring_service.kernels.gpu import support, tile
from scoring_service.types import EngineConfig, Processing, RowWants
from tests.engine import plain
from tests.engine.scoring import groups, score
from tests.engine.small_models import ARCHITECTURES, save_model
from tests.kernels.gpu.device import DEVICE
from tests.kernels.gpu.variants import Variant, recorded

pytestmark = pytest.mark.usefixtures("triton_everywhere")

PROCESSINGS = head_trial._PROCESSINGS
"""As at a load."""


@pytest.fixture
def triton_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU takes part as a GPU does: its kernels are the interpreter's, which is slow."""
    if DEVICE.type == "cpu":
        monkeypatch.setattr(head_trial, "_PROCESSINGS", head_trial._PROCESSINGS[-1:])
        monkeypatch.setattr(head_trial, "_ROWS", 2)
    monkeypatch.setattr(dispatch, "_takes_triton", lambda _device: True)
    monkeypatch.setattr(dispatch, "attends_by_triton", lambda _device: False)
    monkeypatch.setattr(dispatch, "body_kernels", lambda _device: None)
    monkeypatch.setattr(dispatch, "_refused", set())


def head_of(dtype: torch.dtype, vocab: int = 97) -> LinearHead:
    weight_V_H = torch.zeros(vocab, 16, dtype=dtype, device=DEVICE)
    return make_head(weight_V_H, None, PlainProduct(dtype))


DTYPES = [torch.bfloat16, torch.float16, torch.float32]
"""With bfloat16, kernels read that or, once a temperature has divided it, float32."""


@pytest.mark.parametrize("dtype", DTYPES if DEVICE.type == "cuda" else DTYPES[:1])
def test_kernels_that_work_stay_and_are_compiled(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What requests of other sizes launch afterwards is compiled already: of one row, which begins
    anywhere in a tile, at any temperature, with filters and bans or without."""
    monkeypatch.setattr(head_trial, "_ROWS", 3)  # as at a load: no tile of it has one row
    monkeypatch.setattr(head_trial, "_PROCESSINGS", PROCESSINGS)
    head, before, since = head_of(dtype), set[Variant](), set[Variant]()
    with recorded(before):
        assert head_failure(head, DEVICE) == ""
    assert dispatch.backend(DEVICE) == "triton"
    logits_T_V = torch.randn(4, head.vocab_size).to(dtype).to(DEVICE)
    wants = RowWants(rank=True)
    one_T_V = logits_T_V[3:]
    assert one_T_V.data_ptr() % 16
    with recorded(since):
        for temperature, (rows, limit, k) in product(
            (1.0, 1.3), ((logits_T_V, 80, 50), (one_T_V, 1, 1), (one_T_V, 9, 2))
        ):
            some = replace(wants, top_k=k, token_id_limit=limit)
            ids = np.zeros(len(rows), dtype=np.int32)
            made = dispatch.make_tile(rows, temperature, ids, limit)
            compute_rows(made, ids, [Processing(temperature, top_k=k)] * len(rows), some, None)
            for banned, min_p in product(((), (3,)), (0.0, 0.5)):
                truncated = Processing(temperature, min_p=min_p)
                draws = [head_trial._draw_row(n, truncated, banned, k) for n in range(len(rows))]
                draw_rows(rows, draws, dispatch.make_tile)
    assert {name for name, _ in since} == {name for name, _ in before}
    assert since <= before


def refuses(*_args: Any, **_kwargs: Any) -> None:
    raise RuntimeError("out of resource: shared memory, Required: 233472, Hardware limit: 101376")


class Errs:
    """A kernel that goes over an output once more."""

    def __init__(self, kernel: Any, output: int, change: Callable[[Tensor], object]) -> None:
        self.kernel, self.output, self.change = kernel, output, change

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*arguments: Any, **options: Any) -> None:
            self.kernel[grid](*arguments, **options)
            self.change(arguments[self.output])

        return launch


WRONG = {
    "sums": ("block_statistics", 5, lambda sums: sums.mul_(1.001), "logprobs"),
    "weighted sums": ("block_statistics", 6, lambda sums: sums.mul_(1.01), "entropies"),
    "ranks": ("block_statistics", 7, lambda above: above.add_(1), "ranks"),
    "lists": ("top_candidates", 6, lambda ids: ids.copy_(ids.flip(1)), "top_"),
    "tails": ("block_tail", 3, lambda sums: sums.mul_(1.001), "log_tail_masses"),
    "supports": ("settle_support", 13, lambda sizes: sizes.add_(1), "support_sizes"),
    "kept masses": ("settle_support", 12, lambda mass: mass.sub_(0.001), "processed_logprobs"),
    "winners": ("finish_race", 2, lambda ids: ids.copy_((ids + 1) % 97), "drawn tokens"),
}


@pytest.mark.parametrize("part", WRONG)
def test_numbers_that_err_are_noticed(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, output, change, found = WRONG[part]
    module = support if name == "settle_support" else tile
    monkeypatch.setattr(module, name, Errs(getattr(module, name), output, change))
    assert head_failure(head_of(torch.float32), DEVICE).startswith(found)
    assert dispatch.backend(DEVICE) == "triton"


def load_small(folder: Path) -> LoadedModel:
    (llama,) = (architecture for architecture in ARCHITECTURES if architecture.name == "llama")
    config = EngineConfig(
        str(save_model(llama, folder)), device=DEVICE.type, dtype="float32", cpu_kernels="off",
        chunk_size=16, memory_utilization=0.05 if DEVICE.type == "cuda" else None,
    )  # fmt: skip
    return load(config, lambda _stage: None)


def test_a_model_is_served_without_kernels_that_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed, by torch's operators, with the reason and another back-end to its name."""
    monkeypatch.setattr(tile.RowPartials, "combine", refuses)
    loaded = load_small(tmp_path)
    assert loaded.info.packed
    assert loaded.info.backend == f"eager-{DEVICE.type}"
    assert "without the Triton kernels of the head: out of resource" in loaded.info.path_reason
    prompt, part = [3, 14, 15], [9, 26, 5]
    found = score(loaded, groups([(prompt, [part])]))
    logits = plain.row_logits(plain.load(tmp_path, torch.float32), prompt, part)[:-1]
    expected = plain.log_softmax(logits)[range(3), part]
    assert found[0, 0].logprobs == pytest.approx(expected, abs=1e-4)


def test_another_model_tries_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was refused once may be the vocabulary's doing."""
    dispatch.use_triton(DEVICE, False)
    tried = []
    monkeypatch.setattr(path, "head_failure", lambda *asked: tried.append(asked) or "")
    info = load_small(tmp_path).info
    assert info.backend == f"triton-head-{DEVICE.type}"
    assert "Triton" not in info.path_reason
    assert len(tried) == 1
