"""Batch invariance: whether a sequence's bits depend on what shares its steps. Tried at load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface

from scoring_service.engine.attention.attention import packed_attention
from scoring_service.engine.attention.packing import Packing
from scoring_service.engine.attention.pages import LayerShape, PagePool, pages_for
from scoring_service.engine.attention.segments import Segment
from scoring_service.engine.attention.store import SegmentStore
from scoring_service.engine.model.causal_model import CausalModel
from scoring_service.engine.model.numerics import tall_steps
from scoring_service.engine.packed.steps.body import PackedBody, Step

_FIRST_LAYERS_NAME = "scoring_first_layers"
_MIN_LAYERS = 2
_CHUNK = 16
_SMALL_STEP = (1, 9, 16, 21)
"""Tokens of sequences that go through the whole model."""
_FILLER_TOKENS = 32
"""Tokens of each sequence that fills a tall step."""


def is_batch_invariant(
    network: Any, model: CausalModel, shapes: list[LayerShape], step_rows: int
) -> bool:
    """Whether a sequence's states have the same bits alone and in steps of other sizes.

    The whole model in a small step; in tall ones, up to a full step, as many of its first layers as
    have one of each kind: the others have products and pointwise operations of the same shapes.

    Args:
        network: the model.
        model: the same, as the engine runs it.
        shapes: what its layers keep of a token.
        step_rows: of a full step.
    """
    if model.device.type != "cpu":
        return False
    if not _same_bits(model, shapes, _SMALL_STEP):
        return False
    layers = _layers_of_each_kind(network.config.get_text_config())
    first = cast("CausalModel", _FirstLayers(model))
    return all(
        _same_bits(first, shapes[:layers], _tall_step(rows)) for rows in tall_steps(step_rows)
    )


def _same_bits(model: CausalModel, shapes: list[LayerShape], lengths: Sequence[int]) -> bool:
    """Whether sequences of these lengths have the same states together and, the least, alone."""
    pages = sum(2 * pages_for(length) for length in lengths)
    pool = PagePool(shapes, pages, model.dtype, model.device)
    body, store = PackedBody(model, pool), SegmentStore(pool, _CHUNK)
    chains = [
        store.prompt(_ids(length, model.head.vocab_size), place.to_bytes(4))
        for place, length in enumerate(lengths)
    ]
    watched = chains[: len(_SMALL_STEP)]
    alone = [_states(body, [chain])[0] for chain in watched]
    # The last ones first, so that those that are watched come behind all others.
    together = _states(body, chains[::-1])[::-1]
    return all(map(torch.equal, alone, together[: len(watched)]))


def _states(body: PackedBody, chains: Sequence[list[Segment]]) -> list[Tensor]:
    """States of each chain's tokens, of one step."""
    found = body.run(Step.of(segment for chain in chains for segment in chain))
    starts = [found.starts[id(chain[0])] for chain in chains]
    lengths = [sum(len(segment.token_ids) for segment in chain) for chain in chains]
    return [
        found.states_T_H[start : start + length]
        for start, length in zip(starts, lengths, strict=True)
    ]


def _tall_step(rows: int) -> list[int]:
    """Lengths that have so many tokens together, those that are watched first."""
    left = rows - sum(_SMALL_STEP)
    filler = [_FILLER_TOKENS] * (left // _FILLER_TOKENS)
    return [*_SMALL_STEP, *filler, *([left % _FILLER_TOKENS] if left % _FILLER_TOKENS else [])]


def _ids(length: int, vocab_size: int) -> np.ndarray:
    return np.array([(11 * i + 5 * length) % vocab_size for i in range(length)], dtype=np.int32)


def _layers_of_each_kind(config: Any) -> int:
    kinds: list[str] = getattr(config, "layer_types", None) or []
    return max([_MIN_LAYERS, *(kinds.index(kind) + 1 for kind in set(kinds))])


class _ReachedError(Exception):
    """What enters the first attention that is not to be computed."""

    def __init__(self, rows_T_D: Tensor) -> None:
        self.rows_T_D = rows_T_D


class _FirstLayers:
    """A model whose states are what its first layers leave: what the next attention is given."""

    def __init__(self, model: CausalModel) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def packed_states(self, ids_T: Tensor, positions_T: Tensor, packing: Packing) -> Tensor:
        """[T, width of queries, keys and values]; final states of a model without more layers."""
        try:
            return self._model.packed_states(ids_T, positions_T, packing, _FIRST_LAYERS_NAME)
        except _ReachedError as reached:
            return reached.rows_T_D


def _attend_first(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    **asked: Any,
) -> tuple[Tensor, None]:
    """The packed attention of the layers that have pages."""
    pool = None if packing is None else packing.pool
    if packing is not None and pool is not None and packing.layer == len(pool.keys):
        rows = [part[0].transpose(0, 1).flatten(1) for part in (query, key, value)]
        raise _ReachedError(torch.cat(rows, 1))
    return packed_attention(module, query, key, value, attention_mask, packing=packing, **asked)


AttentionInterface.register(_FIRST_LAYERS_NAME, _attend_first)
