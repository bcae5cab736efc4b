"""What the backward pass of everything that is computed by chunks holds, and how often."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scoring_client.losses import forward_kl, generalized_js, reverse_kl, soft_cross_entropy
from scoring_client.replay import entropy, linear_processed_logprobs, processed_logprobs
from tests.training.distillation import pair, teacher_of

ROWS, VOCAB, WIDTH = 64, 24, 30


class Made(TorchDispatchMode):
    """Counts the tensors of some size that operations made, views of others aside."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements, self.count = elements, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
            self.count += sum(leaf.numel() >= self.elements for leaf in made)
        return out


LABELS = torch.arange(ROWS) % VOCAB
TEACHER_N_V, _ = pair(rows=ROWS, vocab=VOCAB)
TEACHER = teacher_of(TEACHER_N_V, 5, torch.arange(4).expand(ROWS, 4))
HEAD = torch.randn(VOCAB, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

CHUNKED: dict[str, tuple[int, Callable[..., Tensor]]] = {
    "processed_logprobs": (
        VOCAB,
        lambda x, c: processed_logprobs(x, LABELS, top_k=7, top_p=0.9, chunk_rows=c),
    ),
    "entropy": (VOCAB, lambda x, c: entropy(x, chunk_rows=c)),
    "linear_processed_logprobs": (
        WIDTH,
        lambda x, c: linear_processed_logprobs(
            x, HEAD, LABELS, top_k=7, head_dtype=torch.float64, chunk_rows=c
        ),
    ),
    "forward_kl": (VOCAB, lambda x, c: forward_kl(x, TEACHER, chunk_rows=c)),
    "reverse_kl": (VOCAB, lambda x, c: reverse_kl(x, TEACHER, chunk_rows=c)),
    "generalized_js": (VOCAB, lambda x, c: generalized_js(x, TEACHER, chunk_rows=c)),
    "soft_cross_entropy": (
        VOCAB,
        lambda x, c: soft_cross_entropy(x, TEACHER.token_ids, TEACHER.soft_targets(), chunk_rows=c),
    ),
}
"""Name -> columns of what it takes, and the call."""


MASKED: dict[str, Callable[..., Tensor]] = {
    "forward_kl": lambda x, **o: forward_kl(x, TEACHER, **o),
    "reverse_kl": lambda x, **o: reverse_kl(x, TEACHER, **o),
    "generalized_js": lambda x, **o: generalized_js(x, TEACHER, **o),
    "soft_cross_entropy": lambda x, **o: soft_cross_entropy(
        x, TEACHER.token_ids, TEACHER.soft_targets(), **o
    ),
}


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("name", MASKED)
def test_a_mask_leaves_the_chunks_as_they_are(name: str, reduction: str) -> None:
    """No tensor of all rows, or of all rows that are kept, but the one that is the gradient."""
    loss = MASKED[name]
    generator = torch.Generator().manual_seed(2)
    given = torch.randn(ROWS, VOCAB, dtype=torch.float64, generator=generator)
    mask = torch.rand(ROWS, generator=generator) < 0.7
    # A chunk with nothing, and one with all.
    mask[:8], mask[8:16] = False, True
    by_row = loss(given, reduction="none").masked_fill(~mask, 0.0)
    expected = {"none": by_row, "sum": by_row.sum(), "mean": by_row.sum() / mask.sum()}[reduction]
    rows = given.masked_fill(~mask[:, None], math.nan).requires_grad_(True)
    chunk_rows = 8
    with Made(2 * chunk_rows * VOCAB) as forward:
        value = loss(rows, mask=mask, reduction=reduction, chunk_rows=chunk_rows)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-14)
    assert forward.count == 0
    with Made(2 * chunk_rows * VOCAB) as backward:
        value.sum().backward()
    # As without a mask: one cat of the chunks' gradients, and the copy that becomes `grad`.
    assert 1 <= backward.count <= 2
    clean = given.clone().requires_grad_(True)
    every = loss(clean, reduction="none")[mask]
    (every.mean() if reduction == "mean" else every.sum()).backward()
    torch.testing.assert_close(rows.grad, clean.grad, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", CHUNKED)
def test_the_gradient_is_put_together_once(name: str) -> None:
    """Not once a chunk: so much work and memory that small chunks cost the square of the rows."""
    columns, function = CHUNKED[name]
    generator = torch.Generator().manual_seed(1)
    given = torch.randn(ROWS, columns, dtype=torch.float64, generator=generator)
    found, gradients = {}, {}
    for chunk_rows in (2, 16):
        rows = given.clone().requires_grad_(True)
        total = function(rows, chunk_rows).sum()
        with Made(ROWS * columns) as made:
            total.backward()
        found[chunk_rows], gradients[chunk_rows] = made.count, rows.grad
    # One cat of the chunks' gradients, and the copy that becomes `grad`.
    assert 1 <= found[2] == found[16] <= 2, found
    torch.testing.assert_close(gradients[2], gradients[16], rtol=0, atol=1e-14)


SHIFTED_LABELS = torch.arange(4 * 15).reshape(4, 15) % VOCAB

SHIFTED: dict[str, Callable[..., Tensor]] = {
    "processed_logprobs": lambda x, c: processed_logprobs(
        x,
        SHIFTED_LABELS.reshape(x.shape[:-1]),
        temperature=torch.linspace(0.5, 2, 60).reshape(x.shape[:-1]),
        top_k=7,
        chunk_rows=c,
    ),
    "entropy": lambda x, c: entropy(x, chunk_rows=c),
}


@pytest.mark.parametrize("name", SHIFTED)
@pytest.mark.parametrize("shape", [(4, 16), (2, 2, 16), (20, 4)])
def test_logits_but_the_last_are_cut_before_they_are_copied(
    name: str, shape: tuple[int, ...]
) -> None:
    """A view whose rows do not lie end to end: flattened at once it would be all logits again."""
    function = SHIFTED[name]
    generator = torch.Generator().manual_seed(3)
    given = torch.randn(*shape, VOCAB, dtype=torch.float64, generator=generator)
    assert not given[..., :-1, :].is_contiguous()
    flat = given[..., :-1, :].clone().requires_grad_(True)
    expected = function(flat, None)
    expected.square().sum().backward()
    backward_counts = set()
    for chunk_rows in (1, 4, 7, 20):
        logits = given.clone().requires_grad_(True)
        with Made(max(2 * chunk_rows, 21) * VOCAB) as forward:
            ours = function(logits[..., :-1, :], chunk_rows)
        assert forward.count == 0
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-14)
        with Made(60 * VOCAB) as backward:
            ours.square().sum().backward()
        backward_counts.add(backward.count)
        assert torch.equal(logits.grad[..., -1, :], torch.zeros_like(logits[..., -1, :]))
        torch.testing.assert_close(logits.grad[..., :-1, :], flat.grad, rtol=0, atol=1e-14)
    # The gradient of the view, and that of the logits; nothing once a chunk.
    assert max(backward_counts) <= 6, backward_counts
