"""Kernels around device functions that a test looks at by themselves."""

from __future__ import annotations

import triton
import triton.language as tl

from scoring_service.kernels.gpu.race import exponential, token_words


@triton.jit
def exponentials(words_ptr, result_ptr, BLOCK: tl.constexpr):
    """E of BLOCK words."""
    place = tl.arange(0, BLOCK)
    words = tl.load(words_ptr + place).to(tl.uint32)
    tl.store(result_ptr + place, exponential(words))


@triton.jit
def write_words(
    words_ptr, seed_ptr, sample_index_ptr, position_ptr, vocab, BLOCK: tl.constexpr
):  # fmt: skip
    """Program (row, block): the words themselves, int64, to be compared with the reference's."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    words = token_words(
        block * BLOCK,
        tl.load(seed_ptr + row),
        tl.load(sample_index_ptr + row).to(tl.uint32),
        tl.load(position_ptr + row).to(tl.uint32),
        BLOCK,
    )
    columns = block * BLOCK + tl.arange(0, BLOCK)
    tl.store(words_ptr + row * vocab + columns, words.to(tl.int64), mask=columns < vocab)
