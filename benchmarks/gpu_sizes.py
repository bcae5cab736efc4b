"""What is measured of kernels on a GPU: sizes of the cases, and random data for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    rows: int = 8192
    hidden: int = 4096
    vocab: int = 151_936
    tile_rows: int = 1024
    few_rows: tuple[int, ...] = (1, 32)
    ks: tuple[int, ...] = (128, 1024)
    batches: tuple[int, ...] = (32, 1, 512, 128, 8)
    checked: int = 4


DRY = Sizes(8, 64, 1000, 4, (1,), (8,), (2,), 2)


def normal(shape: tuple[int, ...], device: str, seed: int, dtype: torch.dtype) -> Tensor:
    """Random numbers."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)


def ids(count: int, vocab: int, device: str, seed: int = 0) -> Tensor:
    """Random token ids, int64; of a generator of their own, as everything here."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randint(vocab, (count,), generator=generator, device=device)
