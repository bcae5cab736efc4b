"""What decides the bits of an answer, and whether equal requests get equal bits."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from scoring_service.engine.head.head import LinearHead, RowHead
from scoring_service.engine.head.tiles import ROW_MULTIPLE, tile_rows
from scoring_service.engine.machine.processor import describe_processor
from scoring_service.engine.model.code import code_digest

_HEIGHTS = (*range(1, 18), 31, 32, 33, 47, 64)
"""Of products that a few samples or a short text make."""

_TALL_HEIGHTS = (128, 256, 512)
_TALLEST = 4096
"""Beyond it a product is cut into blocks, of which it only has more."""

_ORIGIN = ("_name_or_path", "_commit_hash", "transformers_version")


def numerics_id(**facts: object) -> str:
    """Hash of everything that decides bits: given facts, versions, on a CPU the processor."""
    facts = {
        **facts,
        "code": code_digest(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cpu": describe_processor() if facts.get("device") == "cpu" else "",
        "machine": platform.machine(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def settings_of(config: Any) -> dict[str, Any]:
    """A model's config without where it came from: equal tensors under another one are other bits.

    Args:
        config: transformers' own.
    """
    found: dict[str, Any] = json.loads(
        config.to_json_string(use_diff=False),
        object_hook=lambda part: {k: v for k, v in part.items() if k not in _ORIGIN},
    )
    return found


def rows_are_invariant(head: RowHead, states_T_H: Tensor) -> bool:
    """Whether a row's logits have the same bits in tiles of different height.

    The body sees one sequence at a time, so the head's tile is the only product whose height
    depends on what else was asked.
    """
    if states_T_H.device.type != "cpu":
        return False
    full = tile_rows(head.vocab_size, head.dtype.itemsize)
    states = states_T_H.repeat(-(-full // len(states_T_H)), 1)[:full]
    return _same_at_heights(head.logits, states, [*_HEIGHTS, full - ROW_MULTIPLE])


def least_padding(head: LinearHead, states_T_H: Tensor) -> LinearHead:
    """The head without padding of rows, if the bits of rows allow it."""
    bare = replace(head, row_multiple=1)
    return bare if rows_are_invariant(bare, states_T_H) else head


def tall_steps(step_rows: int) -> list[int]:
    """Rows of steps that are tried beside small ones, a full one last.

    Args:
        step_rows: of a full step.
    """
    full = min(step_rows, _TALLEST)
    return [*(height for height in _TALL_HEIGHTS if height < full), *([full] if full > 64 else [])]


def body_row_multiple(network: Any, step_rows: int) -> int:
    """What the rows of a step have to be a multiple of, so that its products keep a row's bits.

    1 where every product of the body is a linear layer whose bits do not depend on its height: each
    shape of them is tried at the heights of small steps and of some up to a full one.

    Args:
        network: the model.
        step_rows: of a full step.
    """
    network_dtype: torch.dtype = network.dtype
    layers: dict[tuple[Any, ...], nn.Module] = {}
    for module in network.modules():
        if type(module) is nn.Linear:
            if module is not network.get_output_embeddings():
                shape = (*module.weight.shape, module.bias is None, "forward" in module.__dict__)
                layers.setdefault(shape, module)
        elif not isinstance(module, nn.Embedding) and any(
            weight.dim() > 1 for weight in module.parameters(recurse=False)
        ):
            return ROW_MULTIPLE  # a product of another kind
    if network.device.type != "cpu" or not layers:
        return ROW_MULTIPLE
    generator = torch.Generator().manual_seed(0)
    heights = (*_HEIGHTS, *tall_steps(step_rows))
    # None of its last rows is a ragged one.
    whole = heights[-1] + ROW_MULTIPLE + -heights[-1] % ROW_MULTIPLE
    for (_, width, *_), layer in layers.items():
        rows = torch.randn(whole, width, generator=generator).to(network_dtype)
        if not _same_at_heights(layer, rows, heights):
            return ROW_MULTIPLE
    return 1


def _same_at_heights(
    product: Callable[[Tensor], Tensor], rows: Tensor, heights: Iterable[int]
) -> bool:
    """Whether the last rows of a product have the same bits without those before them."""
    with torch.inference_mode():
        whole = product(rows)
        return all(
            torch.equal(product(rows[-height:]), whole[-height:])
            for height in heights
            if 0 < height <= len(rows)
        )
