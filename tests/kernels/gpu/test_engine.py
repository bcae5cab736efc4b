"""What the engine answers with Triton tiles, beside what it answers with plain torch."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from scoring_service.engine.head.head import make_head
from scoring_service.engine.head.product import PlainProduct
from scoring_service.engine.outputs.draws import draw_rows
from scoring_service.engine.outputs.rows import compute_rows
from scoring_service.engine.outputs.sample_slices import DrawnToken
from scoring_service.engine.packed.steps.head_jobs import _finished
from scoring_service.kernels import dispatch, reference
from scoring_service.types import Processing, RowWants
from tests.engine.mixed_settings import DRAWN, draw_row, drawn_bits, mixed_rows
from tests.kernels import cases
from tests.kernels.gpu.device import DEVICE

WANTS = RowWants.everything(top_k=20, token_id_limit=900)
PROCESSINGS = [
    Processing(),
    Processing(0.7, top_k=50, top_p=cases.promoted(0.9), min_p=cases.promoted(0.01)),
    Processing(1.3, top_p=cases.promoted(0.5), keep_realised=True),
]


def use(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setattr(dispatch, "backend", lambda _device: backend)


def random_logits(rows: int) -> torch.Tensor:
    rng = np.random.default_rng(4)
    return torch.from_numpy(np.stack([cases.random_row(rng, 1000) for _ in range(rows)])).to(DEVICE)


@pytest.mark.parametrize("processing", PROCESSINGS)
def test_rows_are_answered_alike(processing: Processing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every output of a row; a row of a next_token (no realised token) among them."""
    logits_T_V = random_logits(4)
    realised = np.array([3, 999, 0, -1], dtype=np.int32)
    candidates = np.array([[1, 2, -1]] * 4, dtype=np.int32)
    blocks = []
    for backend in ("eager", "triton"):
        use(monkeypatch, backend)
        tile = dispatch.make_tile(logits_T_V, processing.temperature, realised, 900)
        assert type(tile).__name__ == f"{backend.capitalize()}Tile"
        blocks.append(compute_rows(tile, realised, [processing] * 4, WANTS, candidates))
    for field in fields(blocks[0]):
        eager, triton = (getattr(block, field.name) for block in blocks)
        if field.name in ("rows", "ranks", "support_sizes", "top_token_ids"):
            np.testing.assert_array_equal(triton, eager)
        else:
            np.testing.assert_allclose(triton, eager, atol=1e-5, rtol=0)


@pytest.mark.parametrize("limit", [None, 900])
def test_realised_tokens_are_asked_without_waits(
    limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what the host reads of tensors torch tells; of its waits for a GPU too, as errors."""
    use(monkeypatch, "triton")
    logits_T_V, realised = random_logits(4), np.array([3, 999, 0, -1], dtype=np.int32)
    tile = dispatch.make_tile(logits_T_V, 1.0, realised, limit)
    host_T = torch.from_numpy(realised.astype(np.int64)).clamp(min=0)
    with Asked() as asked:
        if DEVICE.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            ranks_T, sizes_T = tile.rank(host_T, limit), tile.possible_tokens()
        finally:
            if DEVICE.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    assert "_local_scalar_dense" not in asked.names
    assert torch.equal(ranks_T, reference.rank(logits_T_V, host_T.to(DEVICE), limit))
    assert torch.equal(sizes_T, reference.possible_tokens(logits_T_V))


class Asked(TorchDispatchMode):
    """The names of torch's operators that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("processing", "banned"),
    [
        *((processing, (5, 700)) for processing in (Processing(0.0), *PROCESSINGS)),
        *((processing, ()) for processing in (Processing(0.0), PROCESSINGS[1])),
    ],
)
def test_tokens_are_drawn_alike(
    processing: Processing, banned: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same tokens with the same numbers, greedy and under bans too; a broken row is a fault."""
    logits_T_V = random_logits(5)
    logits_T_V[2, 4] = torch.nan
    rows = [draw_row(place, processing, banned if place % 2 else (), 5) for place in range(5)]
    answers = []
    for backend in ("eager", "triton"):
        use(monkeypatch, backend)
        answers.append(draw_rows(logits_T_V, rows, dispatch.make_tile))
    for eager, triton in zip(*answers, strict=True):
        if not isinstance(eager, DrawnToken) or not isinstance(triton, DrawnToken):
            assert eager == triton
            continue
        assert triton.token_id == eager.token_id
        assert np.array_equal(triton.top_ids, eager.top_ids)
        for name in ("logprob", "processed_logprob", "top_logprobs"):
            assert getattr(triton, name) == pytest.approx(getattr(eager, name), abs=1e-5)
    assert sum(not isinstance(answer, DrawnToken) for answer in answers[1]) == 1


def test_draws_of_many_settings_have_the_bits_of_each_row_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(monkeypatch, "triton")
    logits_T_V, rows = random_logits(8), mixed_rows(DRAWN, 8)
    together = drawn_bits(logits_T_V, rows, dispatch.make_tile)
    for place, row in enumerate(rows):
        alone = drawn_bits(logits_T_V[place : place + 1], [row], dispatch.make_tile)
        assert alone == together[place : place + 1], row


@pytest.mark.parametrize("processing", [Processing(0.0), *PROCESSINGS])
def test_tokens_are_waited_for_once(
    processing: Processing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On either path: what is said of them comes to the host as one tensor, no number by itself."""
    use(monkeypatch, "triton")
    rows = [draw_row(place, processing, (5, 700)) for place in range(4)]
    for make_tile in (dispatch.make_tile, dispatch.reference_tile):
        with Asked() as asked:
            draw_rows(random_logits(4), rows, make_tile)
        assert not asked.names & {"_local_scalar_dense", "nonzero"}


def test_half_precision_logits_are_read_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of a tile in fp32 is twice its size; capped logits have to be made, and are fp32."""
    use(monkeypatch, "triton")
    weight_V_H = torch.randn(100, 16, device=DEVICE).bfloat16()
    plain = make_head(weight_V_H, None, PlainProduct(torch.bfloat16))
    product_T_V = plain.product(torch.randn(3, 16, device=DEVICE).bfloat16())
    assert _finished(plain, product_T_V, None) is product_T_V
    capped = replace(plain, soft_cap=30.0)
    assert _finished(capped, product_T_V, None).dtype == torch.float32
