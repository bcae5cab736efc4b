"""Keys and values in their places: the bits of torch's copy by index, and nothing beside them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scoring_service.kernels.gpu.write_kv import write_kv
from tests.kernels.gpu.device import DEVICE
from tests.kernels.gpu.variants import Variant, recorded

SLOTS, ROWS = 160, 70


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def places(tokens: int) -> tuple[Tensor, Tensor]:
    """Rows and slots here and there."""
    generator = torch.Generator().manual_seed(tokens)
    rows_T = torch.randperm(ROWS, generator=generator)[:tokens].sort().values
    return rows_T.to(DEVICE), torch.randperm(SLOTS, generator=generator)[:tokens].to(DEVICE)


@pytest.mark.parametrize(
    ("heads", "width", "value_width", "tokens", "dtype"),
    [
        (2, 64, 64, 70, torch.bfloat16),
        (1, 128, 128, 1, torch.float16),
        (3, 24, 20, 33, torch.float32),
        (1, 5, 40, 16, torch.bfloat16),
    ],
)
def test_rows_are_kept_where_they_belong(
    heads: int, width: int, value_width: int, tokens: int, dtype: torch.dtype
) -> None:
    """Rows as a model has them, heads side by side, which is not as they are kept."""
    keys = normal(ROWS, heads, width, dtype=dtype).transpose(0, 1)
    values = normal(ROWS, heads, value_width, dtype=dtype, seed=1).transpose(0, 1)
    kept = [normal(heads, SLOTS, w, dtype=dtype, seed=2) for w in (width, value_width)]
    rows_T, slots_T = places(tokens)
    wanted = [
        before.index_copy(1, slots_T, new[:, rows_T])
        for before, new in zip(kept, (keys, values), strict=True)
    ]
    write_kv(keys, values, (kept[0], kept[1]), rows_T, slots_T)
    for found, want in zip(kept, wanted, strict=True):
        assert torch.equal(found, want)


def test_rows_without_a_slot_are_kept_nowhere() -> None:
    keys = normal(ROWS, 2, 16).transpose(0, 1)
    kept = torch.zeros(2, SLOTS, 16, device=DEVICE), torch.zeros(2, SLOTS, 16, device=DEVICE)
    rows_T, slots_T = places(40)
    slots_T[::3] = -1
    write_kv(keys, keys, kept, rows_T, slots_T)
    has_T = slots_T >= 0
    for found in kept:
        assert torch.equal(found[:, slots_T[has_T]], keys[:, rows_T[has_T]])
        assert found.count_nonzero() == keys[:, rows_T[has_T]].count_nonzero()


def test_columns_need_not_be_side_by_side() -> None:
    keys, values = (normal(2, 8, ROWS, seed=seed).transpose(1, 2) for seed in range(2))
    kept = torch.zeros(2, SLOTS, 8, device=DEVICE), torch.zeros(2, SLOTS, 8, device=DEVICE)
    rows_T, slots_T = places(20)
    write_kv(keys, values, kept, rows_T, slots_T)
    for found, new in zip(kept, (keys, values), strict=True):
        assert torch.equal(found[:, slots_T], new[:, rows_T])


def test_no_number_of_tokens_is_a_variant_of_its_own() -> None:
    """A step of one sampled token, or of any number, launches what was compiled at load."""
    variants = set[Variant]()
    keys = normal(ROWS, 2, 16).transpose(0, 1)
    kept = torch.zeros(2, SLOTS, 16, device=DEVICE), torch.zeros(2, SLOTS, 16, device=DEVICE)
    with recorded(variants):
        for tokens in (1, 7, 16, 48):
            rows_T, slots_T = places(tokens + 1)
            write_kv(keys, keys, kept, rows_T[1:], slots_T[1:])
    assert len(variants) == 1
