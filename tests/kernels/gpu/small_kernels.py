"""Kernels around device functions that a test looks at by themselves."""

from __future__ import annotations

import triton
import triton.language as tl

from scoring_service.kernels.gpu.race import exponential


@triton.jit
def exponentials(words_ptr, result_ptr, BLOCK: tl.constexpr):
    """E of BLOCK words."""
    place = tl.arange(0, BLOCK)
    words = tl.load(words_ptr + place).to(tl.uint32)
    tl.store(result_ptr + place, exponential(words))
