"""The attention of a packed step, registered with transformers under one name.

Every segment attends to its ancestors and, causally, to itself. Keys and values of a tree lie in
one workspace by absolute position, so that nothing is copied for each of a prompt's completions.

On a CPU one C++ kernel does a layer, where it could be compiled, on CUDA one Triton kernel.
Elsewhere attention is two plain batched products around a softmax: measured two to three times as
fast as torch's fused CPU kernel at the sizes of segments. The bits of a row depend on its own
segment alone in all of them. On CUDA without Triton torch's fused kernels take the segments whose
layer asks for nothing that they lack.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface

from scoring_service.engine.attention.packing import Bucket, Packing, SegmentTree, TreeNode
from scoring_service.engine.attention.pages import LayerShape, PagePool
from scoring_service.engine.attention.runs import tables
from scoring_service.engine.attention.step_shape import SCORE_ELEMENTS
from scoring_service.kernels.cpu.ops import CpuKernels

ATTENTION_NAME = "scoring_packed"

_FEW_ROWS, _FEW_KEYS = 16, 256
"""Queries and keys of a product that is fastest in fp32."""

_UNKNOWN = ("position_bias", "relative_position_bias", "alibi", "head_mask")
"""Arguments that change what attention is and that this one does not know."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """What a layer asks for."""

    scaling: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None
    """[kv heads, group, 1, 1]."""


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    packing: Packing | None = None,
    **asked: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer over one packed step.

    Args:
        module: the layer, unused beside what transformers passes of it.
        query: [1, heads, T, D].
        key: [1, kv heads, T, D].
        value: [1, kv heads, T, Dv].
        attention_mask: must be None: the packing says who sees whom.
        scaling: of scores; 1 / sqrt(D) unless given.
        packing: the step.
        asked: sliding_window, softcap, s_aux as layers ask for them.

    Returns:
        [1, T, heads, Dv], and no weights.

    Raises:
        NotImplementedError: the layer asks for something unknown, or the packing did not arrive.
    """
    if packing is None or attention_mask is not None or query.shape[0] != 1:
        raise NotImplementedError("the model does not hand the packing through to its attention")
    if unknown := [name for name in _UNKNOWN if asked.get(name) is not None]:
        raise NotImplementedError(f"the model's attention takes {unknown[0]}")
    queries, keys, values = query[0], key[0], value[0]
    kv_heads = keys.shape[0]
    layer_index = packing.layer
    packing.layer += 1
    if packing.pool is None:
        packing.shapes.append(LayerShape(kv_heads, keys.shape[2], values.shape[2]))
    sinks = asked.get("s_aux")
    layer = _Layer(
        scaling=query.shape[3] ** -0.5 if scaling is None else scaling,
        window=asked.get("sliding_window"),
        softcap=asked.get("softcap"),
        sinks=None if sinks is None else sinks.reshape(kv_heads, -1, 1, 1),
    )
    if packing.kernels is not None and packing.kernels.can_attend(queries, values):
        return _attend_compiled(
            packing, packing.kernels, layer_index, layer, queries, keys, values
        ), None
    if packing.pool is not None and len(packing.kept_rows):
        _keep(packing, packing.pool, layer_index, keys, values)
    heads = queries.shape[0]
    output = queries.new_zeros(packing.rows, heads, values.shape[2])
    if packing.by_triton:
        _attend_by_triton(packing, layer_index, layer, queries, keys, values, output)
        return output[None], None
    for tree in packing.trees:
        _attend_tree(packing, layer_index, layer, tree, queries, keys, values, output)
    for bucket in packing.decode_buckets(layer.window):
        _attend_bucket(packing, layer_index, layer, bucket, queries, output)
    return output[None], None


def _keep(packing: Packing, pool: PagePool, layer_index: int, keys: Tensor, values: Tensor) -> None:
    rows, slots = packing.kept_rows, packing.kept_slots
    if packing.by_triton:
        # Imported where a CUDA device is, and nowhere else.
        from scoring_service.kernels.gpu.write_kv import write_kv

        write_kv(keys, values, packing.kept(layer_index), rows, slots)
    else:
        pool.write(layer_index, slots, keys[:, rows], values[:, rows])


def _attend_compiled(
    packing: Packing,
    kernels: CpuKernels,
    layer_index: int,
    layer: _Layer,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """[1, T, heads, Dv]."""
    if packing.tables is None:
        packing.tables = tables(packing.trees, packing.decoding)
    pool = (keys[:, :0], values[:, :0]) if packing.pool is None else packing.kept(layer_index)
    return kernels.attend(
        queries,
        keys,
        values,
        pool,
        (packing.kept_rows, packing.kept_slots),
        packing.tables,
        layer.scaling,
        layer.window,
        layer.softcap,
        None if layer.sinks is None else layer.sinks.float().reshape(-1),
    )[None]


def _attend_by_triton(
    packing: Packing,
    layer_index: int,
    layer: _Layer,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    output: Tensor,
) -> None:
    # Imported where a CUDA device is, and nowhere else.
    from scoring_service.kernels.gpu import attention as triton_attention
    from scoring_service.kernels.gpu.attention_work import Heads, work_of

    kv_heads, value_width = keys.shape[0], values.shape[2]
    kind = Heads(queries.shape[0] // kv_heads, kv_heads, value_width, queries.dtype)
    if kind not in packing.work:
        packing.work[kind] = work_of(
            packing.places, kind, packing.device, packing.work_room, packing.key_parts
        )
    triton_attention.attend(
        queries,
        keys,
        values,
        (keys[:, :0], values[:, :0]) if packing.pool is None else packing.kept(layer_index),
        packing.work[kind],
        triton_attention.Scores(
            layer.scaling,
            layer.window,
            layer.softcap,
            None if layer.sinks is None else layer.sinks.float().reshape(-1),
        ),
        output,
    )


def _attend_tree(
    packing: Packing,
    layer_index: int,
    layer: _Layer,
    tree: SegmentTree,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    output: Tensor,
) -> None:
    prefix = len(tree.prefix_slots)
    heads, _, width = queries.shape
    kv_heads = keys.shape[0]
    work_keys = keys.new_empty(kv_heads, tree.length, keys.shape[2])
    work_values = values.new_empty(kv_heads, tree.length, values.shape[2])
    if prefix:
        kept_keys, kept_values = packing.kept(layer_index)
        work_keys[:, :prefix] = kept_keys.index_select(1, tree.prefix_slots)
        work_values[:, :prefix] = kept_values.index_select(1, tree.prefix_slots)
    for node in tree.nodes:
        work_keys[:, node.first : node.end] = keys[:, node.start : node.stop]
        work_values[:, node.first : node.end] = values[:, node.start : node.stop]
        oldest = 0 if layer.window is None else max(0, node.first - layer.window + 1)
        attended = _attend_node(
            packing,
            layer,
            node,
            queries[:, node.start : node.stop].reshape(kv_heads, -1, width),
            work_keys[:, oldest : node.end],
            work_values[:, oldest : node.end],
        )
        output[node.start : node.stop] = attended.view(heads, node.tokens, -1).transpose(0, 1)


def _attend_node(
    packing: Packing, layer: _Layer, node: TreeNode, queries: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """[kv heads, group * tokens, Dv] of one segment."""
    before = keys.shape[1] - node.tokens
    window = layer.window if layer.window is not None and layer.window < keys.shape[1] else None
    if queries.is_cuda and layer.softcap is None and layer.sinks is None:
        grouped = queries.view(keys.shape[0], -1, node.tokens, queries.shape[2])
        return functional.scaled_dot_product_attention(
            grouped,
            keys[:, None].expand(-1, grouped.shape[1], -1, -1),
            values[:, None].expand(-1, grouped.shape[1], -1, -1),
            attn_mask=packing.mask(node.tokens, before, window).to(queries.dtype),
            scale=layer.scaling,
        ).reshape(keys.shape[0], -1, values.shape[2])
    if window is None:
        # Only among its own tokens is there something that a query must not see.
        mask = packing.mask(node.tokens, 0, None)
    else:
        mask = packing.mask(node.tokens, before, window)
    if queries.shape[0] * queries.shape[1] * keys.shape[1] <= SCORE_ELEMENTS:
        return _products(layer, queries, keys, values, mask, layer.sinks)
    return torch.cat(
        [
            _products(
                layer,
                queries[head : head + 1],
                keys[head : head + 1],
                values[head : head + 1],
                mask,
                None if layer.sinks is None else layer.sinks[head : head + 1],
            )
            for head in range(queries.shape[0])
        ]
    )


def _products(
    layer: _Layer,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    sinks: Tensor | None,
) -> Tensor:
    """softmax(queries @ keys.T) @ values, [B, group * T, Dv].

    Args:
        layer: scaling and soft-capping.
        queries: [B, group * T, D]; T is the mask's.
        keys: [B, L, D].
        values: [B, L, Dv].
        mask: float32, added to the scores of the last columns, [T, at most L] or [B, 1, L].
        sinks: [B, group, 1, 1].
    """
    scores = _scores(queries, keys.transpose(1, 2), layer.scaling)
    if layer.softcap is not None:
        scores = torch.tanh(scores / layer.softcap) * layer.softcap
    tokens = mask.shape[-2]
    grouped = scores.view(scores.shape[0], -1, tokens, scores.shape[2])
    grouped[..., scores.shape[2] - mask.shape[-1] :] += mask if mask.dim() == 2 else mask[:, None]
    if sinks is None:
        weights = torch.softmax(scores, dim=-1)
    else:
        column = sinks.float().expand(*grouped.shape[:3], 1)
        weights = torch.softmax(torch.cat([grouped, column], dim=-1), dim=-1)
        weights = weights[..., :-1].reshape(scores.shape)
    return torch.bmm(weights.to(values.dtype), values)


def _scores(queries: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """float32 queries @ keys * scaling.

    A product of half-precision factors adds up in fp32 and is rounded at its end. A second product
    gives what that rounding dropped: the two are faster than one in fp32, and as good, but for
    small ones.
    """
    if queries.shape[1] < _FEW_ROWS and keys.shape[2] <= _FEW_KEYS:
        return torch.bmm(queries.float() * scaling, keys.float())
    empty = queries.new_empty(())
    rounded = torch.baddbmm(empty, queries, keys, beta=0, alpha=scaling)
    if rounded.dtype == torch.float32:
        return rounded
    rest = torch.baddbmm(rounded, queries, keys, beta=-1, alpha=scaling)
    return rounded.float().add_(rest)


def _attend_bucket(
    packing: Packing,
    layer_index: int,
    layer: _Layer,
    bucket: Bucket,
    queries: Tensor,
    output: Tensor,
) -> None:
    """One query a sample, over its own pages."""
    pool_keys, pool_values = packing.kept(layer_index)
    samples, length = bucket.slots.shape
    kv_heads = pool_keys.shape[0]
    flat = bucket.slots.view(-1)
    keys = pool_keys.index_select(1, flat).view(kv_heads * samples, length, -1)
    values = pool_values.index_select(1, flat).view(kv_heads * samples, length, -1)
    heads, _, width = queries.shape
    group = heads // kv_heads
    # [heads, B, D] -> [kv heads * B, group, D], each sample's group as the rows of one product.
    asked = queries[:, bucket.rows].view(kv_heads, group, samples, width).transpose(1, 2)
    sinks = layer.sinks
    if sinks is not None:
        sinks = sinks[:, None].expand(-1, samples, -1, -1, -1).reshape(-1, group, 1, 1)
    attended = _products(
        layer,
        asked.reshape(kv_heads * samples, group, width),
        keys,
        values,
        bucket.mask.repeat(kv_heads, 1, 1),
        sinks,
    )
    shaped = attended.view(kv_heads, samples, group, -1).transpose(0, 1)
    output[bucket.rows] = shaped.reshape(samples, heads, -1)


AttentionInterface.register(ATTENTION_NAME, packed_attention)
# No mask function is registered under this name: transformers then builds none, and does not ask
# the device whether the positions of a step are those of one sequence.
