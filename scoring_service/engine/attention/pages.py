"""Pages: where keys and values of tokens are kept, in blocks of equal size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scoring_service.engine.attention.segments import SlotArray
from scoring_service.types import PAGE_TOKENS


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one attention layer keeps of a token."""

    kv_heads: int
    key_dim: int
    value_dim: int

    @property
    def width(self) -> int:
        """Elements a token."""
        return self.kv_heads * (self.key_dim + self.value_dim)


def pages_for(tokens: int) -> int:
    """Pages that hold so many tokens of one segment."""
    return -(-tokens // PAGE_TOKENS)


class PagePool:
    """A fixed number of pages on one device, for all layers at once.

    `keys[layer]` is [kv heads, slots, key dim] and `values[layer]` [kv heads, slots, value dim]:
    head first, as products want it. A slot is one token's place; page p has slots
    p * PAGE_TOKENS and up. Memory that no token ever reached is reserved, not touched.
    """

    def __init__(
        self, layers: list[LayerShape], pages: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        slots = pages * PAGE_TOKENS
        self.pages = pages
        self.keys = [
            torch.empty(shape.kv_heads, slots, shape.key_dim, dtype=dtype, device=device)
            for shape in layers
        ]
        self.values = [
            torch.empty(shape.kv_heads, slots, shape.value_dim, dtype=dtype, device=device)
            for shape in layers
        ]
        self._free = list(range(pages - 1, -1, -1))

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Hands out pages, the most recently returned first.

        Raises:
            IndexError: there are not that many.
        """
        if count > len(self._free):
            raise IndexError(f"{count} pages wanted, {len(self._free)} free")
        if count == 0:
            return []
        taken = self._free[-count:][::-1]
        del self._free[-count:]
        return taken

    def give_back(self, pages: list[int]) -> None:
        """Takes pages back."""
        self._free.extend(reversed(pages))

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Keeps keys [kv heads, T, key dim] and values of tokens at their slots, int64 [T]."""
        self.keys[layer].index_copy_(1, slots, keys)
        self.values[layer].index_copy_(1, slots, values)


def slots_of(pages: list[int], tokens: int) -> SlotArray:
    """The slots of a segment's tokens, int64 [tokens]."""
    first = np.asarray(pages, dtype=np.int64)[:, None] * PAGE_TOKENS
    return (first + np.arange(PAGE_TOKENS)).ravel()[:tokens]
