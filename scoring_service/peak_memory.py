"""How much memory a step takes at its peak beside the weights and the pages: counted beforehand.

Used where a worker sizes its pages, where a call is admitted, and where a deployment is planned.
Nothing here knows torch. Every count is an upper bound: what is alive at the same time as the rows
go through a layer, and afterwards through the head. `tests/engine/test_peak_memory.py` holds it
against what a process really takes.
"""

from __future__ import annotations

from dataclasses import dataclass

SLACK_BYTES = 8 << 20
"""What libraries take for themselves: packed blocks of factors, tables of a step, small objects."""

LISTED_BYTES = 48
"""Of one entry of a row's top-K list or candidates while it is made: its id as int64 and what the
selection keeps of it, its x, and its log-prob in float64 and float32."""

ANSWER_COPIES = 2
"""Numbers of rows exist as they were made and, joined, as they are sent."""

_ANSWER_BYTES = 12 << 10
"""Of results, for each token that a step may have."""

_CREDIT_BYTES = 18 << 10
"""Of results, for each token of a step: with lists of 1,024 tokens a row, those of two steps. With
those of one, the next would wait for the reader or be a small one, which computes slower."""

_MIN_CREDIT, _MAX_CREDIT = 4 << 20, 32 << 20
"""At most half of what a worker may have on its way (`pool.workers.window`), so that it may begin
another part while a reader takes the results of one."""

_FLOAT = 4
_SLOT_BYTES = 8

_PLAIN_COPIES, _TRUNCATED_COPIES = 6, 18
"""fp32 copies of a block of logits that torch's operators make of it on their way to its numbers:
scaled, probabilities, differences; for truncation a sorted copy, its order and sums in float64, and
where settings differ the rows of one of them with their probabilities."""

_BANNED_COPIES = 2
"""C++ and Triton kernels read logits where they lie. Rows with banned tokens are the exception:
Triton's are scaled, and without them; C++ threads have less, one such row each. At a temperature,
Triton's leave scaled rows beside the logits, too."""

_SUPPORT_BYTES = 80 << 10
"""Of a row whose support a GPU looks for: its list, and what is left of its blocks."""

_FINISHED_COPIES = 3
"""In fp32, scaled, and soft-capped."""

_SCORE_COPIES = 4
"""fp32 copies of attention scores: rounded, exact, weights, and weights as values have them."""


@dataclass(frozen=True, slots=True)
class StepShape:
    """What decides the memory of a model's steps. Widths are elements of one token."""

    hidden: int
    attention_width: int
    """Queries, keys, values and outputs that a layer holds at once while it attends."""
    attention_output_width: int
    feed_forward_width: int
    """What a layer's feed-forward part holds at once."""
    layer_kv_width: int
    """Keys and values of one layer."""
    heads: int
    kv_heads: int
    vocab_size: int
    element_bytes: int
    """Of the body."""
    residual_bytes: int
    """Of an element of what enters and leaves its layers."""
    logit_bytes: int
    """Of an element of the head's product."""
    tile_rows: int
    """Rows that go through the head at once."""
    block_rows: int
    """Rows of a tile whose numbers are made at once."""
    list_bytes: int
    """What lists of a block's rows may take while they are made, where a row's own take less."""
    compiled_attention: bool
    """Whether kernels of ours do it."""
    compiled_head: bool
    """Whether kernels of ours make numbers of logits."""
    finishes_logits: bool
    """Whether logits are scaled or soft-capped after the product."""
    score_elements: int
    """Attention scores that torch's operators hold at once."""
    gathered_tokens: int
    """Keys of samples that torch's operators gather at once, in tokens."""
    on_host: bool
    """Whether answers lie in the same memory as activations: on a CPU."""
    partial_bytes: int
    """What parts of chains of earlier keys may leave until they are joined."""
    part_keys: int
    """Chains of no more keys are not cut."""


@dataclass(frozen=True, slots=True)
class StepWork:
    """What a step is asked for."""

    tokens: int
    """Rows of the body."""
    rows: int
    """Rows of the head."""
    listed: int = 0
    """Entries of a row's top-K list and candidates."""
    answer_bytes: int = 0
    """Of the results that are held until the step's end."""
    context: int = 0
    """Tokens of the longest sequence."""
    chunk_tokens: int = 0
    """Tokens of its longest segment."""
    truncates: bool = False
    samples: int = 0
    """Samples under way, of which each draws a token."""
    request_bytes: int = 0
    """Of the token ids and candidates that were asked about."""


@dataclass(frozen=True, slots=True)
class StepLimits:
    """What bounds a worker's steps."""

    shape: StepShape
    step_tokens: int
    """Rows of the body, at most."""
    chunk_tokens: int
    """A segment's, at most: none is cut."""
    max_samples: int
    context: int
    """Tokens of a sequence, at most."""
    budget_bytes: int = 0
    """What the device had left beside weights and pages."""

    @property
    def answer_bytes(self) -> int:
        """Results of a step, unless a single segment has more."""
        return answer_limit(self.step_tokens)


def answer_limit(step_tokens: int) -> int:
    """Bytes of results at which no further segment joins a step: rows of K up to 1,500 do not care.

    Args:
        step_tokens: that a step may have.
    """
    return step_tokens * _ANSWER_BYTES


def part_credit(step_tokens: int) -> int:
    """Bytes of results that a part of a call may have on their way before its reader takes some.

    As steps are large, up to half of what a worker may have on its way.

    Args:
        step_tokens: that a step may have.
    """
    return min(max(step_tokens * _CREDIT_BYTES, _MIN_CREDIT), _MAX_CREDIT)


def largest_step(limits: StepLimits) -> StepWork:
    """A step that is full of everything, as pages leave room for it.

    Wider lists than `answer_limit` has room for are left to admission
    (`pool.admission.call_memory`).
    """
    return StepWork(
        tokens=limits.step_tokens,
        rows=limits.step_tokens,
        listed=_ANSWER_BYTES // 8,
        answer_bytes=limits.answer_bytes,
        context=limits.context,
        chunk_tokens=limits.chunk_tokens,
        truncates=True,
        samples=limits.max_samples,
    )


def step_bytes(shape: StepShape, work: StepWork) -> int:
    """Bytes beside weights and pages at the peak of a step: in a layer, or behind the last one."""
    held = work.samples * work.context * _SLOT_BYTES + work.request_bytes if shape.on_host else 0
    return max(body_bytes(shape, work), head_bytes(shape, work)) + held + SLACK_BYTES


def body_bytes(shape: StepShape, work: StepWork) -> int:
    """While a layer computes: residuals, what was normalised and the layer's inner activations."""
    tokens = work.tokens + -work.tokens % 16
    inner = max(shape.attention_width, shape.feed_forward_width)
    size = 2 * shape.hidden * shape.residual_bytes + (shape.hidden + inner) * shape.element_bytes
    attention = shape.partial_bytes if work.context > shape.part_keys else 0
    if not shape.compiled_attention:
        attention = _attention_bytes(shape, work)
    return tokens * size + attention


def _attention_bytes(shape: StepShape, work: StepWork) -> int:
    """Keys of a tree or of samples side by side, scores and masks of torch's operators."""
    kept = work.context
    if work.samples:
        kept = max(kept, min(work.samples * work.context, max(shape.gathered_tokens, work.context)))
    scores = shape.heads * work.chunk_tokens * work.context
    # Beyond the bound, one head of keys after another, with its group of queries.
    bounded = max(shape.score_elements, scores // shape.kv_heads)
    masks = work.tokens * work.context * (0 if shape.on_host else _FLOAT)
    return (
        kept * shape.layer_kv_width * shape.element_bytes
        + _SCORE_COPIES * _FLOAT * min(scores, bounded)
        + work.chunk_tokens * work.context * _FLOAT
        + masks
    )


def head_bytes(shape: StepShape, work: StepWork) -> int:
    """While rows become numbers: states, a tile of logits, a block of it, and answers so far."""
    rows = min(work.rows + -work.rows % 16, shape.tile_rows)
    block = min(rows, shape.block_rows)
    # Twice: where rows continue what an earlier step computed, its states are put beside these.
    states = 2 * work.tokens * shape.hidden * shape.element_bytes
    gathered = rows * shape.hidden * (shape.element_bytes + shape.logit_bytes)
    product = rows * shape.vocab_size * shape.logit_bytes
    numbers = _copied_rows(shape, work, block) * shape.vocab_size * _FLOAT
    if shape.compiled_head and not shape.on_host:
        numbers += (block if work.truncates else min(block, work.samples)) * _SUPPORT_BYTES
    one = work.listed * LISTED_BYTES
    lists = min(block * one, max(one, shape.list_bytes))
    answers = ANSWER_COPIES * work.answer_bytes if shape.on_host else 0
    return states + gathered + product + numbers + lists + answers


def _copied_rows(shape: StepShape, work: StepWork, block: int) -> int:
    """fp32 rows of logits beside the product: rows are scored, then samples are drawn."""
    drawn = min(block, work.samples)
    if shape.compiled_head:
        rows = _BANNED_COPIES * drawn
        if not shape.on_host:
            rows = max(rows, block)
    else:
        scored = _TRUNCATED_COPIES if work.truncates else _PLAIN_COPIES
        rows = max(scored * block, _TRUNCATED_COPIES * drawn)
    return rows + _FINISHED_COPIES * block if shape.finishes_logits else rows
