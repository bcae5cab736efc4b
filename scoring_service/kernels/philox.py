"""Philox4x32-10, the counter-based random number generator of every back-end.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
A word depends on its key and counter alone, so a draw never depends on the batch around it.
"""

from __future__ import annotations

import torch
from torch import Tensor

DOMAIN_SAMPLING = 0
"""Fourth counter word of the numbers that draw tokens; other uses take other domains."""

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a * b for 32-bit values held in int64, without overflowing it."""
    low_part = (a & 0xFFFF) * b
    high_part = (a >> 16) * b
    low = (((high_part & 0xFFFF) << 16) + low_part) & _MASK
    high = (high_part + (low_part >> 16)) >> 16
    return high, low


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds over 32-bit words held in int64 tensors of broadcastable shapes.

    Returns:
        Four words, each in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def token_words(
    seeds_T: list[int],
    sample_indices_T: list[int],
    positions_T: list[int],
    vocab: int,
    device: torch.device,
) -> Tensor:
    """The 32-bit word of every token id at each row, int64 [T, V].

    Key: the 64-bit seed, low half first. Counter: (token id >> 2, absolute position, sample
    index, domain); the word is number `token id & 3` of the four.
    """
    blocks = torch.arange((vocab + 3) // 4, dtype=torch.int64, device=device)[None, :]
    words = _four_words(seeds_T, sample_indices_T, positions_T, blocks)
    return words.flatten(1)[:, :vocab]


def words_at(
    seeds_T: list[int], sample_indices_T: list[int], positions_T: list[int], ids_T_M: Tensor
) -> Tensor:
    """The 32-bit words of given token ids, as `token_words` has them. int64 [T, M]."""
    words = _four_words(seeds_T, sample_indices_T, positions_T, ids_T_M >> 2)
    return words.gather(2, (ids_T_M & 3)[..., None])[..., 0]


def _four_words(
    seeds_T: list[int], sample_indices_T: list[int], positions_T: list[int], blocks_T_N: Tensor
) -> Tensor:
    """The words of blocks of four token ids, int64 [T, N, 4]."""
    device = blocks_T_N.device

    def column(values: list[int]) -> Tensor:
        return torch.tensor([v & _MASK for v in values], dtype=torch.int64, device=device)[:, None]

    counter = (
        blocks_T_N,
        column(positions_T),
        column(sample_indices_T),
        torch.full((1, 1), DOMAIN_SAMPLING, dtype=torch.int64, device=device),
    )
    key = (column(seeds_T), column([seed >> 32 for seed in seeds_T]))
    return torch.stack(torch.broadcast_tensors(*philox4x32(counter, key)), dim=-1)
