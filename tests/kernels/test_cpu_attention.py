"""The C++ attention against float64 mathematics, on random trees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring_service.engine.attention import runs
from scoring_service.engine.attention.packing import SegmentTree, TreeNode
from scoring_service.engine.attention.runs import tables
from scoring_service.kernels.cpu.ops import CpuKernels, load_cpu_kernels
from tests.torch_threads import torch_threads

SLOTS = 2048


@pytest.fixture(scope="module")
def kernels() -> CpuKernels:
    return load_cpu_kernels()


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    width: int
    value_width: int


SHAPES = [
    Shape(9, 3, 64, 64),
    Shape(4, 1, 32, 32),
    Shape(2, 2, 8, 8),
    Shape(4, 2, 96, 96),
    Shape(8, 1, 128, 128),
    Shape(6, 1, 192, 192),
    Shape(4, 4, 24, 16),  # keys wider than values, as in multi-head latent attention
    Shape(5, 1, 256, 256),
    Shape(3, 1, 512, 512),
]
ASKED: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"window": 37},
    "softcap": {"softcap": 3.0},
    "sinks": {"sinks": True},
    "long window": {"window": 700},
    "all": {"window": 300, "softcap": 3.0, "sinks": True},
}


@dataclass(frozen=True)
class Chain:
    """A node by hand: rows of the step that continue slots of the pool and rows before them."""

    slots: list[int]
    ancestors: list[int]
    rows: range


def reference(
    tensors: dict[str, torch.Tensor],
    chains: list[Chain],
    asked: dict[str, Any],
    rounded: torch.dtype = torch.float64,
) -> torch.Tensor:
    """float64, one query at a time, from the definition.

    With `rounded`, weights and the answer are rounded as an eager forward rounds them.
    """
    q, k, v = (tensors[name].double() for name in ("q", "k", "v"))
    pool_k, pool_v = tensors["pool_k"].double(), tensors["pool_v"].double()
    heads, rows, width = q.shape
    group = heads // k.shape[0]
    out = torch.zeros(rows, heads, v.shape[2], dtype=torch.float64)
    for chain in chains:
        for own, row in enumerate(chain.rows):
            before = [*chain.ancestors, *chain.rows[: own + 1]]
            keys = torch.cat([pool_k[:, chain.slots], k[:, before]], dim=1)
            values = torch.cat([pool_v[:, chain.slots], v[:, before]], dim=1)
            if "window" in asked:
                keys, values = keys[:, -asked["window"] :], values[:, -asked["window"] :]
            for head in range(heads):
                scores = keys[head // group] @ q[head, row] / width**0.5
                if "softcap" in asked:
                    scores = torch.tanh(scores / asked["softcap"]) * asked["softcap"]
                if "sinks" in asked:
                    sink = tensors["sinks"][head : head + 1].double()
                    weights = torch.softmax(torch.cat([scores, sink]), 0)[:-1]
                else:
                    weights = torch.softmax(scores, 0)
                weights = weights.to(rounded).double()
                out[row, head] = (weights @ values[head // group]).to(rounded)
    return out


def random_tensors(shape: Shape, rows: int, dtype: torch.dtype, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator)

    # Queries and keys as layers hand them over: token first, seen head first.
    return {
        "q": (2 * draw(rows, shape.heads, shape.width)).to(dtype).transpose(0, 1),
        "k": draw(rows, shape.kv_heads, shape.width).to(dtype).transpose(0, 1),
        "v": draw(rows, shape.kv_heads, shape.value_width).to(dtype).transpose(0, 1),
        "pool_k": draw(shape.kv_heads, SLOTS, shape.width).to(dtype),
        "pool_v": draw(shape.kv_heads, SLOTS, shape.value_width).to(dtype),
        "sinks": draw(shape.heads),
    }


def attend(
    kernels: CpuKernels,
    tensors: dict[str, torch.Tensor],
    trees: list[SegmentTree],
    decoding: list[tuple[int, np.ndarray]],
    asked: dict[str, Any],
    kept: tuple[list[int], list[int]] = ([], []),
) -> torch.Tensor:
    return kernels.attend(
        tensors["q"],
        tensors["k"],
        tensors["v"],
        (tensors["pool_k"], tensors["pool_v"]),
        (torch.tensor(kept[0], dtype=torch.int64), torch.tensor(kept[1], dtype=torch.int64)),
        tables(trees, decoding),
        scaling=tensors["q"].shape[2] ** -0.5,
        **{**asked, **({"sinks": tensors["sinks"]} if "sinks" in asked else {})},
    )


def check(
    found: torch.Tensor,
    tensors: dict[str, torch.Tensor],
    chains: list[Chain],
    asked: dict[str, Any],
) -> None:
    """No further from float64 than an eager forward is."""
    exact = reference(tensors, chains, asked)
    if found.dtype == torch.float32:
        torch.testing.assert_close(found.double(), exact, atol=2e-5, rtol=0)
        return
    error = (found.double() - exact).abs()
    eager = (reference(tensors, chains, asked, rounded=found.dtype) - exact).abs()
    assert error.mean() <= 1.2 * eager.mean()
    assert error.max() <= 2 * eager.max()


def tree(
    prefix: list[int], root: int, branches: list[list[int]]
) -> tuple[list[SegmentTree], list[Chain]]:
    """A root of so many tokens behind slots of the pool, and branches of nodes behind it."""
    nodes = [TreeNode(0, root, len(prefix))]
    chains = [Chain(prefix, [], range(root))]
    row = root
    for branch in branches:
        ancestors = list(range(root))
        for tokens in branch:
            nodes.append(TreeNode(row, row + tokens, len(prefix) + len(ancestors)))
            chains.append(Chain(prefix, list(ancestors), range(row, row + tokens)))
            ancestors += range(row, row + tokens)
            row += tokens
    return [SegmentTree(torch.tensor(prefix, dtype=torch.int64), tuple(nodes))], chains


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_trees_over_several_blocks_of_keys(
    kernels: CpuKernels, shape: Shape, asked: dict[str, Any], dtype: torch.dtype
) -> None:
    prefix = [*range(96, 96 + 250), *range(32, 64), *range(700, 707)]
    trees, chains = tree(prefix, 17, [[5, 1, 30], [1], [70]])
    rows = 17 + 5 + 1 + 30 + 1 + 70
    tensors = random_tensors(shape, rows + 4, dtype, seed=1)
    found = attend(kernels, tensors, trees, [], asked)
    check(found, tensors, chains, asked)
    assert not found[rows:].any(), "rows of no node are zero"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sampled_tokens_over_their_pages(
    kernels: CpuKernels, shape: Shape, asked: dict[str, Any], dtype: torch.dtype
) -> None:
    tensors = random_tensors(shape, 6, dtype, seed=2)
    lengths = [1, 65, 333, 1024, 1101]  # the last two in parts
    slots = [np.arange(3, 4), np.r_[64:80, 16:48, 500:517], np.arange(600, 933)]
    slots += [np.r_[1000:1200, 1224:2048], np.r_[1001:1500, 1300:1902]]
    assert [len(s) for s in slots] == lengths
    kept = (list(range(len(slots))), [int(s[-1]) for s in slots])
    found = attend(kernels, tensors, [], list(enumerate(slots)), asked, kept)
    for name in ("k", "v"):
        stored = tensors[f"pool_{name}"][:, kept[1]]
        assert torch.equal(stored, tensors[name][:, kept[0]]), "kept before anybody looks"
    chains = [Chain(s[:-1].tolist(), [], range(row, row + 1)) for row, s in enumerate(slots)]
    check(found, tensors, chains, asked)


@pytest.mark.parametrize("loud", [slice(0, 500), slice(600, 700), slice(1090, 1100)], ids=str)
def test_parts_of_a_chain_may_be_far_apart(kernels: CpuKernels, loud: slice) -> None:
    """Their exponents are taken from the largest score of all: none overflows, none is lost."""
    tensors = random_tensors(SHAPES[0], 1, torch.float32, seed=5)
    for name in ("q", "k", "pool_k"):  # numbers whose products fp32 adds up exactly
        tensors[name] = (4 * tensors[name]).round() / 4
    tensors["pool_k"][:, loud] *= 64
    slots = np.arange(1100)
    found = attend(kernels, tensors, [], [(0, slots)], {}, ([0], [1099]))
    check(found, tensors, [Chain(slots[:-1].tolist(), [], range(1))], {})


@settings(max_examples=25)
@given(
    root=st.integers(1, 80),
    branches=st.lists(st.lists(st.integers(1, 70), min_size=1, max_size=3), max_size=3),
    prefix=st.integers(0, 270),
    asked=st.sampled_from(list(ASKED.values())),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_random_trees(
    kernels: CpuKernels,
    root: int,
    branches: list[list[int]],
    prefix: int,
    asked: dict[str, Any],
    dtype: torch.dtype,
) -> None:
    trees, chains = tree(list(range(40, 40 + prefix)), root, branches)
    rows = root + sum(map(sum, branches))
    tensors = random_tensors(Shape(3, 1, 32, 32), rows, dtype, seed=3)
    check(attend(kernels, tensors, trees, [], asked), tensors, chains, asked)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_company_and_threads_change_no_bit(kernels: CpuKernels, dtype: torch.dtype) -> None:
    trees, _ = tree(list(range(40, 340)), 20, [[64], [33], [64]])
    rows = 20 + 64 + 33 + 64
    tensors = random_tensors(SHAPES[0], rows + 1, dtype, seed=4)
    sampled = [(rows, np.arange(100, 1400))]
    together = attend(kernels, tensors, trees, sampled, {})
    for node in trees[0].nodes[1:]:
        alone = [SegmentTree(trees[0].prefix_slots, (trees[0].nodes[0], node))]
        own = slice(node.start, node.stop)
        assert torch.equal(attend(kernels, tensors, alone, [], {})[own], together[own])
    with torch_threads(3):
        again = attend(kernels, tensors, trees, sampled, {})
    assert torch.equal(again, together)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_where_a_run_of_rows_is_cut_changes_no_bit(
    kernels: CpuKernels,
    shape: Shape,
    asked: dict[str, Any],
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So chunks that follow one another in a step may be attended to as one."""
    prefix = list(range(40, 313))
    trees, chains = tree(prefix, 32, [[32, 32, 64, 2, 39], [31, 33]])
    rows = 32 + 169 + 64
    tensors = random_tensors(shape, rows, dtype, seed=5)
    nodes, _ = tables(trees, [])
    assert nodes[:, 1].tolist() == [32 + 169, 64]
    joined = attend(kernels, tensors, trees, [], asked)
    monkeypatch.setattr(runs, "_goes_on", lambda _ancestors, _node: False)
    assert len(tables(trees, [])[0]) == len(chains)
    assert torch.equal(attend(kernels, tensors, trees, [], asked), joined)


def test_other_types_and_odd_widths_are_left_to_torch(kernels: CpuKernels) -> None:
    def asked(dtype: torch.dtype, width: int) -> bool:
        tensor = torch.zeros(1, 1, width, dtype=dtype)
        return kernels.can_attend(tensor, tensor)

    assert asked(torch.float32, 64)
    assert not asked(torch.float16, 64)
    assert not asked(torch.float64, 64)
    assert not asked(torch.bfloat16, 63)
    assert not asked(torch.bfloat16, 4096)
