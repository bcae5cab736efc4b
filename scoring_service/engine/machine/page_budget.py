"""How many pages of keys and values a device has room for: plain numbers, without torch."""

from __future__ import annotations

from scoring_service.kernels.key_parts import partial_bytes
from scoring_service.peak_memory import StepShape, StepWork, body_bytes
from scoring_service.types import PAGE_TOKENS

SPARE_PAGES = 4
"""A sequence takes up to so many pages more than its tokens fill: segments begin a page."""

MAX_SAMPLES = 256
"""Samples under way at once."""

BATCH_TOKENS = {"cpu": 1024, "cuda": 8192}
"""Tokens of a step, unless configured."""

CHUNK_TOKENS = {"cpu": 64, "cuda": 256}
"""Tokens between seams, unless configured."""

BESIDE_SAMPLES = {"cpu": 28, "cuda": 2048}
"""Tokens of scoring and prompts that join few samples, unless configured; at least a chunk, where
chunks cannot be cut. On a CPU a step of them takes less than twice as long as one that draws alone,
and one of a chunk does not. On a GPU a step that draws alone takes as long as its launches and the
reading of weights, however few its rows are: the figure is a guess, to be measured by the workload
`mixed` of `benchmarks.gpu`."""

MEMORY_SHARE = {"cpu": 0.25, "cuda": 0.9}
"""Of what is left beside the weights, what pages and steps may take, unless configured."""

GRAPH_ROWS = (16, 32, 48, 64, 96, 128, 192, 256)
"""Of the steps that a GPU records where they only go on with samples: up to `MAX_SAMPLES`."""

GRAPH_SLOTS = 1 << 22
"""Earlier tokens of all samples of a recorded step, at most: 256 samples of 16,384."""

GRAPH_PARTS = 2048
"""Parts that attention on a GPU cuts their chains into (`kernels.key_parts`), at most: a million
tokens. A step with more reads so much that launches one by one cost it nothing."""

_GRAPH_BYTES = 16 << 20
"""Of a recorded step itself: what the driver keeps of a thousand launches, about."""

_GRAPH_WORKSPACE_BYTES = 64 << 20
"""Of matrix products that are recorded: cuBLAS takes half of it on the newest devices."""

_ITEM_BYTES = 64
"""Of what a recorded step is told of a sample, or of a part of one."""

_SEGMENT_BYTES = 2 << 10
"""Of a segment itself, about: its ids, slots, key and place in the prefix cache."""


def page_bytes(kv_width: int, hidden: int, element_bytes: int) -> int:
    """What a page costs: its keys and values, and what the segment that has it keeps beside.

    A segment has a page at least, and keeps the final state of its last token.

    Args:
        kv_width: elements of keys and values that all layers keep of a token.
        hidden: elements of a state.
        element_bytes: of all of them.
    """
    return (PAGE_TOKENS * kv_width + hidden) * element_bytes + _SEGMENT_BYTES


def pages_beside(room: float, working: int, page: int) -> int:
    """Pages in so many bytes, of which a step may take `working`."""
    return max(0, int(room) - working) // page


def graph_bytes(shape: StepShape) -> int:
    """What recorded steps keep: slots, work items and results of parts, activations, themselves.

    Args:
        shape: of the model's steps.
    """
    # Twice: blocks of one step's sizes do not always fit those of another's.
    activations = 2 * body_bytes(shape, StepWork(tokens=GRAPH_ROWS[-1], rows=0))
    items = len(GRAPH_ROWS) * (GRAPH_PARTS + GRAPH_ROWS[-1]) * _ITEM_BYTES
    parts = GRAPH_PARTS * partial_bytes(shape.heads, shape.attention_output_width)
    own = len(GRAPH_ROWS) * _GRAPH_BYTES + _GRAPH_WORKSPACE_BYTES
    return activations + 4 * GRAPH_SLOTS + items + parts + own


MIN_STEP = 2
"""Tokens: one of a sample, and one that brings a segment in beside it."""


def step_tokens(max_batch_tokens: int, chunk_size: int) -> int:
    """Tokens of the largest step: what joins samples, if only for a token, is never cut."""
    return max(MIN_STEP, max_batch_tokens) + chunk_size - 1
