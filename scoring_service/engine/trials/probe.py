"""Whether a model can be packed: found out by comparing, never by its name."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from scoring_service.engine.attention.attention import packed_attention
from scoring_service.engine.attention.packing import Packing
from scoring_service.engine.attention.pages import LayerShape, PagePool, pages_for, slots_of
from scoring_service.engine.attention.segments import DecodeToken, Segment, SegmentRange
from scoring_service.engine.attention.store import SegmentStore
from scoring_service.engine.model.causal_model import CausalModel
from scoring_service.engine.model.rope import step_dependent_kinds
from scoring_service.engine.packed.steps.body import PackedBody, Step
from scoring_service.engine.trials.closeness import states_agree
from scoring_service.engine.trials.row_order import rows_keep_apart
from scoring_service.kernels.key_parts import KeyParts

_PROBE_NAME = "scoring_probe"
_CHUNK = 16
_WINDOW = 8
"""Windows are this narrow while probing: narrower than a chunk, which no sequence fits."""
_TOKENS = 64
_MANY_TOKENS = 208
"""In segments of 80, with windows of 72: every one is more than a block of the Triton kernel, which
takes 64 queries and 64 keys at most, and ends in the middle of one."""
_DECODED = 3
_CUTS = (0, 8, 10, 13, 32, 53, 61)
"""Where a segment is cut while probing: pieces of a few tokens may take other products. None has a
single token, which is computed in another way, and which no piece that is scheduled has."""
_KEY_PARTS = KeyParts(few=64, many=64, programs=1024)
"""Where the Triton kernel cuts chains while probing: no block of its keys is longer."""
_ATTENTION_ERROR = 1e-3
"""Of the largest output of a layer's attention, in float32."""


@dataclass(frozen=True, slots=True)
class _Trial:
    """One sequence through both attentions of every layer."""

    chunk: int
    window: int
    """Windows are this narrow meanwhile."""
    dtype: torch.dtype
    """Of queries, keys, values and pages."""


_NARROWED = ("sliding_window", "attention_chunk_size")

PLAIN = "sequences run one by one through transformers' own forward"


class CannotPackError(Exception):
    """Why a model takes the plain path."""


def layer_shapes(network: Any, model: CausalModel, limit: int) -> list[LayerShape]:
    """What the layers of a model that can be packed keep of a token.

    Three comparisons, each on a few dozen tokens: every layer's attention against the model's own
    eager one on the same queries, keys and values, in float32, with windows made narrow; whole
    sequences in one step against one by one; and what is known to depend on the step. Kernels of
    ours are others in another type: they are compared in the model's own too, on more tokens.

    Args:
        network: the model.
        model: the same, as the engine runs it.
        limit: its longest sequence.

    Raises:
        CannotPackError: with the reason.
    """
    tokens = min(_TOKENS, limit // 16 * 16)
    if tokens < 32:
        raise CannotPackError(f"sequences of at most {limit} tokens are too short to probe packing")
    _refuse_step_dependent_positions(network.config.get_text_config())
    vocab = model.head.vocab_size
    ids = np.array([(7 * i + 3) % vocab for i in range(_MANY_TOKENS)], dtype=np.int32)
    ids, many = ids[:tokens], ids[: limit // 16 * 16]
    try:
        shapes = _dry_run(model, ids)
        if not shapes:
            raise CannotPackError("its layers do not ask transformers' attention interface")
        _compare_attention(network, model, shapes, ids, _Trial(_CHUNK, _WINDOW, torch.float32))
        if model.attends_by_triton or attends_compiled(model, shapes):
            trial = _Trial(len(many) * 2 // 5 // 16 * 16, len(many) * 7 // 20, model.dtype)
            _compare_attention(network, model, shapes, many, trial)
        if not rows_keep_apart(model, shapes):
            raise CannotPackError("rows that share a step change one another's states")
        _compare_states(model, shapes, ids)
    except CannotPackError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise CannotPackError(f"a packed step failed: {reason}") from error
    return shapes


def attends_compiled(model: CausalModel, shapes: list[LayerShape]) -> bool:
    """Whether C++ kernels do the attention of every layer."""
    widths = [width for layer in shapes for width in (layer.key_dim, layer.value_dim)]
    return model.kernels is not None and model.kernels.attends(model.dtype, *widths)


def is_chunk_split_invariant(model: CausalModel, shapes: list[LayerShape], limit: int) -> bool:
    """Whether a segment's states have the same bits when it is computed in several steps."""
    tokens = _CUTS[-1]
    if model.device.type != "cpu" or limit < tokens:
        return False
    ids = np.array([(13 * i + 7) % model.head.vocab_size for i in range(tokens)], dtype=np.int32)
    found = []
    for cuts in ((0, tokens), _CUTS):
        pool = PagePool(shapes, pages_for(tokens), model.dtype, model.device)
        segment = SegmentStore(pool, tokens).prompt(ids, b"")[0]
        body = PackedBody(model, pool)
        states = []
        for first, stop in itertools.pairwise(cuts):
            states.append(body.run(Step((SegmentRange(segment, first, stop),))).states_T_H)
            segment.done = stop
        found.append(torch.cat(states))
    return torch.equal(*found)


def _body(
    model: CausalModel, shapes: list[LayerShape], pages: int
) -> tuple[PackedBody, SegmentStore]:
    pool = PagePool(shapes, pages, model.dtype, model.device)
    return PackedBody(model, pool), SegmentStore(pool, _CHUNK)


def _refuse_step_dependent_positions(text_config: Any) -> None:
    for kind in step_dependent_kinds(text_config):
        raise CannotPackError(
            f"its {kind['rope_type']} positions depend on the longest sequence of a step"
        )


def _dry_run(model: CausalModel, ids: np.ndarray) -> list[LayerShape]:
    segment = Segment(None, 0, ids, kept=False)
    _, _, packing = PackedBody(model, None).run_packed(Step.of([segment]))
    return packing.shapes


def _compare_states(model: CausalModel, shapes: list[LayerShape], ids: np.ndarray) -> None:
    """Two sequences that share a step must not notice each other."""
    parts = [ids[: len(ids) // 2 + 5], ids[len(ids) // 2 + 5 :][::-1].copy()]
    body, store = _body(model, shapes, pages=32)
    chains = [store.prompt(part, bytes([place])) for place, part in enumerate(parts)]
    together = body.run(Step.of([*chains[1], *chains[0]]))
    plain = [model.states(part.tolist()) for part in parts]
    for chain, part, expected in zip(chains, parts, plain, strict=True):
        row = together.starts[id(chain[0])]
        found = together.states_T_H[row : row + len(part)]
        if not states_agree(found, expected, model.dtype):
            raise CannotPackError("sequences that share a step change one another's states")


def _compare_attention(
    network: Any, model: CausalModel, shapes: list[LayerShape], ids: np.ndarray, trial: _Trial
) -> None:
    """Runs one sequence with both attentions in every layer."""
    pool = PagePool(shapes, 2 * pages_for(len(ids)) + 8, trial.dtype, model.device)
    store = SegmentStore(pool, trial.chunk)
    body = PackedBody(model, pool)
    chain = store.prompt(ids[:-_DECODED], b"")
    own = slots_of(pool.take(1), _DECODED)
    slots = np.concatenate([chain[-1].chain_slots(), own])
    first = len(ids) - _DECODED
    decode_tokens = tuple(
        DecodeToken(int(ids[first + i]), slots[: first + i + 1]) for i in range(_DECODED)
    )
    packing = body.packing(Step.of(chain, decode_tokens))
    packing.key_parts = _KEY_PARTS
    with _narrow_windows(network, trial.window):
        model.packed_states(
            torch.from_numpy(ids.astype(np.int64)).to(model.device),
            torch.arange(len(ids), device=model.device),
            packing,
            _PROBE_NAME,
        )


@contextmanager
def _narrow_windows(network: Any, window: int) -> Iterator[None]:
    """Makes every window narrow for a while, in the config and in the layers that copied it."""
    found = []
    config = network.config.get_text_config()
    for owner in [config, *network.modules()]:
        for name in _NARROWED:
            value = owner.__dict__.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > window:
                found.append((owner, name, value))
                setattr(owner, name, window)
    try:
        yield
    finally:
        for owner, name, value in found:
            setattr(owner, name, value)


def _both_attentions(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    packing: Packing | None = None,
    **asked: Any,
) -> tuple[Tensor, None]:
    """The model's own eager attention, after a comparison with the packed one.

    The model's own has float32 products of the numbers that the packed one gets in the pages' type.
    That one rounds weights and results to this type, each at most half an eps of the largest value.
    """
    own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if own is None:
        raise CannotPackError("its attention has no eager form to compare with")
    pages = None if packing is None else packing.pool
    kind = query.dtype if pages is None else pages.keys[0].dtype
    given = (query.to(kind), key.to(kind), value.to(kind))
    wide = tuple(numbers.float() for numbers in given)
    mask = None if attention_mask is None else attention_mask.float()
    arguments = {**asked, "scaling": query.shape[3] ** -0.5 if scaling is None else scaling}
    expected, _ = own(module, *wide, mask, **arguments)
    layer = 0 if packing is None else packing.layer
    found, _ = packed_attention(module, *given, None, scaling=scaling, packing=packing, **asked)
    error = (found.reshape(expected.shape).float() - expected).abs().max()
    bound = _ATTENTION_ERROR * expected.abs().max()
    if kind != torch.float32:
        bound += torch.finfo(kind).eps * wide[2].abs().max()
    if not bool(error <= bound):
        raise CannotPackError(f"the attention of its layer {layer} is not what it asks for by name")
    return expected.to(query.dtype), None


AttentionInterface.register(_PROBE_NAME, _both_attentions)
AttentionMaskInterface.register(_PROBE_NAME, eager_mask)
